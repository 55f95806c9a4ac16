"""Placement of arrays: batches are split over all devices of all processes, everything else is replicated."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mtl_jax.errors import UserError

TIMEOUT_SECONDS = 120  # for all processes to find each other


def join(coordinator: str = "", *, process_count: int = 0, process_id: int = -1) -> None:
    """Joins the other processes of a run, before anything else asks JAX for a device.

    Args:
        coordinator: host:port of process 0, where SLURM, Open MPI or a cloud does not provide it to JAX.
        process_count: of the run; needed with `coordinator`.
        process_id: of this process, 0 to process_count - 1; needed with `coordinator`.

    Raises:
        UserError: the processes do not find each other, or only some of the three are given.
    """
    are_given = (bool(coordinator), process_count > 0, process_id >= 0)
    if any(are_given) and not all(are_given):
        raise UserError(
            "expected --coordinator, --num_processes and --process_id together, or none, found some of them; give all"
        )
    arguments = {"coordinator_address": coordinator, "num_processes": process_count, "process_id": process_id}
    try:
        jax.distributed.initialize(**(arguments if coordinator else {}), initialization_timeout=TIMEOUT_SECONDS)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this run did not find each other ({reason}); outside SLURM and Open MPI, give "
            "--coordinator=host:port, --num_processes and --process_id"
        ) from error


def leave(status: int) -> None:
    """Ends this process after an error, without waiting for the others, which JAX ends when they miss it."""
    sys.stderr.flush()
    os._exit(status)


def is_primary() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return jax.process_index() == 0


def everywhere() -> NamedSharding:
    """Returns the sharding of what is the same on every device."""
    return _sharding(PartitionSpec())


def copy_everywhere(tree: PyTree) -> PyTree:
    """Replicates arrays that are equal in all processes to every device of the run."""
    if jax.process_count() == 1:
        return jax.device_put(jax.tree.map(_copy, tree), everywhere())
    return jax.jit(lambda tree: tree, out_shardings=everywhere())(tree)


def _copy(leaf: Any) -> jax.Array:
    """Copies without a program, of which every shape would need its own; a copy to more devices may share memory."""
    return jax.device_put(leaf, leaf.sharding if isinstance(leaf, jax.Array) else None, may_alias=False)


def share(batch_size: int) -> tuple[int, int]:
    """Returns which part of every batch of a stream this process prepares, and of how many.

    A batch that the devices cannot share equally is prepared whole by every process, and computed on every device.
    """
    return (jax.process_index(), jax.process_count()) if _divides(batch_size) else (0, 1)


def place(batch: Mapping[str, PyTree], batch_sizes: Mapping[str, int]) -> dict[str, PyTree]:
    """Puts this process's part of a batch on its devices.

    Args:
        batch: stream -> its arrays, examples on the first axis.
        batch_sizes: stream -> examples of the whole batch.

    Returns:
        The whole batch, split over all devices of all processes.
    """
    device_arrays = {}
    for stream, arrays in batch.items():
        sharding = _sharding(PartitionSpec("data")) if _divides(batch_sizes[stream]) else everywhere()
        if jax.process_count() == 1:
            device_arrays[stream] = jax.device_put(arrays, sharding)
        else:
            device_arrays[stream] = jax.tree.map(
                lambda array, sharding=sharding: jax.make_array_from_process_local_data(sharding, array), arrays
            )
    return device_arrays


def agreed(flag: bool) -> bool:
    """Returns what process 0 says, in every process; all of them must ask."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def _divides(batch_size: int) -> bool:
    return batch_size % jax.device_count() == 0


def _sharding(spec: PartitionSpec) -> Any:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, spec)


def peak_memory_mb() -> float | None:
    """Returns the most memory, in MB, that this process has held: of the first accelerator, or else of the machine.

    A resumed run reports the process that ended it. None if neither is available.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 1e6
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def give_back_memory() -> None:
    """Gives what was freed back to the machine: compilers, evaluations and checkpoints leave a lot behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries of C do so themselves
    if trim is not None:
        trim(0)


def memory_mb() -> float | None:
    """Returns how much of the machine's memory this process holds now, in MB; None if unavailable."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # not on macOS and Windows
        return None
