"""Compiling steps: programs kept on disk for the next start, and what the compiler used given back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax.kernels import cpu_kernels, user_cache
from mtl_jax.runtime import devices, fingerprint, stored_programs

MAX_BYTES = 4 * 2**30  # the least recently used programs go first
MIN_COMPILE_SECONDS = 0.2  # what compiles faster is not worth a file

log = logging.getLogger(__name__)


def enable_cache(folder: Path | None = None) -> Path | None:
    """Turns JAX's persistent compilation cache on for this process.

    A lock guards the folder, so that runs may share it. JAX's own settings win: JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    Args:
        folder: of the programs; `user_cache.cache_dir()` / "xla-<processor>" where None: programs hold instructions
            of the machine that compiled them, and homes are shared between machines.

    Returns:
        The folder in use, or None where there is none or it cannot be written.
    """
    settings: Any = jax.config  # its fields are dynamic, and so untyped
    if not settings.jax_enable_compilation_cache:
        return None
    if cache_folder := settings.jax_compilation_cache_dir:
        return Path(cache_folder)
    processor = hashlib.sha256(user_cache.processor().encode()).hexdigest()[:8]
    folder = folder or user_cache.cache_dir() / f"xla-{processor}"
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


def ahead_of_time(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Compiles a function for these arguments, and gives the compiler's memory back before the first call.

    glibc keeps what the compiler freed; for a full-size training step that is several hundred MB, which the step's
    own memory would be added to. Where the compilation cache is on, the next process with an equal function finds the
    program without tracing it.

    Args:
        function: to compile.
        *arguments: of the kind that it will be called with; nothing is computed.
        **options: of `jax.jit`.

    Returns:
        The compiled function, for arguments of these shapes, types and places only.
    """
    place, used_devices = stored_programs.folder(), _devices(arguments)
    if place is None or len(used_devices) > 1:  # of what several share, JAX makes no file
        compiled = jax.jit(function, **options).lower(*arguments).compile()
    else:
        compiled = _stored(place, function, arguments, options, used_devices)
    devices.give_back_memory()
    return compiled


def _stored(
    place: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    used_devices: list[Any],
) -> Any:
    """The program from its file: found by the function, or else by what it is lowered to, or else made."""
    cpu_kernels.available()  # a program in a file may call them
    described = [_described(arguments), dict(options)]
    try:
        function_digest = fingerprint.of_function(function, *described)
    except fingerprint.UnreadableError as error:
        log.debug("The function is traced in each process: %s", error)
        function_digest = None
    if function_digest and (program := stored_programs.load(place, function_digest, used_devices)) is not None:
        return program
    lowered = jax.jit(function, **options).lower(*arguments)
    lowered_as = [lowered.as_text(), str(lowered.in_tree), str(lowered.out_tree)]
    program_digest = fingerprint.of_program(*lowered_as, *described)
    if (program := stored_programs.load(place, program_digest, used_devices)) is None:
        program = stored_programs.compiled(lowered)
        stored_programs.save(place, program_digest, program)
    if function_digest:
        stored_programs.link(place, function_digest, place / program_digest)
    return program


def _described(arguments: tuple[Any, ...]) -> list[Any]:
    """What a program knows of its arguments."""
    leaves, structure = jax.tree_util.tree_flatten(arguments)
    kinds = [
        (np.shape(leaf), str(jax.numpy.result_type(leaf)), getattr(leaf, "weak_type", False), _place(leaf))
        for leaf in leaves
    ]
    return [str(structure), kinds]


def _place(leaf: Any) -> Any:
    return (leaf.sharding, leaf.committed) if isinstance(leaf, jax.Array) else None


def _devices(arguments: tuple[Any, ...]) -> list[Any]:
    """The devices that a program for these arguments runs on."""
    committed = (
        leaf for leaf in jax.tree_util.tree_leaves(arguments) if isinstance(leaf, jax.Array) and leaf.committed
    )
    used = {device for leaf in committed for device in leaf.sharding.device_set}
    return sorted(used or jax.local_devices()[:1], key=lambda device: device.id)
