"""A message is one printable line, whatever is in it."""

import io
import os
import sys

import pytest

from mtl_jax.errors import MAX_CHARACTERS, UserError, print_any_name


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


def test_a_file_name_that_is_no_text_is_printed_with_escapes(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    print_any_name()
    print(os.fsdecode(b"caf\xe9 \xc3\xa9.png"), flush=True)
    assert printed.getvalue().decode() == "caf\\udce9 é.png\n"
