"""The program `mtl-jax`: one module for each command, imported on demand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mtl_jax.errors import print_any_name

# Command -> one-line summary; its flags are defined in the module of that name in this folder.
COMMANDS: dict[str, str] = {
    "train": "trains on folders and files of labels, or on a configuration page",
    "extend": "adds a task or classes to a finished run, without changing the old outputs",
    "edit": "renames or removes classes of a finished run",
    "eval": "measures trained weights on validation images",
    "calibrate": "fits score thresholds of boxes and tags, and temperatures of probabilities",
    "predict": "runs trained weights on your own images",
    "serve": "serves predictions on a local web page and as an HTTP API",
    "export": "exports trained weights to files that run without this package",
    "compare": "trains several configurations over several seeds and compares them",
    "benchmark": "measures speed and memory",
    "prepare": "prepares small subsets of VOC, COCO and Imagenette",
    "inspect": "reports the content of datasets and suspicious labels",
    "convert": "converts images and labels to another format",
    "completion": "prints the shell completion script",
}
# Commands with long computations, which re-execute the process with allocator settings.
TUNED = (("train",), ("extend",), ("edit",), ("eval",), ("serve",), ("export",), ("benchmark",))
EXIT_USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: command name and flags.

    Returns:
        Exit status: 0, 2 for a usage error, 130 after Ctrl-C, or others as the command documents.
    """
    name, *command_arguments = arguments or ("--help",)
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    if name == "--version":
        from mtl_jax import __version__

        print(f"mtl-jax {__version__}")
        return 0
    if name not in COMMANDS:
        from mtl_jax.config.checks import suggestion

        print_any_name()
        noun = "flag" if name.startswith("-") else "command"
        print(f"error: mtl-jax has no {noun} {name}; {suggestion(name, COMMANDS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return module(name).main(command_arguments)


def module(name: str) -> Any:
    """Imports the module of a command, which has `parser()` and `main(arguments)`."""
    return importlib.import_module(f"{__name__}.{name}")


def usage() -> str:
    """Returns the list of commands with their summaries."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: mtl-jax COMMAND [flags]",
            "",
            "One small vision network for many tasks.",
            "",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "Flags of a command: mtl-jax COMMAND --help",
        ]
    )


def program() -> None:
    """Runs the command line of this process and exits."""
    arguments = sys.argv[1:]
    if not {"--help", "-h"} & set(arguments) and any(tuple(arguments[: len(command)]) == command for command in TUNED):
        from mtl_jax.runtime import allocator

        allocator.tune()
    sys.exit(main(arguments))
