"""Flags that the commands share, and the report of mistakes.

Flags are argparse's: it is part of Python, starts in milliseconds, and can list a command's flags for shells.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mtl_jax.errors import UserError, print_any_name

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells say of SIGINT
INTERRUPTED = "interrupted; run the same command again to go on"
Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def __init__(self, command: str, description: str | None, *, prefix: str = "error", **settings: Any) -> None:
        """Makes the parser of a command.

        Args:
            command: its name.
            description: for --help, printed as it is.
            prefix: of the line about a mistake.
            **settings: of `argparse.ArgumentParser`.
        """
        self._prefix = prefix
        super().__init__(
            prog=f"mtl-jax {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads --switch=true and --switch=false as --switch and --noswitch; a switch takes no word after it."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(list(map(self._without_truth, words)), namespace)

    def _without_truth(self, word: str) -> str:
        name, equals, value = word.partition("=")
        is_switch = name.startswith("--") and f"--no{name[2:]}" in self._option_string_actions
        return f"{TRUTH[value.lower()]}{name[2:]}" if equals and is_switch and value.lower() in TRUTH else word

    def error(self, message: str) -> NoReturn:
        """Ends the program, as argparse's own does after its usage."""
        raise SystemExit(fail(UserError(f"{message}; see {self.prog} --help"), prefix=self._prefix))


def reported(main: Main | None = None, *, prefix: str = "error", interrupted: str = INTERRUPTED) -> Any:
    """Wraps a command, so that a user's mistake becomes one line on stderr and exit status 2.

    Args:
        main: takes the arguments, returns the exit status.
        prefix: of the line.
        interrupted: what is said after Ctrl-C.
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
            if not isinstance(error, _mistakes()):
                raise
            return fail(error, prefix=prefix)

    return wrapped


def fail(error: object, *, prefix: str = "error") -> int:
    """Prints what is wrong in one line; returns the exit status of a user's mistake."""
    print(f"{prefix}: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _mistakes() -> tuple[type[Exception], ...]:
    """Errors that a user can correct; that of checkpoints comes from a module that is imported by then."""
    checkpoints = sys.modules.get("mtl_jax.workdir.checkpoints")
    return (UserError, checkpoints.CheckpointError) if checkpoints else (UserError,)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights and --tasks: which trained network, and what of it."""
    from pathlib import Path

    parser.add_argument("--weights", required=True, type=Path, help="a work directory, or one stage's checkpoint in it")
    parser.add_argument("--tasks", default="all", help="all, or names separated by commas")


def add_reading(parser: Any) -> None:
    """Adds --val_share and --annotated_on: how datasets are read that do not say it themselves.

    Args:
        parser: or a group of it.
    """
    parser.add_argument(
        "--val_share", type=float, default=0.2, help="of the images validates, where a dataset has no splits; 0.2"
    )
    add_annotated_on(parser)


def add_annotated_on(parser: Any) -> None:
    """Adds --annotated_on: how labels of images that EXIF turns are meant.

    Args:
        parser: or a group of it.
    """
    parser.add_argument(
        "--annotated_on",
        default="auto",
        metavar="PIXELS",
        help="upright or stored: the pixels that labels of images turned by EXIF refer to; found by image sizes",
    )


def add_minutes(parser: Any) -> None:
    """Adds --minutes: of a run whose sizes and lengths are chosen.

    Args:
        parser: or a group of it.
    """
    parser.add_argument("--minutes", type=float, default=4.0, help="that training should take, which sizes follow; 4")


def add_switch(parser: Any, name: str, noun: str) -> None:
    """Adds a flag that is off by default: --name, --name=true, --name=false or --noname.

    Args:
        parser: or a group of it.
        name: of the flag.
        noun: it does.
    """
    parser.add_argument(f"--{name}", action="store_true", help=noun)
    parser.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


TRUTH = {"true": "--", "1": "--", "yes": "--", "false": "--no", "0": "--no", "no": "--no"}
