"""The compiled CPU form of the depthwise convolution: builds depthwise_cpu.cc on first use and calls it from XLA."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from mtl_jax.models.depthwise_forms import Part, Window

SOURCE = Path(__file__).with_suffix(".cc")
LANES = 8  # channels per vector in the C++ source
BUILD_SECONDS = 120  # a build takes 3 to 6 s on a quiet core

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The user's folder for compiled kernels: $MTL_JAX_CACHE, else $XDG_CACHE_HOME/mtl_jax, else ~/.cache/mtl_jax."""
    if folder := os.environ.get("MTL_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl_jax"


def supports(window: Window, dtype: jnp.dtype) -> bool:
    """Whether a kernel of this geometry was compiled; float64 would lose digits in its float32 sums."""
    square = window.kernel_size in ((3, 3), (5, 5))
    return square and window.stride * window.dilation in (1, 2) and dtype != jnp.float64


@functools.cache
def available() -> bool:
    """Whether the kernel is loaded; the first call builds it, or logs in one line why that failed."""
    try:
        library = ctypes.CDLL(str(_build(cache_dir())))
        for part in ("forward", "input_gradient", "kernel_gradient"):
            jax.ffi.register_ffi_target(_target(part), jax.ffi.pycapsule(getattr(library, part)), platform="cpu")
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:300]
        log.warning("Depthwise convolution: no compiled CPU kernel (%s); the pure JAX form is used, slower", reason)
        return False
    return True


def run(part: Part, window: Window, first: Array, second: Array) -> Array:
    """Computes one of the three sums in float32, whatever the floating-point type of its inputs."""
    channels = first.shape[-1]
    pad = [(0, 0)] * 3 + [(0, -channels % LANES)]
    a, b = (jnp.pad(array.astype(jnp.float32), pad) for array in (first, second))
    if part == "input_gradient" and window.stride == 1:
        part, b = "forward", b[::-1, ::-1]  # the transposed sum of a symmetric window is a sum again
    result = _CALLS[part](window, a, b)[..., :channels]
    if part == "kernel_gradient":  # one for each example: sharded or mapped batches stay apart until here
        result = result.sum(axis=0)[:, :, None, :]
    return result.astype(first.dtype)


def _target(part: str) -> str:
    return f"mtl_jax_depthwise_{part}"


def _build(folder: Path) -> Path:
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        raise RuntimeError("found no g++, c++ or clang++")
    banner = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_SECONDS).stdout
    base = [compiler, "-std=c++17", "-O3", "-shared", "-fPIC", "-w", "-pthread", "-I", jax.ffi.include_dir()]
    # The instruction set is that of this machine, so the key holds the processor: homes are shared between machines.
    key = "\0".join([SOURCE.read_text(), banner, *base, version("jaxlib"), platform.machine(), _processor()])
    library = folder / f"depthwise-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library.name
        for flags in (["-march=native"], []):  # some compilers do not know -march=native on some processors
            command = [*base, *flags, str(SOURCE), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
            if done.returncode == 0:
                built.replace(library)  # atomic: another process sees the whole file or none
                return library
    raise RuntimeError(f"{compiler} failed: {done.stderr}")


def _processor() -> str:
    """Model and instruction sets of the processor; the model alone may hide what a virtual machine masks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))


def _result_shape(part: Part, window: Window, first: tuple[int, ...]) -> tuple[int, ...]:
    middle = {
        "forward": window.output_size,
        "input_gradient": window.size,
        "kernel_gradient": window.kernel_size,
    }
    return (first[0], *middle[part], first[-1])


def _plain_call(part: Part, window: Window, first: Array, second: Array) -> Array:
    result = jax.ShapeDtypeStruct(_result_shape(part, window, first.shape), jnp.float32)
    call = jax.ffi.ffi_call(_target(part), result)
    options = {"kernel_size": window.kernel_size[0], "stride": window.stride, "dilation": window.dilation}
    return call(first, second, **{name: np.int64(value) for name, value in options.items()})


def _partitioned_call(part: Part) -> Callable[[Window, Array, Array], Array]:
    """Tells XLA's partitioner that examples and channels are independent: sharded arrays stay where they are."""
    both_batched = part == "kernel_gradient"

    @functools.partial(custom_partitioning, static_argnums=(0,))
    def call(window: Window, first: Array, second: Array) -> Array:
        return _plain_call(part, window, first, second)

    def partition(window, mesh, operands, result):
        del result
        spec = operands[0].sharding.spec
        batch, *_, channels = (*spec, *[None] * (4 - len(spec)))
        data = NamedSharding(mesh, PartitionSpec(batch, None, None, channels))
        kernel = NamedSharding(mesh, PartitionSpec(None, None, None, channels))
        return mesh, functools.partial(_plain_call, part, window), data, (data, data if both_batched else kernel)

    call.def_partition(
        partition=partition,
        sharding_rule="n h w c, n i j c -> n k l c" if both_batched else "n h w c, k l m c -> n i j c",
        need_replication_factors=tuple("hwijkl" if both_batched else "hwklmij"),
    )
    return call


def _mapped_call(part: Part) -> Callable[[Window, Array, Array], Array]:
    """Folds a mapped axis into the batch, or loops over it where each element has its own kernel."""
    partitioned = _partitioned_call(part)

    def call(window: Window, first: Array, second: Array) -> Array:
        @jax.custom_batching.custom_vmap
        def one(first: Array, second: Array) -> Array:
            return partitioned(window, first, second)

        @one.def_vmap
        def mapped(size, batched, first, second):
            if part != "kernel_gradient" and batched[1]:
                elements = (first if batched[0] else jnp.broadcast_to(first[None], (size, *first.shape)), second)
                return jax.lax.map(lambda pair: one(*pair), elements), True
            folds = (True, part == "kernel_gradient")
            arrays = [
                (a if is_batched else jnp.broadcast_to(a[None], (size, *a.shape))).reshape(-1, *a.shape[-3:])
                if fold
                else a
                for a, is_batched, fold in zip((first, second), batched, folds, strict=True)
            ]
            result = one(*arrays)
            return result.reshape(size, -1, *result.shape[1:]), True

        return one(first, second)

    return call


_CALLS = {part: _mapped_call(part) for part in ("forward", "input_gradient", "kernel_gradient")}
