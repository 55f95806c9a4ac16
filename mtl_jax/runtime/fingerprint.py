"""Digests of functions by all that they compute with: their code, what they close over, and the package's own state.

A program compiled for a function may be used for another one of the same digest without tracing it. So a digest leaves
nothing out: what it cannot read makes it fail, and then the function is traced.
"""

from __future__ import annotations

import contextvars
import dataclasses
import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from mtl_jax.kernels import user_cache

PACKAGE = __name__.partition(".")[0]
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes", "ml_collections")  # that steps are made with
SOURCE_SUFFIXES = (".py", ".cc", ".h")
# Where Python's own modules and installed packages lie; their versions stand for their contents.
_LIBRARY_FOLDERS = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_MADE_AT_RUN_TIME = 1 << 9  # Py_TPFLAGS_HEAPTYPE of a class's flags: set by Python's classes, and by some in C
# Variables that say where files lie, not what is computed.
_PLACES = ("MTL_JAX_CACHE", "MTL_JAX_DATA", "MTL_JAX_WEIGHTS_URL")


class UnreadableError(Exception):
    """Something whose contents a digest cannot hold, such as an open file."""


def of_function(function: Callable[..., Any], *values: Any) -> str:
    """Returns a digest that is equal in every process where a function computes the same.

    Args:
        function: and all that it closes over: numbers, texts, arrays, containers, dataclasses, modules of a network,
            other functions.
        *values: that are digested with it, such as shapes of its arguments.

    Raises:
        UnreadableError: something that it closes over holds something else, or comes from a module without a file.
    """
    reader = _Reader()
    for value in (function, *values, _surroundings(), _package_sources(), *_package_state()):
        reader.read(value)
    for file in sorted(_foreign_sources() if reader.foreign else ()):
        reader.note("source", _digest_of_file(file))
    return reader.digest.hexdigest()


def of_program(*values: Any) -> str:
    """Returns a digest of what is compiled, such as the text of a program, and of what compiles it.

    Raises:
        UnreadableError: as of `of_function`.
    """
    reader = _Reader()
    for value in (*values, _surroundings()):
        reader.read(value)
    return reader.digest.hexdigest()


def _surroundings() -> dict[str, Any]:
    """What compiles programs, and its settings."""
    return {
        "versions": [(name, _version(name)) for name in LIBRARIES],
        "python": sys.version,
        "processor": user_cache.processor(),
        "devices": [(device.id, device.platform, device.device_kind) for device in jax.devices()],
        "environment": sorted(
            (name, value)
            for name, value in os.environ.items()
            if name.startswith(("MTL_JAX_", "XLA_")) and name not in _PLACES
        ),
        "jax": [
            (name, repr(getattr(jax.config, name, None))) for name in sorted(jax.config.values) if "cache" not in name
        ],
    }


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # on a machine with what a step needs and no more
        return ""


@functools.cache
def _package_sources() -> str:
    digest, folder = hashlib.sha256(), Path(__file__).parent.parent
    for file in sorted(folder.rglob("*")):
        if file.suffix in SOURCE_SUFFIXES:
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _package_state() -> Iterator[tuple[str, Any]]:
    """Names of the package's modules and classes whose values are other than their sources say, or may be."""
    for module_name, module in sorted(sys.modules.items()):
        if module_name.partition(".")[0] == PACKAGE:
            for name, value in sorted(vars(module).items()):
                if not name.startswith("__"):
                    yield from _states(f"{module_name}.{name}", value, module_name)


def _states(name: str, value: Any, module_name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.GenericAlias) or type(value).__module__.partition(".")[0] in ("typing", "jaxtyping"):
        return  # names of types
    if isinstance(value, types.ModuleType):
        return  # which has its own turn, also where it can be called
    if isinstance(value, contextvars.ContextVar):
        yield name, value.get(None)
    elif isinstance(value, (*_PLAIN, np.ndarray)) or _is_plain_set(value):
        yield name, value
    elif isinstance(value, (types.FunctionType, type)) or hasattr(value, "__wrapped__"):
        if not _is_known(value) or value.__name__ != name.rpartition(".")[2]:
            yield name, value
        elif isinstance(value, type) and value.__module__ == module_name:
            for attribute, own in sorted(vars(value).items()):
                is_changed = isinstance(own, types.FunctionType) and not _is_known(own)
                if is_changed or (isinstance(own, _PLAIN) and not attribute.startswith("__")):
                    yield f"{name}.{attribute}", own
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if isinstance(key, str) and (isinstance(entry, _PLAIN) or callable(entry)):
                yield f"{name}[{key}]", entry
    elif callable(value):
        yield name, value


def _is_plain_set(value: Any) -> bool:
    return isinstance(value, (tuple, frozenset)) and all(isinstance(part, _PLAIN) for part in value)


def _is_known(value: Any) -> bool:
    """Whether a function or class is the package's own, or a library's."""
    name = getattr(value, "__module__", None) or ""
    return name.partition(".")[0] == PACKAGE or _is_library(name)


