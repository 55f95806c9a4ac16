"""Trains one network for many tasks, one after another, under a measured contract.

mtl-jax train masks=photos/masks boxes=labels.json classes=flowers/ --workdir runs/mine
mtl-jax train --config configs/seq.py --workdir runs/seq [--config.some.field=value …]

Kinds of label are masks, boxes, classes, tags, values and depth. Formats, classes, image sizes and splits are found;
what follows is written to the work directory as a page that --config takes. Several of one kind have names:
boxes.people=people.json boxes.signs=signs/. A column of a table comes after a colon: values=faces.csv:age.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax.cli import flags
from mtl_jax.errors import UserError

USAGE = (
    "usage: mtl-jax train masks=DIR boxes=FILE … --workdir runs/mine, or mtl-jax train --config configs/seq.py "
    "--workdir runs/seq [--config.some.field=value …]"
)
EXIT_CONTRACT_BROKEN = 3


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("train", __doc__, usage="mtl-jax train (KIND[.NAME]=PATH … | --config PAGE) [flags]")
    parser.add_argument("labels", nargs="*", metavar="KIND=PATH", help="a kind of label, and a folder or file of it")
    parser.add_argument(
        "--config",
        metavar="PAGE",
        help="a page of configs/; single settings are changed with --config.some.field=value",
    )
    parser.add_argument("--workdir", metavar="DIR", help="where the run leaves its files; runs/<name> by default")
    flags.add_switch(parser, "smoke", "two steps a stage on a handful of images, every file still written")
    flags.add_switch(parser, "enforce_contract", "exit with status 3 when the contract is broken")
    parser.add_argument(
        "--track",
        default="tensorboard",
        metavar="NAMES",
        help="where figures and report go too: tensorboard, wandb, mlflow, with commas between, or none",
    )
    _add_own_data(parser.add_argument_group("of one's own data"))
    group = parser.add_argument_group("in several processes")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", type=int, default=0, help="that train together; with --coordinator")
    group.add_argument("--process_id", type=int, default=-1, help="of this one, from 0; with --coordinator")
    flags.add_switch(group, "distributed", "find the other processes as SLURM or Open MPI say")
    return parser


def _add_own_data(group: Any) -> None:
    flags.add_switch(group, "together", "train the tasks jointly, instead of one after another")
    flags.add_switch(group, "alone", "first train each task by itself, as the baseline of the contract")
    flags.add_minutes(group)
    flags.add_reading(group)
    group.add_argument(
        "--pretrained",
        metavar="NAME|FILE",
        help="features to start from: mobilenet_v3_small downloads them once, '' is random weights; found by default",
    )


@flags.reported(interrupted="interrupted; the same command resumes from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for a user's mistake, 3 for a broken contract under --enforce_contract."""
    if {"--help", "-help", "--helpshort", "-h"} & set(arguments):
        parser().parse_args(["--help"])
    from mtl_jax.config import overrides

    page, changes, options = parse(arguments)
    command = " ".join(("mtl-jax train", *arguments))
    if page:
        config = overrides.load(page, changes)
        workdir = Path(options.workdir or f"runs/{config.name}").expanduser()
        return train(config, workdir, options, command=command)
    from mtl_jax.cli import own_run

    status = 0
    for own_page, workdir in own_run.prepare(options):
        status = train(overrides.load(own_page, changes), workdir, options, command=command)
        if status:
            break
    return status


def parse(arguments: Sequence[str]) -> tuple[str, list[Any], argparse.Namespace]:
    """Reads the command line.

    Returns:
        The page ("" where there is none), the settings that are changed, and the other flags.

    Raises:
        UserError: what is wrong with it.
    """
    from mtl_jax.config import overrides

    page, changes, other_words = overrides.split(arguments)
    options = parser().parse_args([f"-{word}" if _has_one_dash(word) else word for word in other_words])
    if page and options.labels:
        raise UserError(f"unexpected argument {options.labels[0]} with --config; {USAGE}")
    if not page and not options.labels:
        raise UserError(f"--config is missing, or what to learn; {USAGE}")
    if options.smoke:
        changes.append(overrides.Override(("smoke",), "true"))
    return page, changes, options


def _has_one_dash(word: str) -> bool:
    """Whether a flag is written as -workdir, which has always been understood."""
    return len(word) > 2 and word[0] == "-" and word[1].isalpha()


def train(config: Any, workdir: Path, options: argparse.Namespace, *, command: str) -> int:
    """Trains a configuration, or what is left of it, and prints the contract and the place of the report.

    Args:
        config: what to train.
        workdir: where the run leaves its files.
        options: the command's flags.
        command: as the run's record keeps it.

    Returns:
        As `main`.
    """
    # Imported after the flags: a typing error should not wait for JAX.
    from absl import logging
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.runtime import compilation, devices
    from mtl_jax.runtime.preemption import SAVED, Preempted, Preemption
    from mtl_jax.training.train_loop import train_and_evaluate
    from mtl_jax.workdir import tracking
    from mtl_jax.workdir.checkpoints import CheckpointError

    track = tracking.parse(options.track)
    logging.set_verbosity(logging.ERROR)  # of what Orbax says
    is_distributed = is_one_of_several(options)
    compilation.enable_cache()
    try:
        if is_distributed:
            devices.join(options.coordinator, process_count=options.num_processes, process_id=options.process_id)
        with Preemption() as preemption:
            contract = train_and_evaluate(config, workdir, command=command, preemption=preemption, track=track)
    except Preempted:
        print(SAVED, file=sys.stderr, flush=True)
        if is_distributed:
            devices.leave(0)
        return 0
    except (UserError, CheckpointError) as error:
        status = flags.fail(error)
        if is_distributed:
            devices.leave(status)
        return status
    if not devices.is_primary():
        return 0
    Console().print(contract_table.table(contract))
    print(f"report: {workdir}/report.html")
    return EXIT_CONTRACT_BROKEN if options.enforce_contract and not contract["passed"] else 0


def is_one_of_several(options: argparse.Namespace) -> bool:
    """Whether other processes train with this one."""
    return bool(options.distributed or options.coordinator or options.num_processes or options.process_id >= 0)
