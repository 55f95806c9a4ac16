"""Adds a task, or classes of a task, to a finished run, in a work directory of its own; no old output changes.

mtl-jax extend --from runs/mine --workdir runs/mine-2 classes=more/
mtl-jax extend --from runs/mine --workdir runs/mine-2 --task det boxes=new.json
mtl-jax extend --from runs/mine --workdir runs/mine-2 --task det --refine boxes=more.json
mtl-jax extend --from runs/digits --workdir runs/digits-2 --config configs/grow.py:more [--config.some.field=value …]

Labels are named and looked at as by mtl-jax train. The page that --config takes says what is added: tasks, streams and
stages; of the network it says nothing, or what the old run says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax.cli import flags
from mtl_jax.config.checks import suggestion
from mtl_jax.errors import UserError

EXIT_CONTRACT_BROKEN = 3


def parser() -> flags.Parser:
    """Returns the command's flags."""
    usage = "mtl-jax extend --from DIR --workdir DIR (KIND[.NAME]=PATH … | --config PAGE) [flags]"
    parser = flags.Parser("extend", __doc__, usage=usage)
    parser.add_argument("labels", nargs="*", metavar="KIND=PATH", help="a kind of label, and a folder or file of it")
    parser.add_argument("--from", dest="parent", required=True, metavar="DIR", help="the finished run's work directory")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the new run leaves its files")
    parser.add_argument("--config", metavar="PAGE", help="a page of what is added, as --config of train takes it")
    parser.add_argument(
        "--keep", default="exact", help="exact: no old output changes; 5%%: no old task loses more than so much"
    )
    parser.add_argument("--task", default="", metavar="NAME", help="a task of the run, which is to get the classes")
    parser.add_argument(
        "--exemplars",
        type=int,
        default=0,
        metavar="N",
        help="images of each old class, from the old run's data, that are trained on with those of new ones",
    )
    flags.add_switch(parser, "refine", "more data for classes that the task knows; kept only if no task falls too far")
    flags.add_switch(parser, "smoke", "two steps a stage on a handful of images, every file still written")
    flags.add_switch(parser, "enforce_contract", "exit with status 3 when the contract is broken")
    flags.add_minutes(parser)
    flags.add_reading(parser)
    return parser


@flags.reported(interrupted="interrupted; the same command resumes from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for a mistake, 3 for a version that is not kept, or breaks an enforced contract."""
    from mtl_jax.config import overrides

    page, changes, other_words = overrides.split(arguments)
    options = parser().parse_args(other_words)
    if bool(page) == bool(options.labels):
        raise UserError(f"expected labels to add, or a page of them, found neither; {parser().format_usage().strip()}")
    if options.smoke:
        changes.append(overrides.Override(("smoke",), "true"))
    from mtl_jax.workdir import checkpoints

    options.parent = checkpoints.find(Path(options.parent).expanduser())
    if options.task:  # before any data is looked at
        known_tasks = checkpoints.read_metadata(options.parent)["config"]["tasks"]
        if options.task not in known_tasks:
            raise UserError(
                f"--task: expected a task of {options.parent}, found {options.task!r}; "
                f"{suggestion(options.task, known_tasks)}"
            )
    config = config_lib.read_settings(overrides.load(page or _own_page(options), changes))
    if options.labels:  # which say nothing of the network
        config = dataclasses.replace(config, model=_model_of(options.parent))
    return _extend(config, options, command=" ".join(("mtl-jax extend", *arguments)))


def _own_page(options: argparse.Namespace) -> str:
    """Looks at the data and writes a page of it, unless the work directory has one of the same command."""
    from mtl_jax.cli import own_run
    from mtl_jax.own_data import page as page_lib
    from mtl_jax.own_data import request as request_lib
    from mtl_jax.workdir.run_record import RECORD

    workdir = Path(options.workdir).expanduser()
    reading = {"val_share": options.val_share, "annotated_on": options.annotated_on}
    requests = [
        _renamed(request, _used_names(options.parent)) for request in request_lib.parse(options.labels, **reading)
    ]
    made_from = json.dumps([*map(str, requests), options.minutes, *reading.values(), str(options.parent)])
    page = workdir / page_lib.FILE
    if (workdir / RECORD).exists():
        own_run.require_same(page, made_from)
    else:
        choices, _ = own_run.look(requests, options)
        page_lib.write(page, choices, name=workdir.name, made_from=made_from)
        print(f"page: {page}, to be edited and added with --config")
    return f"{page}:{page_lib.ONE_AFTER_ANOTHER}"


def _renamed(request: Any, used_names: Collection[str]) -> Any:
    """Calls a task that the user gave no name by one that the old run has not."""
    name, number = request.name, 2
    while request.name == request.kind and name in used_names:
        name, number = f"{request.kind}_{number}", number + 1
    return request._replace(name=name)


def _used_names(parent: Path) -> set[str]:
    """Names that the old run has given to tasks, streams or stages."""
    from mtl_jax.workdir import checkpoints

    config = checkpoints.read_metadata(parent)["config"]
    return {name for table in ("tasks", "streams", "stages") for name in config[table]}


def _model_of(parent: Path) -> Any:
    from mtl_jax.workdir import checkpoints

    return config_lib.read_settings(config_lib.completed(checkpoints.read_metadata(parent)["config"])).model


def _extend(config: Any, options: argparse.Namespace, *, command: str) -> int:
    # Imported after the flags: a typing error should not wait for JAX.
    from absl import logging
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.extend import extend
    from mtl_jax.runtime.preemption import SAVED, Preempted, Preemption

    logging.set_verbosity(logging.ERROR)  # of what Orbax says
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
