"""Reads the tensors of a file that `torch.save` wrote, without PyTorch and without running its pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mtl_jax.models.backbones.tensor_pickle import Storage, View, follow

MAX_PICKLE_BYTES = 1 << 24  # of the description of the tensors; that of a published backbone has 60 kB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the format before PyTorch 1.6
LEGACY_PROTOCOL = 1001

Numbers = Callable[[Storage], np.ndarray]


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads the tensors of a file.

    Args:
        path: the file, of the zip format (PyTorch 1.6 and later) or the one before.

    Returns:
        {name: array}; the arrays are views, as the tensors were.

    Raises:
        ValueError: it is no such file, or holds something else than named tensors, or more than it has bytes for.
        zipfile.BadZipFile: it is damaged.
    """
    is_zip = zipfile.is_zipfile(path)
    described, numbers = _of_zip(path) if is_zip else _of_legacy(path.read_bytes())
    if not isinstance(described, dict):
        raise ValueError(f"a {type(described).__name__} where a table of tensors belongs")
    other_names = [str(name) for name, value in described.items() if not isinstance(value, View)]
    if other_names:
        raise ValueError(f"{other_names[0][:80]!r}, which is no tensor")
    return {str(name): _array(view, numbers) for name, view in described.items()}


def _of_zip(path: Path) -> tuple[Any, Numbers]:
    with zipfile.ZipFile(path) as archive:
        members = {PurePosixPath(name).parts[1:]: name for name in archive.namelist()}
        if ("data.pkl",) not in members:
            raise ValueError("an archive without data.pkl")
        if archive.getinfo(members["data.pkl",]).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"a description of more than {MAX_PICKLE_BYTES} bytes")
        described = follow(archive.read(members["data.pkl",]))[0]
        order = (
            archive.read(members["byteorder",]).decode("ascii", "replace") if ("byteorder",) in members else "little"
        )
        content = {key: archive.read(members[key]) for key in members if len(key) == 2 and key[0] == "data"}

    def numbers(storage: Storage) -> np.ndarray:
        if ("data", storage.key) not in content:
            raise ValueError(f"no numbers {storage.key!r} in the archive")
        return _numbers(content["data", storage.key], storage, order)

    return described, numbers


def _of_legacy(content: bytes) -> tuple[Any, Numbers]:
    """Four pickles (magic number, protocol, system, tensors), the storages' keys, and the numbers one after another."""
    stream = io.BytesIO(content)
    magic, protocol, system, described, keys = (_follow_next(stream) for _ in range(5))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ValueError("a file that torch.save did not write")
    views = [value for value in described.values() if isinstance(value, View)] if isinstance(described, dict) else []
    storages = {view.storage.key: view.storage for view in views}
    order = "little" if system.get("little_endian", True) else "big"
    arrays: dict[str, np.ndarray] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(str(key))
        if storage is None:
            raise ValueError(f"numbers {str(key)[:80]!r} of no tensor")
        stream.read(8)  # how many there are, which the tensors say too
        size = storage.count * np.dtype(storage.dtype).itemsize
        arrays[storage.key] = _numbers(stream.read(size), storage, order)

    def numbers(storage: Storage) -> np.ndarray:
        if storage.key not in arrays:
            raise ValueError(f"no numbers {storage.key[:80]!r} in the file")
        return arrays[storage.key]

    return described, numbers


def _follow_next(stream: io.BytesIO) -> Any:
    """Follows the next of several pickles."""
    start = stream.tell()
    payload = stream.read(MAX_PICKLE_BYTES)
    value, length = follow(payload)
    stream.seek(start + length)
    return value


def _numbers(content: bytes, storage: Storage, order: str) -> np.ndarray:
    dtype = np.dtype(storage.dtype).newbyteorder(">" if order == "big" else "<")
    if len(content) < storage.count * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes where {storage.count} numbers of {dtype.itemsize} bytes belong")
    return np.frombuffer(content, dtype, storage.count).astype(storage.dtype, copy=False)


def _array(view: View, numbers: Numbers) -> np.ndarray:
    if 0 in view.shape:
        return np.zeros(view.shape, view.storage.dtype)
    flat_array = numbers(view.storage)
    last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
    if last >= len(flat_array):
        raise ValueError(f"a tensor of shape {view.shape} in {len(flat_array)} numbers")
    steps = tuple(stride * flat_array.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(flat_array[view.offset :], view.shape, steps, writeable=False)
