"""The user's folder for what is kept between runs, and the processor that compiled code in it is for."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path


def cache_dir() -> Path:
    """The user's folder for compiled code: $MTL_JAX_CACHE, else $XDG_CACHE_HOME/mtl_jax, else ~/.cache/mtl_jax."""
    if folder := os.environ.get("MTL_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl_jax"


@functools.cache
def processor() -> str:
    """Model and instruction sets of the processor; the model alone may hide what a virtual machine masks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
