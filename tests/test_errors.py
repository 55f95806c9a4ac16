"""A message is one printable line, whatever is in it."""

import pytest

from mtl_jax.errors import MAX_CHARACTERS, UserError


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a.png: expected an image", "a.png: expected an image"),
        ("two\nlines\r\n  and\tmore", "two lines and more"),
        ("\x1b[2J\x00 \ud800 ü", r"\x1b[2J\x00 \ud800 ü"),
    ],
)
def test_a_message_is_one_printable_line(message, line):
    assert str(UserError(message)) == line


def test_a_message_has_an_end():
    assert len(str(UserError("x" * 10**7))) == MAX_CHARACTERS + 2
