"""Settings of glibc's allocator: memory that a step frees stays in the process for the next step."""

from __future__ import annotations

import os
import platform
import sys

KEPT_BYTES = 8 * 2**30  # of freed memory that the heap holds on to: more than any step here needs
GROWTH_BYTES = 64 * 2**20  # by which the heap grows
# A heap for every few threads, glibc's default, held twice what was in use, and grew with every checkpoint; one takes
# no longer. Large arrays come from that heap (mmap_max=0), which keeps what is freed: otherwise every step maps them
# once more, and the kernel zeroes them again, 100,000 page faults a step.
TUNABLES = (
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
    f"glibc.malloc.trim_threshold={KEPT_BYTES}:glibc.malloc.top_pad={GROWTH_BYTES}"
)


def tune() -> None:
    """Re-executes this program with these glibc tunables; does nothing where there is no glibc.

    glibc reads its settings once, before Python runs, so the process replaces itself by the same command. Call it
    first thing in a program, never in a library. GLIBC_TUNABLES in the environment, whatever it says, is left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLES})