@functools.cache
def _is_library(module_name: str) -> bool:
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None:
        return module_name in sys.builtin_module_names
    return file.startswith(_LIBRARY_FOLDERS)


@functools.cache
def _digest_of_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _foreign_sources() -> set[Path]:
    """Files of all loaded modules that are neither the package's nor a library's: users' own parts, and their parts."""
    names = [name for name in list(sys.modules) if name.partition(".")[0] != PACKAGE and not _is_library(name)]
    files = [Path(file) for name in names if (file := getattr(sys.modules[name], "__file__", None))]
    return {file for file in files if file.is_file()}


class _Reader:
    """Writes values into a digest, each once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.foreign = False  # whether something is of a module that is neither the package's nor a library's
        self._seen: dict[int, tuple[int, Any]] = {}  # id -> its number, and the value, so that its id stays its own

    def note(self, tag: str, content: bytes | str = b"") -> None:
        content = content.encode() if isinstance(content, str) else content
        self.digest.update(f"{tag}:{len(content)}:".encode() + content)

    def read(self, value: Any) -> None:
        """Writes a value, and all that it holds."""
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            self.note(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self.note("again", str(self._seen[id(value)][0]))
            return
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self._array(value)
        elif isinstance(value, jax.sharding.Sharding):
            self.note("sharding", f"{value!r} {sorted(device.id for device in value.device_set)} {value.memory_kind}")
        elif isinstance(value, (np.dtype, slice, range)):
            self.note(type(value).__name__, repr(value))
        elif isinstance(value, Mapping):
            self._all(value, "mapping", (part for item in value.items() for part in item))
        elif isinstance(value, (tuple, list)):
            self._all(value, type(value).__name__, value)
        elif isinstance(value, (set, frozenset)):
            self._all(value, "set", sorted(value, key=repr))
        elif isinstance(value, (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
            self._callable(value)
        elif isinstance(value, functools.partial):
            self._all(value, "partial", (value.func, value.args, value.keywords))
        elif hasattr(value, "__wrapped__"):
            self._all(value, f"wrapper {type(value).__qualname__}", (value.__wrapped__,))
        else:
            self._object(value)

    def _all(self, value: Any, tag: str, parts: Any) -> None:
        self.note(tag)
        if type(value).__module__ != "builtins":
            self.read(type(value))
        for part in parts:
            self.read(part)
        self.note("end")

    def _array(self, value: Any) -> None:
        if isinstance(value, Tracer):
            raise UnreadableError("a value that is being traced")
        if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.note("key", str(value.dtype))
            value = jax.random.key_data(value)
        contents = np.asarray(value)
        if contents.dtype.hasobject:
            raise UnreadableError("an array of objects")
        self.note("array", f"{contents.dtype} {contents.shape} {type(value).__name__}")
        self.note("values", contents.tobytes())

    def _callable(self, value: Any) -> None:
        module = value.__module__ or ""
        self.note("name", f"{module}.{value.__qualname__}")
        if isinstance(value, types.MethodType):
            self.read(value.__func__)
            self.read(value.__self__)
            return
        if not _is_known(value):
            if not getattr(sys.modules.get(module), "__file__", None):
                raise UnreadableError(f"{module}.{value.__qualname__} is of no file")
            self.foreign = True
        if isinstance(value, types.FunctionType):
            if hasattr(value, "__wrapped__") and value.__code__.co_filename.startswith(_LIBRARY_FOLDERS):
                self.read(vars(value)["__wrapped__"])  # what checks shapes, counts calls and the like
                return
            self._code(value.__code__)
            self.read(value.__defaults__)
            self.read(value.__kwdefaults__)
            for cell in value.__closure__ or ():
                try:
                    contents = cell.cell_contents
                except ValueError:  # assigned later
                    contents = "empty"
                self.read(contents)

    def _code(self, code: types.CodeType) -> None:
        self.note("code", code.co_code)
        self.note("names", repr((code.co_names, code.co_freevars)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.read(constant)

    def _object(self, value: Any) -> None:
        if isinstance(value, enum.Enum):
            self._all(value, "enum", (value.name,))
        elif dataclasses.is_dataclass(value):
            fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
            self._all(value, "dataclass", (part for item in fields for part in item))
        elif _is_plain_class(type(value)) and hasattr(value, "__dict__"):
            self._all(value, "object", (part for item in sorted(vars(value).items()) for part in item))
        else:
            raise UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")


def _is_plain_class(kind: type) -> bool:
    """Whether a class is written in Python, so that all that its objects hold is in their attributes."""
    return kind is not object and all(
        base is object or (_is_written_in_python(base) and not vars(base).get("__slots__")) for base in kind.__mro__
    )


def _is_written_in_python(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return bool(kind.__flags__ & _MADE_AT_RUN_TIME and file and file.endswith(".py"))
