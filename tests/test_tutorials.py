"""The tutorials run as they stand: every block of Python and every command, in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from mtl_jax import balance, cli, continual, tasks

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with nothing but the project's pages; tables that a tutorial adds to are restored."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for table in (balance.METHODS, continual.METHODS, tasks.KINDS):
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])
    reference = [dict(table) for table in (balance.METHODS, continual.METHODS, tasks.KINDS)]
    yield tmp_path
    for table, before in zip((balance.METHODS, continual.METHODS, tasks.KINDS), reference, strict=True):
        for name in set(table) - set(before):
            del table[name]


def run(command: str) -> int:
    program, *arguments = shlex.split(command)
    assert program == "mtl-jax"
    return cli.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page, folder):
    names = {"__name__": "tutorial"}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
        else:
            assert all(run(command) == 0 for command in block.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_has_nothing_that_is_not_run(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(), flags=re.MULTILINE)
    assert set(fences) <= {"python", "sh", ""}
    assert len(BLOCK.findall(page.read_text())) == len(fences) / 2 > 0
