"""Compiled CPU kernels: built on first use from the C++ sources in this folder, and called from XLA."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from mtl_jax.kernels import kernel_build, user_cache

LANES = 8  # the kernels take channels in multiples of a vector
PREFIX = "mtl_jax_"  # of the names under which XLA knows the kernels
SOURCES = {
    "depthwise_kernels.cc": (
        "depthwise_forward",
        "depthwise_input_gradient",
        "depthwise_kernel_gradient",
        "depthwise_norm",
    ),
    "network_kernels.cc": (
        *("winograd_forward", "winograd_norm", "winograd_kernel_gradient", "pointwise_kernel_gradient"),
        *("norm_moments", "norm_apply", "norm_gradient_sums", "norm_input_gradient"),
        *("convolution_norm", "excitation", "enlarge", "enlarged_argmax", "detections"),
    ),
}

_left_out = contextvars.ContextVar("left_out", default=False)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Traces what is inside without the kernels: in XLA's own operations, which it can count."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def in_use() -> bool:
    """Whether what is traced now takes the kernels: a CPU computes it, and nobody has asked to leave them out."""
    return jax.default_backend() == "cpu" and not _left_out.get() and available()


def start_build() -> None:
    """Starts compilers for the kernels that are not built yet, where a CPU computes; `available` waits for them."""
    if jax.default_backend() == "cpu":
        with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):  # which `available` reports
            _build()


@functools.cache
def _build() -> kernel_build.Build:
    if os.environ.get("MTL_JAX_CPU_KERNELS") == "off":
        raise RuntimeError("MTL_JAX_CPU_KERNELS is off")
    return kernel_build.Build(SOURCES, user_cache.cache_dir())


@functools.cache
def available() -> bool:
    """Whether the kernels are loaded; the first call builds them, or logs in one line why that failed."""
    try:
        for library, targets in zip(_build().finish(), SOURCES.values(), strict=True):
            module = ctypes.CDLL(str(library))
            for target in targets:
                jax.ffi.register_ffi_target(PREFIX + target, jax.ffi.pycapsule(getattr(module, target)), platform="cpu")
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:300]
        log.warning("No compiled CPU kernels (%s); the pure JAX forms are used, slower", reason)
        return False
    return True


class Kernel(NamedTuple):
    """A compiled kernel: its target, the shape of one example's result, and its numeric attributes."""

    target: str
    result: tuple[int, ...]
    batched: tuple[bool, ...]  # for each operand: it has the examples as its first axis, as the result has
    options: tuple[tuple[str, int], ...] = ()


def call(kernel: Kernel, *operands: Array) -> Array:
    """Runs a kernel on float32 arrays; examples may be sharded over devices, and axes mapped.

    Args:
        kernel: what to run.
        *operands: the first has the examples as its first axis, the others as `kernel.batched` says.

    Returns:
        [examples, *kernel.result].
    """
    return _mappable(kernel)(*operands)


@functools.cache
def _mappable(kernel: Kernel) -> Callable[..., Array]:
    """The kernel as a function of its operands; a mapped axis joins the examples. The layers of a kind share one."""

    @jax.custom_batching.custom_vmap
    def run(*operands: Array) -> Array:
        return _partitioned(kernel.batched, tuple(x.ndim for x in operands), len(kernel.result))(kernel, *operands)

    @run.def_vmap
    def mapped(size, is_mapped, *operands):
        shared = [
            x
            for x, is_batched, is_moved in zip(operands, kernel.batched, is_mapped, strict=True)
            if is_moved and not is_batched
        ]
        full_operands = [
            x if is_moved else jnp.broadcast_to(x[None], (size, *x.shape))
            for x, is_moved in zip(operands, is_mapped, strict=True)
        ]
        if shared:  # what all examples share differs between the elements: a loop
            return jax.lax.map(lambda element: run(*element), tuple(full_operands)), True
        folded = [
            full.reshape(-1, *full.shape[2:]) if is_batched else x
            for x, full, is_batched in zip(operands, full_operands, kernel.batched, strict=True)
        ]
        result = run(*folded)
        return result.reshape(size, -1, *result.shape[1:]), True

    return run


def _call_kernel(kernel: Kernel, *operands: Array) -> Array:
    result = jax.ShapeDtypeStruct((operands[0].shape[0], *kernel.result), jnp.float32)
    options = {name: np.int64(value) for name, value in kernel.options}
    return jax.ffi.ffi_call(PREFIX + kernel.target, result)(*operands, **options)


@functools.cache
def _partitioned(batched: tuple[bool, ...], ranks: tuple[int, ...], result_rank: int) -> Callable[..., Array]:
    """Registers with XLA's partitioner that examples are independent, so that sharded ones are not moved."""

    @functools.partial(custom_partitioning, static_argnums=(0,))
    def call(kernel: Kernel, *operands: Array) -> Array:
        return _call_kernel(kernel, *operands)

    def partition(kernel, mesh, operands, result):
        del result
        examples = (*operands[0].sharding.spec, None)[0]
        split = NamedSharding(mesh, PartitionSpec(examples))
        replicated = NamedSharding(mesh, PartitionSpec())
        return (
            mesh,
            functools.partial(_call_kernel, kernel),
            split,
            tuple(split if is_batched else replicated for is_batched in batched),
        )

    axes = [
        ["n" if is_batched and axis == 0 else f"x{number}y{axis}" for axis in range(rank)]
        for number, (is_batched, rank) in enumerate(zip(batched, ranks, strict=True))
    ]
    result = ["n", *(f"r{axis}" for axis in range(result_rank))]
    call.def_partition(
        partition=partition,
        sharding_rule=f"{', '.join(' '.join(axis_names) for axis_names in axes)} -> {' '.join(result)}",
        need_replication_factors=tuple(axis for axis_names in (*axes, result) for axis in axis_names if axis != "n"),
    )
    return call
