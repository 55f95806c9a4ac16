"""Memory for large arrays in huge pages: a training step on a CPU spends a quarter of its time on small ones."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"  # glibc 2.35 and newer ask the kernel for huge pages where it grants them on request
GRANTED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this program anew with glibc's huge pages on; does nothing where that changes nothing.

    glibc reads its settings once, before Python runs, so the process replaces itself by the same command. Call it
    first thing in a program, never in a library. GLIBC_TUNABLES in the environment, whatever it says, is left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not _granted_on_request():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLE})


def _granted_on_request() -> bool:
    try:
        return "[madvise]" in GRANTED.read_text()
    except OSError:
        return False
