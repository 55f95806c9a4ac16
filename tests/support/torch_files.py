"""Writes files as `torch.save` does, without PyTorch: for tests of what reads them."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "i4": "IntStorage"}
STORAGES |= {"i2": "ShortStorage", "i1": "CharStorage", "u1": "ByteStorage", "b1": "BoolStorage"}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Tensor:
    """An array whose pickle is that of a tensor."""

    def __init__(self, array: np.ndarray, *, offset: int = 0, shape: Any = None, strides: Any = None) -> None:
        self.array, self.offset = np.asarray(array), offset
        self.shape = self.array.shape if shape is None else shape
        contiguous = [int(np.prod(self.array.shape[axis + 1 :])) for axis in range(self.array.ndim)]
        self.strides = tuple(contiguous) if strides is None else strides
        self.key = ""

    def __reduce__(self) -> Any:
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (_Storage(self), self.offset, self.shape, self.strides, False, collections.OrderedDict())


class _Storage:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        array = obj.tensor.array
        kind = getattr(sys.modules["torch"], STORAGES[array.dtype.str[1:]])
        return ("storage", kind, obj.tensor.key, "cpu", array.size)


def described(tree: Any, *, protocol: int = 2) -> bytes:
    """Returns the pickle of a tree with `Tensor`s."""
    stream = io.BytesIO()
    with _torch():
        _Pickler(stream, protocol).dump(tree)
    return stream.getvalue()


def save(path: Path, tensors: Mapping[Any, Tensor], *, protocol: int = 2, order: str = "little") -> Path:
    """Writes tensors in the zip format."""
    arrays = _numbered(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", described(tensors, protocol=protocol))
        archive.writestr("weights/byteorder", order)
        archive.writestr("weights/version", "3\n")
        for key, array in arrays.items():
            archive.writestr(f"weights/data/{key}", _bytes(array, order))
    return path


def save_legacy(path: Path, tensors: Mapping[Any, Tensor]) -> Path:
    """Writes tensors in the format before PyTorch 1.6."""
    arrays = _numbered(tensors)
    with path.open("wb") as file:
        for plain in (MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}):
            file.write(pickle.dumps(plain, 2))
        file.write(described(tensors))
        file.write(pickle.dumps(list(arrays), 2))
        for array in arrays.values():
            file.write(struct.pack("<q", array.size) + _bytes(array, "little"))
    return path


def _bytes(array: np.ndarray, order: str) -> bytes:
    return array.astype(array.dtype.newbyteorder(">" if order == "big" else "<")).tobytes()


def _numbered(tensors: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for tensor in tensors.values():
        if isinstance(tensor, Tensor):
            tensor.key = tensor.key or str(len(arrays))
            arrays[tensor.key] = tensor.array
    return arrays


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    """Puts modules in PyTorch's place, whose names a pickle then holds."""
    package, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(package, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*args: Any) -> None:
        raise AssertionError("nothing of a pickle is called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    package._utils = utils
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": package, "torch._utils": utils})
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
