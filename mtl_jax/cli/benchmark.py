"""Benchmarks speed and memory: `mtl-jax benchmark step --peer torch --json step.json`."""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mtl_jax.cli import flags
from mtl_jax.errors import UserError

CHECKOUT = Path(__file__).parents[2]
MAX_COLUMNS = 10  # of a table; with more, each row becomes a column


def parser() -> flags.Parser:
    """Returns the command's flags."""
    commands = _commands().COMMANDS if _in_checkout() else {}
    epilog = "\n".join(f"{name}: {command.__doc__}" for name, command in commands.items())
    parser = flags.Parser("benchmark", __doc__, epilog=epilog)
    parser.add_argument("what", choices=tuple(commands) or None, help="benchmark to run, see below")
    parser.add_argument("--peer", choices=("", "torch"), default="", help="compare with PyTorch, eager and compiled")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=512, help="px, a multiple of 32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type of JAX")
    parser.add_argument("--repeats", type=int, default=10, help="timed computations of each program")
    parser.add_argument("--data_root", type=Path, default=Path(os.environ.get("MTL_JAX_DATA", "data")))
    parser.add_argument("--methods", default="", help="of `balance`: comma list of names; default: all")
    parser.add_argument("--runs", default="", help="of `sharing`: finished trainings, shared=DIR,plain=DIR")
    parser.add_argument("--svg", type=Path, help="of `sharing`: plot of metrics of the runs against network cost")
    parser.add_argument("--minutes", type=float, default=8.0, help="of `gpu`: time limit")
    parser.add_argument("--quick", action="store_true", help="of `gpu`: tiny sizes, as without a GPU")
    parser.add_argument(
        "--step_ms", type=float, default=0.0, help="of `at_scale`: step time of one device; 0 measures it"
    )
    parser.add_argument("--link_gb", type=float, default=12.5, help="of `at_scale`: GB/s of a device's link")
    parser.add_argument("--latency_us", type=float, default=20.0, help="of `at_scale`: latency of one message, µs")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints one table; returns 0, or 2 for a usage error."""
    options = vars(parser().parse_args(arguments))
    if not _in_checkout():
        raise UserError(
            "mtl-jax benchmark: expected a checkout of the repository, with its folder benchmarks, found none in "
            f"{CHECKOUT}; clone it and install it with pip install -e ."
        )
    commands = _commands()
    benchmark_name, path = options.pop("what"), options.pop("json")
    metadata = {"command": ["mtl-jax", "benchmark", *arguments], "machine": _machine()}
    try:
        rows = commands.COMMANDS[benchmark_name](
            commands.Options(**options, on_rows=functools.partial(_write, path, metadata))
        )
        _print(benchmark_name, rows)
        _write(path, metadata, rows)
    except OSError as error:
        return flags.fail(error)
    return 0


def _in_checkout() -> bool:
    return (CHECKOUT / "benchmarks" / "commands.py").is_file()


def _commands() -> Any:
    """Imports the benchmarks, which are outside the installed package."""
    if str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    return importlib.import_module("benchmarks.commands")


def _write(path: Path | None, metadata: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replaces the file atomically after every row, so that an interrupted run keeps its results."""
    if path:
        partial_file = path.with_name(path.name + ".part")
        partial_file.write_text(json.dumps({**metadata, "rows": rows}, indent=1) + "\n")
        partial_file.replace(path)


def _print(benchmark_name: str, rows: list[dict[str, Any]]) -> None:
    if benchmark_name == "gpu":  # plain text, as on a machine without rich
        print(importlib.import_module("benchmarks.gpu").tables(rows))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    varied = [name for name in names if len({str(row.get(name)) for row in rows}) > 1 or len(rows) == 1]
    cells = [varied, *([_cell(row.get(name, "")) for name in varied] for row in rows)]
    if len(varied) > MAX_COLUMNS:
        cells = [list(column) for column in zip(*cells, strict=True)]
    table = Table(*cells[0])
    for line in cells[1:]:
        table.add_row(*line)
    return table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine() -> dict[str, Any]:
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
