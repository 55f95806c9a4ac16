"""Adds a task, or classes of a task, to a finished run, in a work directory of its own; no old output changes.

mtl-jax extend --from runs/mine --workdir runs/mine-2 classes=more/
mtl-jax extend --from runs/mine --workdir runs/mine-2 --task det boxes=new.json
mtl-jax extend --from runs/mine --workdir runs/mine-2 --task det --refine boxes=more.json
mtl-jax extend --from runs/digits --workdir runs/digits-2 --config configs/grow.py:more [--config.some.field=value …]

Labels are named and inspected as by mtl-jax train. A page for --config lists the tasks, streams and stages to add; its
network settings are absent or equal to those of the old run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax.cli import flags
from mtl_jax.config.checks import suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.errors import UserError

EXIT_CONTRACT_BROKEN = 3


def parser() -> flags.Parser:
    """Returns the command's flags."""
    usage = "mtl-jax extend --from DIR --workdir DIR (KIND[.NAME]=PATH … | --config PAGE) [flags]"
    parser = flags.Parser("extend", __doc__, usage=usage)
    parser.add_argument("labels", nargs="*", metavar="KIND=PATH", help="kind of label, and its folder or file")
    parser.add_argument("--from", dest="parent", required=True, metavar="DIR", help="the finished run's work directory")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="output folder of the new run")
    parser.add_argument("--config", metavar="PAGE", help="page of additions, as for train")
    parser.add_argument(
        "--keep", default="exact", help="exact: no old output changes; 5%%: no old task loses more than this"
    )
    parser.add_argument("--task", default="", metavar="NAME", help="task of the run that gets the classes")
    parser.add_argument(
        "--exemplars",
        type=int,
        metavar="N",
        help="images of each old class, from the old run's data, to train on with new classes, with more data or, with "
        "--keep 5%%, with a new task; with new classes, those of boxes must show none of them; default: 10 if the data "
        "is still there",
    )
    flags.add_switch(parser, "refine", "more data for existing classes; kept only if no task loses too much")
    flags.add_switch(parser, "smoke", "two steps per stage on a few images; still writes every file")
    flags.add_switch(parser, "enforce_contract", "exit with status 3 when the contract is broken")
    flags.add_minutes(parser)
    flags.add_reading(parser)
    return parser


