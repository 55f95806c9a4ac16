"""Follows a pickle that describes tensors: a program for a stack machine, of which no step runs foreign code.

The few steps that describe tensors are followed, and nothing is ever looked up or called by the name that a file gives.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_STEPS = 1 << 20  # of a description
MAX_AXES = 32  # numpy's limit
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
