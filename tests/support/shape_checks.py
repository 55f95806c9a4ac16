"""Checks of shapes at run time, of those functions alone whose annotations name some.

A check costs as much as a small operation, and most functions that are called while a network is traced name none.
"""

import re
import types
from typing import Any

import jaxtyping

WITHOUT_SHAPES = {"Array", "ArrayLike", "PyTree"}

_check_all = jaxtyping.jaxtyped


def install() -> None:
    """Checks the package's functions from their import on."""
    jaxtyping.jaxtyped = check
    jaxtyping.install_import_hook("mtl_jax", "beartype.beartype")


def check(function: Any = None, *, typechecker: Any) -> Any:
    """As `jaxtyping.jaxtyped`, which the import hook puts before each function and class."""
    if function is None:
        return lambda function: check(function, typechecker=typechecker)
    if isinstance(function, types.FunctionType) and not names_shapes(function):
        return function
    return _check_all(function, typechecker=typechecker)


def names_shapes(function: types.FunctionType) -> bool:
    """Whether an annotation is of jaxtyping, or of a name that stands for such a one."""
    text = " ".join(str(annotation) for annotation in function.__annotations__.values())
    values = (function.__globals__.get(word) for word in set(re.findall(r"[A-Za-z_]\w*", text)) - WITHOUT_SHAPES)
    return any("jaxtyping" in f"{getattr(value, '__module__', '')} {value!r}" for value in values)