@flags.reported(interrupted="interrupted; the same command resumes from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for a mistake, 3 for a version that is not kept, or breaks an enforced contract."""
    from mtl_jax.config import overrides

    page, changes, flag_words = overrides.split(arguments)
    options = parser().parse_args(flag_words)
    if bool(page) == bool(options.labels):
        found = "both" if page else "neither"
        raise UserError(f"expected labels to add, or a page of them, found {found}; {parser().format_usage().strip()}")
    if options.smoke:
        changes.append(overrides.Override(("smoke",), "true"))
    from mtl_jax.workdir import checkpoints

    _is_exact(options)  # here and below mistakes are found before any data is inspected
    options.parent = checkpoints.find(Path(options.parent).expanduser())
    metadata = checkpoints.read_metadata(options.parent)
    known_tasks = metadata["config"]["tasks"]
    if options.task and options.task not in known_tasks:
        raise UserError(
            f"--task: expected a task of {options.parent}, found {options.task!r}; "
            f"{suggestion(options.task, known_tasks)}"
        )
    if options.exemplars is not None and options.exemplars < 0:
        raise UserError(f"--exemplars: expected 0 or more images of each class, found {options.exemplars}")
    page = page or _generate_page(options, _requests(options, metadata["config"]), metadata)
    config = config_lib.read_settings(overrides.load(page, changes))
    return _extend(config, options, command=" ".join(("mtl-jax extend", *arguments)))


def _requests(options: argparse.Namespace, old: Mapping[str, Any]) -> list[Any]:
    """Parses the labels, under names that the old run does not use; rejects those that do not fit its tasks."""
    from mtl_jax.own_data import request as request_lib

    requests = request_lib.parse(options.labels, val_share=options.val_share, annotated_on=options.annotated_on)
    _check_labels(requests, options, old)
    used_names = _used_names(old)
    return [_with_unused_name(request, used_names, is_named=not options.task) for request in requests]


def _check_labels(requests: Sequence[Any], options: argparse.Namespace, old: Mapping[str, Any]) -> None:
    from mtl_jax.own_data import request as request_lib

    known_tasks = old["tasks"]
    kinds = [request_lib.TASK_KINDS[request.kind] for request in requests]
    if options.refine and not options.task:
        expected = [name for name, task in known_tasks.items() if task["kind"] in kinds] or known_tasks
        raise UserError(f"--refine: expected --task with the task that the data is for ({', '.join(expected)})")
    if not options.task:
        for request in requests:
            if request.name != request.kind and request.name in _used_names(old):
                more = f", or give the task more labels by --task {request.name}" * (request.name in known_tasks)
                raise UserError(f"{request}: {request.name} is in {options.parent} already; take another name{more}")
        return
    request, *others = requests
    if others:
        raise UserError(f"--task {options.task}: expected labels of one kind, found {', '.join(map(str, requests))}")
    if kinds[0] != (kind := known_tasks[options.task]["kind"]):
        label_kinds = {task_kind: label_kind for label_kind, task_kind in request_lib.TASK_KINDS.items()}
        raise UserError(
            f"--task {options.task}: expected labels of a {kind} task ({label_kinds[kind]}=…), found {request}"
        )
    if not options.refine and not known_tasks[options.task].get("classes"):
        raise UserError(
            f"--task {options.task}: a {kind} task has no classes to add to; --refine trains it on more data"
        )


def _is_exact(options: argparse.Namespace) -> bool:
    """Returns whether nothing of an old task may change; raises UserError for a --keep that is unclear."""
    from mtl_jax.extend import additions

    return additions.limit_percent(options.keep) is None


def _generate_page(options: argparse.Namespace, requests: Sequence[Any], metadata: Mapping[str, Any]) -> str:
    """Inspects the data and writes a page, unless the work directory has one of the same command."""
    from mtl_jax.cli import own_run
    from mtl_jax.extend import new_classes
    from mtl_jax.own_data import page as page_lib
    from mtl_jax.own_data.choices import Growth
    from mtl_jax.own_data.summary import with_names
    from mtl_jax.workdir.run_record import RECORD

    workdir = Path(options.workdir).expanduser()
    data_settings = [options.minutes, options.val_share, options.annotated_on]
    growth_settings = [str(options.parent), options.keep, options.task, options.refine]
    made_from = json.dumps([*map(str, requests), *data_settings, *growth_settings])
    page = workdir / page_lib.FILE
    if (workdir / RECORD).exists():
        own_run.require_same(page, made_from)
        return str(page)
    exact = _is_exact(options)
    old = config_lib.read_settings(config_lib.completed(metadata["config"]))
    growth = Growth(
        passes=_passes(metadata, exact=exact, refine=options.refine),
        like=_stream_of(options.task, old),
        is_later=bool(options.task) and exact and not options.refine,
        is_refined=options.refine,
    )
    choices, machine = own_run.inspect_data(requests, options, growth)
    if options.task:
        classes = old.tasks[options.task].get("classes") or ()
        datasets = [with_names(choice.dataset, classes, of=options.task) for choice in choices]
        choices = [
            dataclasses.replace(choice, dataset=dataset) for choice, dataset in zip(choices, datasets, strict=True)
        ]
    task_flags = f" --task {options.task}" * bool(options.task) + " --refine" * options.refine
    page_lib.write_addition(
        page,
        choices,
        name=workdir.name,
        made_from=made_from,
        command=f"mtl-jax extend --from {options.parent} --workdir runs/edited --keep {options.keep}{task_flags}",
        latency_image_size=max(old.contract.latency_image_size, *(choice.image_size for choice in choices)),
        freeze=() if exact else _kept_features(old, metadata["stage"]),
        known_classes=new_classes.names_in_data(old.tasks[options.task]) if options.task else {},
    )
    own_run.print_plan(choices, machine, start=str(options.parent))
    print(f"page: {page}, to be edited and added with --config")
    return str(page)


def _passes(metadata: Mapping[str, Any], *, exact: bool, refine: bool) -> int:
    """Returns how many passes of a task a step takes: old tasks that may change are replayed and distilled in it."""
    old_tasks = metadata["stages"][-1]["metrics"]
    return 1 if exact else len(old_tasks) + (not refine)  # the pass of more data is that of the old task


def _stream_of(task: str, old: RunSettings) -> StreamSettings | None:
    """Returns the stream that stands for an old task: what the task gets later is predicted at its size, too."""
    streams = (old.streams[stream] for stage in old.order for stream in old.stages[stage].streams)
    stream = next((stream for stream in streams if task in stream.labels), None)
    return stream and dataclasses.replace(stream, image_size=stream.image_size or old.image_size)


def _kept_features(old: RunSettings, stage: str) -> tuple[str, ...]:
    """Returns the patterns of ImageNet's features that a stage of the old run left as they were."""
    from mtl_jax.config import recipes
    from mtl_jax.config.stage_settings import ALWAYS

    return tuple(pattern for pattern in recipes.IMAGENET if old.stages[stage].frozen.get(pattern) == ALWAYS)


def _with_unused_name(request: Any, used_names: Collection[str], *, is_named: bool) -> Any:
    """Gives an unnamed task, or a stream of a task of the old run, a name that the old run does not use."""
    name, number = request.name if is_named else request.kind, 2
    while name in used_names:
        name, number = f"{request.kind}_{number}", number + 1
    return request._replace(name=name)


def _used_names(old: Mapping[str, Any]) -> set[str]:
    """Returns the names of tasks, streams and stages of the old run."""
    return {name for table in ("tasks", "streams", "stages") for name in old[table]}


def _extend(config: Any, options: argparse.Namespace, *, command: str) -> int:
    # Imported after the flags, so that a usage error does not wait for JAX.
    from absl import logging
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.extend import extend
    from mtl_jax.runtime.preemption import SAVED, Preempted, Preemption

    logging.set_verbosity(logging.ERROR)  # silences Orbax
    try:
        with Preemption() as preemption:
            contract = extend(
                options.parent,
                options.workdir,
                config,
                keep=options.keep,
                task=options.task,
                refine=options.refine,
                per_class=options.exemplars,
                command=command,
                preemption=preemption,
            )
    except Preempted:
        print(SAVED, file=sys.stderr, flush=True)
        return 0
    Console().print(contract_table.table(contract))
    print(f"report: {options.workdir}/report.html")
    if "refused" in contract:
        print(contract["refused"], file=sys.stderr)
        return EXIT_CONTRACT_BROKEN
    return EXIT_CONTRACT_BROKEN if options.enforce_contract and not contract["passed"] else 0
