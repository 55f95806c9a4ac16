"""Trains a config stage by stage: `python scripts/train.py --config configs/seq.py --workdir runs/seq`."""

from __future__ import annotations

import sys

from absl import flags, logging
from ml_collections import config_flags

from mtl_jax import allocator

_CONFIG = config_flags.DEFINE_config_file(
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
    problem = _parse(arguments)
    if problem:
        return _fail(problem)
    # Imported after the flags: a typing error should not wait for JAX.
    from rich.console import Console

    from mtl_jax import compilation, contract_table, devices
    from mtl_jax.checkpoints import CheckpointError
    from mtl_jax.errors import UserError
    from mtl_jax.preemption import SAVED, Preempted, Preemption
    from mtl_jax.train_loop import train_and_evaluate

    logging.set_verbosity(logging.ERROR)
    together = bool(_DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value or _PROCESS_ID.value >= 0)
    compilation.enable_cache()
    config = _CONFIG.value
    workdir = _WORKDIR.value or f"runs/{config.name}"
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


def _parse(arguments: list[str]) -> str:
    """Parses the command line; returns what is wrong with it, or nothing."""
    try:
        rest = flags.FLAGS(arguments)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.name  # a page that could not be loaded says so only now
    except OSError as error:
        return f"--config: {str(error).strip().splitlines()[-1].strip()}; expected a page like configs/seq.py"
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        return f"{_one_line(error)} ({USAGE})"
    if len(rest) > 1:
        return f"unexpected argument {rest[1]}; {USAGE}"
    if _CONFIG.value is None:
        return f"--config is missing; {USAGE}"
    return ""


def _one_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = text.strip().splitlines() or [type(error).__name__]
    if "Error whilst parsing config file" in lines[0]:  # a page's own error stands below its traceback
        return lines[-1].rpartition("mtl_jax.errors.UserError: ")[2]
    if "has no attribute 'get_config'" in lines[0]:
        return "the page of --config has no function get_config; expected a page like configs/seq.py"
    if isinstance(error, AttributeError | KeyError):
        return "the config has no field " + "; ".join(lines).replace("'", "")
    return lines[0]


def _fail(message: str, status: int = EXIT_USER_ERROR) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv))
