"""Shared command-line flags, and error reporting.

Parsers use argparse: it is part of Python, starts in milliseconds, and lists flags for shell completion.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mtl_jax.errors import UserError, print_any_name

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the shell convention for SIGINT
INTERRUPTED = "interrupted; run the same command again to go on"
Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """Argument parser that reports a usage error in one line."""

    def __init__(self, command: str, description: str | None, *, prefix: str = "error", **settings: Any) -> None:
        """Creates the parser of a command.

        Args:
            command: name of the command.
            description: text for --help, printed verbatim.
            prefix: prefix of the error line.
            **settings: arguments of `argparse.ArgumentParser`.
        """
        self._prefix = prefix
        super().__init__(
            prog=f"mtl-jax {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses --switch=true and --switch=false as --switch and --noswitch; a switch takes no separate value."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(list(map(self._normalise_switch, words)), namespace)

    def _normalise_switch(self, word: str) -> str:
        name, equals, value = word.partition("=")
        is_switch = name.startswith("--") and f"--no{name[2:]}" in self._option_string_actions
        return f"{TRUTH[value.lower()]}{name[2:]}" if equals and is_switch and value.lower() in TRUTH else word

    def error(self, message: str) -> NoReturn:
        """Exits with the error line, in place of argparse's usage text."""
        raise SystemExit(fail(UserError(f"{message}; see {self.prog} --help"), prefix=self._prefix))


def reported(main: Main | None = None, *, prefix: str = "error", interrupted: str = INTERRUPTED) -> Any:
    """Wraps a command so that a usage error becomes one line on stderr and exit status 2.

    Args:
        main: function from arguments to exit status.
        prefix: prefix of the error line.
        interrupted: message after Ctrl-C.
    """
    if main is None:
        return functools.partial(reported, prefix=prefix, interrupted=interrupted)

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str]) -> int:
        print_any_name()
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print(f"{prefix}: {interrupted}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except Exception as error:
            if not isinstance(error, _user_errors()):
                raise
            return fail(error, prefix=prefix)

    return wrapped


def fail(error: object, *, prefix: str = "error") -> int:
    """Prints an error in one line; returns the exit status of a usage error."""
    print(f"{prefix}: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _user_errors() -> tuple[type[Exception], ...]:
    """Returns the errors that a user can correct; CheckpointError only if its module is imported."""
    checkpoints = sys.modules.get("mtl_jax.workdir.checkpoints")
    return (UserError, checkpoints.CheckpointError) if checkpoints else (UserError,)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights and --tasks, which select a trained network and its tasks."""
    from pathlib import Path

    parser.add_argument("--weights", required=True, type=Path, help="a work directory, or one stage's checkpoint in it")
    parser.add_argument("--tasks", default="all", help="all, or names separated by commas")


def add_reading(parser: Any) -> None:
    """Adds --val_share and --annotated_on, for datasets that do not define them.

    Args:
        parser: parser or argument group.
    """
    parser.add_argument(
        "--val_share",
        type=float,
        default=0.2,
        help="share of validation images if a dataset has no splits; default 0.2",
    )
    add_annotated_on(parser)


def add_annotated_on(parser: Any) -> None:
    """Adds --annotated_on, the coordinate frame of labels of images with an EXIF orientation.

    Args:
        parser: parser or argument group.
    """
    parser.add_argument(
        "--annotated_on",
        default="auto",
        metavar="PIXELS",
        help="upright or stored: frame of labels of images with an EXIF orientation; default: from image sizes",
    )


def add_minutes(parser: Any) -> None:
    """Adds --minutes, from which image sizes and training lengths are chosen.

    Args:
        parser: parser or argument group.
    """
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="training time, from which sizes are chosen; default 4"
    )


def add_switch(parser: Any, name: str, noun: str) -> None:
    """Adds a flag that is off by default: --name, --name=true, --name=false or --noname.

    Args:
        parser: parser or argument group.
        name: name of the flag.
        noun: help text.
    """
    parser.add_argument(f"--{name}", action="store_true", help=noun)
    parser.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


TRUTH = {"true": "--", "1": "--", "yes": "--", "false": "--no", "0": "--no", "no": "--no"}
