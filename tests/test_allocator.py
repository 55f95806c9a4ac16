"""The program starts itself anew with huge pages once, with its arguments, and only where that helps."""

import os
import subprocess
import sys

import pytest

from mtl_jax import allocator

PROGRAM = """
import os, sys
from pathlib import Path
from mtl_jax import allocator
allocator.GRANTED = Path(sys.argv[1])
print("start", flush=True)
allocator.use_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:])
"""


def run(tmp_path, kernel, **environment):
    (tmp_path / "enabled").write_text(kernel)
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "enabled"), "a b", "--c"]
    done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_it_starts_anew_once_with_the_same_arguments(tmp_path):
    said = run(tmp_path, "always [madvise] never")
    assert said == ["start", "start", f"{allocator.TUNABLE} ['a b', '--c']"]


def test_it_leaves_other_kernels_and_the_user_s_own_setting_alone(tmp_path):
    assert run(tmp_path, "[always] madvise never") == ["start", "None ['a b', '--c']"]
    own = "glibc.malloc.check=0"
    assert run(tmp_path, "always [madvise] never", GLIBC_TUNABLES=own) == ["start", f"{own} ['a b', '--c']"]
