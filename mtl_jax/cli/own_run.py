"""Training on the user's data: inspects it, prints its content, and writes the configuration page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax import config as config_lib
from mtl_jax.errors import UserError
from mtl_jax.models.backbones import published
from mtl_jax.own_data import choices as choices_lib
from mtl_jax.own_data import machine as machine_lib
from mtl_jax.own_data import page as page_lib
from mtl_jax.own_data import request as request_lib
from mtl_jax.own_data import summary as summary_lib
from mtl_jax.own_data import table
from mtl_jax.workdir.run_record import RECORD

BACKBONE = "mobilenet_v3_small"
OFFER = f"--pretrained {BACKBONE} downloads features learnt on ImageNet once (10 MB), from which far more is learnt"
# Common file names of its features.
FEATURES = ("mobilenet_v3_small_features.npz", "mobilenet_v3_small_features.pth", "mobilenet_v3_small-047dcff4.pth")


def prepare(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """Inspects the data and writes a page, unless the work directory holds a run of the same command.

    Args:
        options: flags of `mtl-jax train`.

    Returns:
        Page and work directory of each run in order; with --alone, the baselines come first.

    Raises:
        UserError: data that cannot be read, or a work directory of another command.
    """
    _check(options)
    requests = request_lib.parse(options.labels, val_share=options.val_share, annotated_on=options.annotated_on)
    names = [request.name for request in requests]
    workdir = Path(options.workdir or f"runs/{'-'.join(names)}").expanduser()
    page = workdir / page_lib.FILE
    baselines = {name: workdir / f"{page_lib.ALONE}{name}" for name in names} if options.alone else {}
    main = page_lib.TOGETHER if options.together else page_lib.ONE_AFTER_ANOTHER
    runs = [(f"{page}:{page_lib.ALONE}{name}", folder) for name, folder in baselines.items()]
    runs.append((f"{page}:{main}", workdir))
    option_values = (options.minutes, options.val_share, options.annotated_on, options.alone, options.pretrained)
    made_from = json.dumps([*map(str, requests), *option_values])
    if any((folder / RECORD).exists() for _, folder in runs):
        require_same(page, made_from)
        print(f"continues with {page}")
        return runs
    choices, machine = inspect_data(requests, options)
    pretrained = _pretrained(options.pretrained)
    page_lib.write(
        page,
        choices,
        name=workdir.name,
        made_from=made_from,
        pretrained=pretrained,
        baselines={name: str(folder.absolute()) for name, folder in baselines.items()},
    )
    start = f"the features in {pretrained}" if pretrained else f"random weights; {OFFER}"
    print_plan(choices, machine, start=start, runs=2 if options.alone else 1)
    print(f"page: {page}, to be edited and trained with --config")
    return runs


def inspect_data(
    requests: Sequence[request_lib.Request],
    options: argparse.Namespace,
    growth: choices_lib.Growth | None = None,
) -> tuple[tuple[choices_lib.Choice, ...], machine_lib.Machine]:
    """Inspects all datasets, and prints their content and the chosen settings.

    Args:
        requests: the datasets.
        options: flags, with `minutes`.
        growth: how a finished run gets the datasets; None for a run of their own.

    Raises:
        UserError: data that cannot be read, or no time.
    """
    if not options.minutes > 0:
        raise UserError(f"--minutes: expected more than 0, found {options.minutes:g}")
    datasets = [summary_lib.summarise(request) for request in requests]
    machine = machine_lib.measure()
    choices = choices_lib.choose(datasets, machine, minutes=options.minutes, growth=growth)
    table.show(datasets, choices)
    return choices, machine


def _check(options: argparse.Namespace) -> None:
    if options.coordinator or options.distributed or options.num_processes or options.process_id >= 0:
        raise UserError(
            "expected --config to train in several processes, found labels; start once in one process, and then the "
            "page that it has written to the work directory"
        )


def require_same(page: Path, made_from: str) -> None:
    """Checks that the page of a run comes from the same command line.

    Args:
        page: page in the work directory.
        made_from: the current command line.

    Raises:
        UserError: the page comes from another command line, or is missing.
    """
    previous = page_lib.made_from(page)
    if previous != made_from:
        reason = f"its page was made from {previous}" if previous else f"there is no {page}"
        raise UserError(
            f"{page.parent} holds a run of another command ({reason}); name another --workdir, or "
            "continue with --config"
        )


def _pretrained(setting: str | None) -> str:
    """Returns the pretrained features: as set, from this machine, or downloaded with the user's consent."""
    if setting is not None:
        return setting
    root = config_lib.data_root(config_lib.base())
    for name in (*FEATURES, BACKBONE):
        try:
            weights_path = published.find(name, backbone=BACKBONE, data_root=root, offline=True)
        except UserError:
            continue
        return name if name == BACKBONE else str(weights_path.absolute())
    return BACKBONE if _confirm_download() else ""


def _confirm_download() -> bool:
    """Asks the user, only in a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    reply = input(f"Features of {BACKBONE} learnt on ImageNet are not here. Download them once (10 MB)? [Y/n] ")
    return reply.strip().lower() in ("", "y", "yes")


def print_plan(
    choices: Sequence[choices_lib.Choice], machine: machine_lib.Machine, *, start: str, runs: int = 1
) -> None:
    """Prints what is noteworthy in the datasets, what training starts from, and how long it takes.

    Args:
        choices: training settings of the datasets.
        machine: the machine that trains.
        start: what training starts from.
        runs: how often every dataset is trained on.
    """
    for choice in choices:
        for note in choice.dataset.notes:
            print(f"note: {choice.dataset.request.name}: {note}")
    seconds = machine.start_seconds + sum(machine.stage_seconds + choice.seconds for choice in choices)
    print(f"starts from {start}")
    print(f"takes about {max(1, round(runs * seconds / 60))} min on {machine}; --minutes changes that")
