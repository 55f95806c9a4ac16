"""The program `mtl-jax`: one file for each command, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mtl_jax.errors import print_any_name

# Name -> what it does, in one line; its flags are in the module of that name in this folder.
COMMANDS: dict[str, str] = {
    "train": "trains on folders and files of labels, or on a configuration page",
    "extend": "adds a task or classes to a finished run, and leaves the old outputs as they are",
    "edit": "renames or removes classes of a finished run",
    "eval": "measures trained weights on validation images",
    "calibrate": "chooses the scores from which on boxes and tags count, and how sure the network says it is",
    "predict": "finds what trained weights see in images of one's own",
    "serve": "shows it on a local page, and as an HTTP API",
    "export": "writes trained weights as files that run without this package",
    "compare": "trains several configurations over several seeds and puts them side by side",
    "benchmark": "measures speed and memory",
    "prepare": "lays out small sets of VOC, COCO and Imagenette",
    "inspect": "shows what is in folders and files of labels, and what seems wrong with them",
    "convert": "writes images and labels in another format",
    "completion": "prints what makes a shell complete commands and flags",
}
# What computes for long in its own process, and so starts it again with settings of the allocator.
TUNED = (("train",), ("extend",), ("edit",), ("eval",), ("serve",), ("export",), ("benchmark",))
EXIT_USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: its name and its flags.

    Returns:
        Exit status: 0, 2 for a user's mistake, 130 after Ctrl-C, and what the command says of others.
    """
    name, *remaining_words = arguments or ("--help",)
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
    return module(name).main(remaining_words)


def module(name: str) -> Any:
    """Imports a command; it has `parser()` and `main(arguments)`."""
    return importlib.import_module(f"{__name__}.{name}")


def usage() -> str:
    """Returns the commands with what they do."""
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
    """Runs this process's command line and ends the process."""
    arguments = sys.argv[1:]
    if not {"--help", "-h"} & set(arguments) and any(tuple(arguments[: len(command)]) == command for command in TUNED):
        from mtl_jax.runtime import allocator

        allocator.tune()
    sys.exit(main(arguments))
