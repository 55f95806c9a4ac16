"""Reads the tensors of a file that `torch.save` wrote, without PyTorch and without running its pickle.

The pickle is a program for a stack machine. Here the few of its steps that describe tensors are followed, and nothing
is ever looked up or called by the name that a file gives.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

MAX_PICKLE_BYTES = 1 << 24  # of the description of the tensors; that of a published backbone has 60 kB
MAX_STEPS = 1 << 20  # of it
MAX_AXES = 32  # numpy's limit
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the format before PyTorch 1.6
LEGACY_PROTOCOL = 1001
# Bytes of a storage by PyTorch's name of it, as numpy calls them.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
VALUES = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
# Steps that put their argument on the stack.
LITERALS = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
)
PUTS, GETS = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Storage(NamedTuple):
    """The numbers that tensors look at."""

    key: str  # of the file's member that holds them
    dtype: str  # as numpy calls it, without the order of bytes
    count: int


class View(NamedTuple):
    """A tensor: which of a storage's numbers, and how they lie."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers


class _Name(NamedTuple):
    """Name that a file would have imported."""

    dotted: str


class _Mark:
    """Start of the elements of a list, a tuple or a table on the stack."""


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


Numbers = Callable[[Storage], np.ndarray]


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


def follow(content: bytes) -> tuple[Any, int]:
    """Follows a pickle that describes tensors, tables, lists, tuples, numbers and texts.

    Args:
        content: the pickle, and whatever follows it.

    Returns:
        What it describes, tensors as `View`; and how many bytes it has.

    Raises:
        ValueError: it has another step, or a step that does not fit what is there.
    """
    machine = _Machine()
    for number, (step, argument, position) in enumerate(pickletools.genops(content)):
        if number > MAX_STEPS:
            raise ValueError(f"a description of more than {MAX_STEPS} steps")
        if step.name == "STOP":
            return machine.pop(), (position or 0) + 1
        machine.take(step.name, argument)
    raise ValueError("a description without end")


class _Machine:
    """The stack, and what was put aside to be used again."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._aside: dict[int, Any] = {}

    def take(self, step: str, argument: Any) -> None:
        """Takes one step."""
        if step in LITERALS:
            self._stack.append(argument)
        elif step in VALUES:
            self._stack.append(VALUES[step])
        elif step in PUTS or step == "MEMOIZE":
            self._aside[len(self._aside) if step == "MEMOIZE" else int(argument)] = self._top()
        elif step in GETS:
            if int(argument) not in self._aside:
                raise ValueError(f"a step {step} to nothing")
            self._stack.append(self._aside[int(argument)])
        elif step in TUPLES:
            items = [self.pop() for _ in range(TUPLES[step])]
            self._stack.append(tuple(reversed(items)))
        elif step in STEPS:
            STEPS[step](self, argument)
        elif step not in ("PROTO", "FRAME"):
            raise ValueError(f"a step {step}, which describes no tensor")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return value

    def since_mark(self) -> list[Any]:
        """Takes all that lies above the last mark, and the mark."""
        items: list[Any] = []
        while not isinstance(item := self.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def fill(self, items: list[Any]) -> None:
        """Puts parts into the list or, in pairs, into the table on top of the stack."""
        container = self._top()
        if isinstance(container, list):
            container.extend(items)
        elif isinstance(container, dict) and len(items) % 2 == 0:
            names = items[::2]
            if not all(isinstance(name, str | int) for name in names):
                raise ValueError("a table by other things than names")
            container.update(zip(names, items[1::2], strict=True))
        else:
            raise ValueError(f"parts of a {type(container).__name__}")

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("a step that finds nothing")
        return self._stack[-1]


def _call(machine: _Machine, argument: Any) -> None:
    del argument
    arguments, name = machine.pop(), machine.pop()
    if not isinstance(name, _Name) or name.dotted not in MAKERS or not isinstance(arguments, tuple):
        raise ValueError(f"a call of {getattr(name, 'dotted', type(name).__name__)[:80]}, which makes no tensor")
    machine.push(MAKERS[name.dotted](*arguments))


def _refer(machine: _Machine, argument: Any) -> None:
    del argument
    match machine.pop():
        case ("storage", _Name(dotted), str(key), _, int(count), *_) if count >= 0:
            kind = dotted.removeprefix("torch ")
            if kind not in STORAGES:
                raise ValueError(f"a tensor of {dotted[:80]}, and none of {', '.join(STORAGES)}")
            machine.push(Storage(key, STORAGES[kind], count))
        case _:
            raise ValueError("a reference to something else than a tensor's numbers")


def _name(machine: _Machine, argument: Any) -> None:
    if argument is None:  # both parts lie on the stack
        last, first = machine.pop(), machine.pop()
        argument = f"{first} {last}"
    machine.push(_Name(str(argument)))


def _describe(machine: _Machine, argument: Any) -> None:
    """Drops what belongs to an ordered table besides its entries, such as the versions of layers."""
    del argument
    machine.pop()


STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.push(_Mark()),
    "POP": lambda machine, _: machine.pop(),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "APPEND": lambda machine, _: machine.fill([machine.pop()]),
    "APPENDS": lambda machine, _: machine.fill(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.fill([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.fill(machine.since_mark()),
    "GLOBAL": _name,
    "STACK_GLOBAL": _name,
    "REDUCE": _call,
    "BUILD": _describe,
    "BINPERSID": _refer,
}


def _view(*arguments: Any) -> View:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if (
            len(shape) == len(strides) <= MAX_AXES
            and offset >= 0
            and all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, *strides))
        ):
            return View(storage, offset, shape, strides)
    raise ValueError("a tensor that is not described by numbers, offset, shape and strides")


def _parameter(*arguments: Any) -> View:
    if not arguments or not isinstance(arguments[0], View):
        raise ValueError("a parameter that is no tensor")
    return arguments[0]


def _table(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an ordered table with contents of its own")
    return {}


# What stands for the few calls that a state dict needs.
MAKERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _view,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _table,
}
