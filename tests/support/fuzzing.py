"""What the fuzz tests share: hostile bytes and trees, how many of them, and what may come of reading one."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from mtl_jax.errors import UserError
from mtl_jax.workdir.checkpoints import CheckpointError

DEFAULT_CASES = 200  # over all tests; `make fuzz` sets more, and draws others each time
CASES = int(os.environ.get("MTL_JAX_FUZZ_CASES", DEFAULT_CASES))
LONGEST_S = 10
MAX_MESSAGE = 2100  # characters

NUMBERS = (0, -1, 1, 3, 2**31, 2**63, 10**400, 1e308, 1e30, 0.5, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "..", "../../x", "/dev/zero", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "nan", "7", "\n", "{}")
TREES = (None, True, False, [], {}, [[]], {"a": 1}, [1, 2, 3], ["x"])


def cases(share: int) -> settings:
    """Returns the settings of a test that takes `share` of every 200 cases."""
    return settings(
        max_examples=max(1, round(share * CASES / DEFAULT_CASES)),
        derandomize=CASES == DEFAULT_CASES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def hostile() -> st.SearchStrategy[Any]:
    """What a value of a file may have become."""
    return st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.sampled_from(TREES) | st.text(max_size=8)


Change = tuple[str, int, int, bytes]  # kind, place, length, new bytes


def changes(most: int = 4) -> st.SearchStrategy[list[Change]]:
    """Draws changes that `changed` makes."""
    kind = st.sampled_from(("flip", "cut", "insert", "splice", "zero", "set"))
    single = st.tuples(kind, st.integers(0, 2**20), st.integers(1, 64), st.binary(min_size=1, max_size=8))
    return st.lists(single, min_size=1, max_size=most)


def changed(content: bytes, steps: list[Change]) -> bytes:
    """Flips a bit, cuts the end, inserts, moves a piece, zeroes or overwrites: one after another."""
    spoilt = bytearray(content)
    for kind, place, length, new in steps:
        at = place % (len(spoilt) + 1)
        end = min(at + length, len(spoilt))
        if kind == "flip" and at < end:
            spoilt[at] ^= 1 << (length % 8)
        elif kind == "cut":
            del spoilt[at:]
        elif kind == "insert":
            spoilt[at:at] = new
        elif kind == "splice":
            source = (place * 7919 + length) % (len(spoilt) + 1)
            spoilt[at:end] = spoilt[source : source + length]
        elif kind == "zero":
            spoilt[at:end] = bytes(end - at)
        elif kind == "set":
            spoilt[at : at + len(new)] = new
    return bytes(spoilt)


@st.composite
def rewritten(draw: Callable[..., Any], tree: Any, most: int = 3) -> Any:
    """Draws a copy of a JSON tree in which values are hostile, missing or twice there."""
    for _ in range(draw(st.integers(1, most))):
        tree = _rewritten(draw, tree)
    return tree


def _rewritten(draw: Callable[..., Any], tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 9)) == 0:
        return draw(hostile())
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    key = draw(st.sampled_from(sorted(tree)) if isinstance(tree, dict) else st.integers(0, len(tree) - 1))
    subject = draw(st.sampled_from(("within", "within", "within", "within", "delete", "double")))
    if subject == "delete":
        del copy[key]
    elif subject == "double" and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = _rewritten(draw, copy[key])
    return copy


def verdict(loaded: Callable[[], Any], *names: str) -> str:
    """Reads something hostile, which must give a result or one line that names the file or field.

    Args:
        read: what to call.
        *names: words of which the line must have one.

    Returns:
        "read" or "refused"; whatever else happens fails the test.
    """
    try:
        with _limited():
            loaded()
    except (UserError, CheckpointError) as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) <= MAX_MESSAGE
        assert any(name in message for name in names), f"{message} names none of {names}"
        event("refused")
        return "refused"
    event("read")
    return "read"


class TooLong(BaseException):
    """Not an Exception, which a reader may take for damage of its file."""


@contextmanager
def _limited() -> Iterator[None]:
    def too_long(number: int, frame: Any) -> None:
        raise TooLong(f"more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree_of(folder: Path) -> set[str]:
    """Returns what lies in a folder, to see that nothing is added."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
