"""Trains a config stage by stage: `python scripts/train.py --config configs/seq.py --workdir runs/seq`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags, logging

from mtl_jax.config import overrides
from mtl_jax.errors import UserError, print_any_name
from mtl_jax.runtime import allocator

flags.DEFINE_string(  # for --help; `overrides` reads it
    "config", None, "A page of configs/; single settings are changed with --config.some.field=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run leaves its files; runs/<name of the config> by default.")
_ENFORCE = flags.DEFINE_bool("enforce_contract", False, "Exit with status 3 when the contract is broken.")

_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, to train in several processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes train together; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; with --coordinator.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Find the other processes as SLURM or Open MPI tells.")

USAGE = "usage: python scripts/train.py --config configs/seq.py --workdir runs/seq [--config.some.field=value …]"
SHOWN = ("config", "workdir", "enforce_contract", "coordinator", "num_processes", "process_id", "distributed")
EXIT_USER_ERROR = 2
EXIT_CONTRACT_BROKEN = 3


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 for a user's mistake, 3 for a broken contract under --enforce_contract."""
    if any(argument in ("--help", "-help", "--helpshort", "-h") for argument in arguments[1:]):
        shown = [flags.FLAGS[name] for name in SHOWN]
        print(USAGE, __doc__, *(f"  --{flag.name}: {flag.help}" for flag in shown), sep="\n")
        return 0
    print_any_name()
    try:
        config = _parse(arguments)
    except UserError as error:
        return _fail(str(error))
    # Imported after the flags: a typing error should not wait for JAX.
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.runtime import compilation, devices
    from mtl_jax.runtime.preemption import SAVED, Preempted, Preemption
    from mtl_jax.training.train_loop import train_and_evaluate
    from mtl_jax.workdir.checkpoints import CheckpointError

    logging.set_verbosity(logging.ERROR)
    together = bool(_DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value or _PROCESS_ID.value >= 0)
    compilation.enable_cache()
    workdir = Path(_WORKDIR.value or f"runs/{config.name}").expanduser()
    try:
        if together:
            devices.join(_COORDINATOR.value, process_count=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value)
        with Preemption() as preemption:
            contract = train_and_evaluate(config, workdir, command=" ".join(arguments), preemption=preemption)
    except Preempted:
        print(SAVED, file=sys.stderr, flush=True)
        if together:
            devices.leave(0)
        return 0
    except (UserError, CheckpointError) as error:
        status = _fail(str(error))
        if together:
            devices.leave(status)
        return status
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last checkpoint", status=130)
    if not devices.is_primary():
        return 0
    Console().print(contract_table.table(contract))
    print(f"report: {workdir}/report.html")
    return EXIT_CONTRACT_BROKEN if _ENFORCE.value and not contract["passed"] else 0


def _parse(arguments: list[str]) -> Any:
    """Reads the command line; returns the config, and leaves the other flags in absl's.

    Raises:
        UserError: what is wrong with it.
    """
    page, changes, others = overrides.split(arguments[1:])
    try:
        rest = flags.FLAGS([arguments[0], *others])
    except flags.Error as error:
        raise UserError(f"{error}; {USAGE}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]}; {USAGE}")
    if not page:
        raise UserError(f"--config is missing; {USAGE}")
    return overrides.load(page, changes)


def _fail(message: str, status: int = EXIT_USER_ERROR) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv))
