"""The program starts itself anew once, with its arguments and the allocator's settings, unless there are some."""

import os
import platform
import subprocess
import sys

import pytest

from mtl_jax.runtime import allocator

PROGRAM = """
import os, sys
from mtl_jax.runtime import allocator
print("start", flush=True)
allocator.tune()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def run(**environment):
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, "a b", "--c"]
    process = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True)
    return process.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_it_starts_anew_once_with_the_same_arguments():
    assert run() == ["start", "start", f"{allocator.TUNABLES} ['a b', '--c']"]


def test_it_leaves_the_user_s_own_setting_alone():
    custom = "glibc.malloc.check=0"
    assert run(GLIBC_TUNABLES=custom) == ["start", f"{custom} ['a b', '--c']"]
