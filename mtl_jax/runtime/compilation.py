"""Compiling steps: programs kept on disk for the next start, and what the compiler used given back."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax

from mtl_jax.kernels import cpu_kernels
from mtl_jax.runtime import devices

MAX_BYTES = 4 * 2**30  # the least recently used programs go first
MIN_COMPILE_SECONDS = 0.2  # what compiles faster is not worth a file

log = logging.getLogger(__name__)


def enable_cache(folder: Path | None = None) -> Path | None:
    """Turns JAX's persistent compilation cache on for this process.

    A lock guards the folder, so that runs may share it. JAX's own settings win: JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    Args:
        folder: of the programs; `cpu_kernels.cache_dir()` / "xla-<processor>" where None: programs hold instructions
            of the machine that compiled them, and homes are shared between machines.

    Returns:
        The folder in use, or None where there is none or it cannot be written.
    """
    settings: Any = jax.config  # its fields are dynamic, and so untyped
    if not settings.jax_enable_compilation_cache:
        return None
    if cache_folder := settings.jax_compilation_cache_dir:
        return Path(cache_folder)
    processor = hashlib.sha256(cpu_kernels.processor().encode()).hexdigest()[:8]
    folder = folder or cpu_kernels.cache_dir() / f"xla-{processor}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        log.warning("No compilation cache in %s (%s): every start compiles again", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def ahead_of_time(function: Any, *arguments: Any) -> Any:
    """Compiles a jitted function for these arguments, and gives the compiler's memory back before the first call.

    glibc keeps what the compiler freed; for a full-size training step that is several hundred MB, which the step's
    own memory would be added to.

    Args:
        function: made by `jax.jit`.
        *arguments: of the kind that it will be called with; nothing is computed.

    Returns:
        The compiled function, for arguments of these shapes, types and places only.
    """
    compiled = function.lower(*arguments).compile()
    devices.give_back_memory()
    return compiled
