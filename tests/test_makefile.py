"""Every Python has an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(*arguments: str) -> str:
    """What make would run, started from a plain shell: under `make test`, MAKEFLAGS hands that one's PYTHON on."""
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "PYTHON")}
    process = subprocess.run(
        ["make", "--dry-run", "test", *arguments], cwd=ROOT, env=plain, check=True, capture_output=True, text=True
    )
    return process.stdout


def test_the_environment_of_a_chosen_python_stands_beside_the_usual_one():
    major, minor, *_ = sys.version_info
    assert f".venv-{major}.{minor}/bin/python -m pytest" in commands(f"PYTHON={sys.executable}")
    for arguments in ((), ("PYTHON=python3",)):
        assert " .venv/bin/python -m pytest" in " " + commands(*arguments).replace("\n", " ")


def test_git_ignores_both():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".venv/", ".venv-*/"} <= set(ignored)
