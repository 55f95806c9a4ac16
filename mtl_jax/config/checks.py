"""Checks that settings of all sections share: types, names, choices, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from mtl_jax.errors import UserError

MAX_NUMBER = 1e9  # of a setting that does not take infinity
MAX_NAME = 64  # characters; names become parts of file names, of which every system takes 255
# Names become folders, parameter paths, flags and columns, and all of those take these characters on every system.
NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, which True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


# By the beginning of an annotation: whether a value is of that kind, and what the kind is called.
ACCEPTED_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda value: value is None, "None"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (_is_whole, "a whole number"),
    "float": (is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "text"),
    "tuple": (_is_sequence, "several values"),
    "Sequence": (_is_sequence, "several values"),
    "Mapping": (lambda value: hasattr(value, "items"), "a table of settings"),
}


def check_arguments(
    location: str, arguments: Any, factory: Callable[..., Any], *, reserved: Iterable[str] = ()
) -> None:
    """Checks keyword arguments by the function that takes them: their names, types, and that none is missing.

    Args:
        location: the arguments' place, for the error.
        arguments: name -> value.
        factory: that takes them.
        reserved: parameters that are not the table's to give.

    Raises:
        UserError: an unknown or missing argument, a value of another type, or that is not a number where one belongs;
            or a list of class names in which one is missing or stands twice.
    """
    parameters = {
        name: signature_parameter
        for name, signature_parameter in inspect.signature(factory).parameters.items()
        if name not in reserved
    }
    for name in arguments:
        if name not in parameters:
            raise UserError(f"{location} has no setting {name}; {suggestion(str(name), parameters)}")
    for name, parameter in parameters.items():
        if name == "classes" and arguments.get(name) is not None:
            names: Any = arguments[name]
            for label, signature_parameter in names.items() if hasattr(names, "items") else [("", names)]:
                check_class_names(
                    f"{location}.classes.{label}" if label else f"{location}.classes", signature_parameter
                )
        elif name in arguments:
            _check_argument(f"{location}.{name}", arguments[name], parameter)
        elif parameter.default is inspect.Parameter.empty:
            raise UserError(f"{location}.{name}: expected {_described(parameter)}, found none")


def _check_argument(location: str, value: Any, parameter: inspect.Parameter) -> None:
    kinds = [kind.partition("[")[0] for kind in str(parameter.annotation).split(" | ")]
    if all(kind in ACCEPTED_TYPES for kind in kinds) and not any(ACCEPTED_TYPES[kind][0](value) for kind in kinds):
        raise UserError(f"{location}: expected {_described(parameter)}, found {value!r}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{location}: expected a number, found nan")


def _described(parameter: inspect.Parameter) -> str:
    kinds = [kind.partition("[")[0] for kind in str(parameter.annotation).split(" | ")]
    default = parameter.default
    example = f", such as {default!r}" if default not in (inspect.Parameter.empty, None, ()) else ""
    return " or ".join(dict.fromkeys(ACCEPTED_TYPES[kind][1] for kind in kinds if kind in ACCEPTED_TYPES)) + example


def check_class_names(location: str, names: Any) -> None:
    """Checks that names of classes are distinct texts.

    Args:
        location: they are, for the error.
        names: of the classes, in their order.

    Raises:
        UserError: there is none; or one is no text, is empty or stands twice.
    """
    if not _is_sequence(names):
        raise UserError(f"{location}: expected a list of names, such as ('cat', 'dog'), found {names!r}")
    if not names:
        raise UserError(f"{location}: expected names of classes, such as ('cat', 'dog'), found none")
    unnamed = [name for name in names if not isinstance(name, str) or not name.strip()]
    if unnamed:
        raise UserError(f"{location}: expected names, in letters or digits, found {unnamed[0]!r}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{location}: expected each class once, found {', '.join(map(repr, repeated))} more than once")


def check_names(location: str, table: Any) -> None:
    """Checks that the names of a table's sections can be parts of files, flags and parameter paths.

    Raises:
        UserError: one cannot, or what it names is no table.
    """
    for name, section in table.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f"{location}: expected names of 1 to {MAX_NAME} of the letters A to Z and a to z, digits, _ and -, not "
                f"beginning with -, as they become parts of files, found {str(name)[: 2 * MAX_NAME]!r}"
            )
        if not hasattr(section, "items"):
            raise UserError(f"{location}.{name}: expected a table of settings, found {section!r}")


def near(name: str, choices: Iterable[str]) -> list[str]:
    """Returns the known names that are most like a wrong one."""
    choices = list(choices)
    return (
        difflib.get_close_matches(name, choices, n=3)
        or [choice for choice in choices if name and choice.startswith(name)][:3]
    )


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Returns "did you mean …?" where a known name is near, or else all known names."""
    choices = list(choices)
    matches = near(name, choices)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"expected one of {', '.join(choices)}" if choices else "expected none"


def require_choice(location: str, value: Any, choices: Iterable[Any]) -> None:
    """Checks that a value is one of some choices.

    Raises:
        UserError: it is none, with the choices and the nearest of them.
    """
    allowed_values = list(choices)
    if not any(
        value == allowed_value and isinstance(value, bool) == isinstance(allowed_value, bool)
        for allowed_value in allowed_values
    ):
        matches = near(str(value), map(str, allowed_values))
        hint = f"; did you mean {' or '.join(matches)}?" if matches else ""
        raise UserError(f"{location}: expected one of {', '.join(map(str, allowed_values))}, found {value!r}{hint}")


def require_names(location: str, names: Iterable[Any], table: str, choices: Iterable[str]) -> None:
    """Checks that all names are those of a table.

    Raises:
        UserError: some are not, with the table's and the nearest of them.
    """
    choices = list(choices)
    unknown = [str(name) for name in names if name not in choices]
    if unknown:
        matches = near(unknown[0], choices)
        hint = f"; did you mean {' or '.join(matches)}?" if matches else ""
        raise UserError(
            f"{location}: expected names of {table} ({', '.join(choices) or 'none'}), found {', '.join(unknown)}{hint}"
        )
