"""The one exception for mistakes that a user can correct: scripts print it as a single line and exit with 2."""

import io
import sys

MAX_CHARACTERS = 2000  # of a message: what was found in a broken file may be of any length


class UserError(ValueError):
    """Says what was expected, what was found and what to do, naming the file where there is one.

    The message is one printable line, whatever a broken file has put into it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message[: 2 * MAX_CHARACTERS].split())
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
        super().__init__(line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]} …")


def print_any_name() -> None:
    """Lets this program print file names that are not text (not UTF-8): with escapes, where it would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
