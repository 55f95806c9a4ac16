"""Trains one network for many tasks, one after another, under a measured contract.

mtl-jax train masks=photos/masks boxes=labels.json classes=flowers/ --workdir runs/mine
mtl-jax train --config configs/seq.py --workdir runs/seq [--config.some.field=value …]

Kinds of label are masks, boxes, classes, tags, values and depth. Formats, classes, image sizes and splits are detected,
and written to the work directory as a configuration page for --config. Several datasets of one kind need names:
boxes.people=people.json boxes.signs=signs/. A column of a table follows a colon: values=faces.csv:age.
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
    parser.add_argument("labels", nargs="*", metavar="KIND=PATH", help="kind of label, and its folder or file")
    parser.add_argument(
        "--config",
        metavar="PAGE",
        help="configuration page; --config.some.field=value changes a setting",
    )
    parser.add_argument("--workdir", metavar="DIR", help="where the run leaves its files; default: runs/<name>")
    flags.add_switch(parser, "smoke", "two steps per stage on a few images; still writes every file")
    flags.add_switch(parser, "enforce_contract", "exit with status 3 when the contract is broken")
    parser.add_argument(
        "--track",
        default="tensorboard",
        metavar="NAMES",
        help="further destinations of metrics and report: comma list of tensorboard, wandb, mlflow, or none",
    )
    _add_own_data(parser.add_argument_group("training on your own data"))
    group = parser.add_argument_group("training in several processes")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num_processes", type=int, default=0, help="number of processes; with --coordinator")
    group.add_argument("--process_id", type=int, default=-1, help="index of this process, from 0; with --coordinator")
    flags.add_switch(group, "distributed", "find the other processes by SLURM or Open MPI")
    return parser


def _add_own_data(group: Any) -> None:
    flags.add_switch(group, "together", "train the tasks jointly, instead of one after another")
    flags.add_switch(group, "alone", "first train a single-task baseline of each task for the contract")
    flags.add_minutes(group)
    flags.add_reading(group)
    group.add_argument(
        "--pretrained",
        metavar="NAME|FILE",
        help="initial features: mobilenet_v3_small downloads them once, '' is random; default: found locally",
    )


@flags.reported(interrupted="interrupted; the same command resumes from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for a usage error, 3 for a broken contract under --enforce_contract."""
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
    """Parses the command line.

    Returns:
        The page ("" without one), the changed settings, and the other flags.

    Raises:
        UserError: the command line is invalid.
    """
    from mtl_jax.config import overrides

    page, changes, flag_words = overrides.split(arguments)
    options = parser().parse_args([f"-{word}" if _has_single_dash(word) else word for word in flag_words])
    if page and options.labels:
        raise UserError(f"unexpected argument {options.labels[0]} with --config; {USAGE}")
    if not page and not options.labels:
        raise UserError(f"--config is missing, or what to learn; {USAGE}")
    if options.smoke:
        changes.append(overrides.Override(("smoke",), "true"))
    return page, changes, options


def _has_single_dash(word: str) -> bool:
    """Returns whether a flag has one dash, as -workdir, which is accepted too."""
    return len(word) > 2 and word[0] == "-" and word[1].isalpha()


def train(config: Any, workdir: Path, options: argparse.Namespace, *, command: str) -> int:
    """Trains or resumes a configuration, and prints the contract and the path of the report.

    Args:
        config: configuration to train.
        workdir: output folder of the run.
        options: parsed flags.
        command: command line, for the run's record.

    Returns:
        Exit status, as `main`.
    """
    # Imported after the flags, so that a usage error does not wait for JAX.
    from absl import logging
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.runtime import compilation, devices
    from mtl_jax.runtime.preemption import SAVED, Preempted, Preemption
    from mtl_jax.training.train_loop import train_and_evaluate
    from mtl_jax.workdir import tracking
    from mtl_jax.workdir.checkpoints import CheckpointError

    track = tracking.parse(options.track)
    logging.set_verbosity(logging.ERROR)  # silences Orbax
    is_distributed = is_distributed_run(options)
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


def is_distributed_run(options: argparse.Namespace) -> bool:
    """Returns whether several processes train together."""
    return bool(options.distributed or options.coordinator or options.num_processes or options.process_id >= 0)
