"""Settings given on a command line: "--config.stages.det.epochs=50", read by the type of what the page holds."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtl_jax import config as config_lib
from mtl_jax.config import former, legacy
from mtl_jax.config.checks import suggestion
from mtl_jax.errors import UserError

PREFIX = "--config."
PAGE = "--config"
FREEZE = "freeze"  # takes a table, or names alone
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Tables that take names which the page leaves out, and what one of their values looks like; None takes any.
OPEN = {
    ("tasks", "*"): None,
    ("streams", "*", "options"): None,
    ("streams", "*", "val_options"): None,
    ("streams", "*", "labelled_classes"): None,
    ("streams", "*", "labels"): "",
    ("streams", "*", "augment"): None,
    ("stages", "*", "balance_options"): None,
    ("stages", "*", "rates"): 0.0,
    ("stages", "*", "loss_weights"): 0.0,
    ("stages", "*", "freeze"): None,
    ("stages", "*", "keep"): {},
    ("stages", "*", "keep", "*"): None,
    ("stages", "*", "keep", "*", "*"): 0.0,
    ("contract", "baseline_from"): "",
    ("model", "branches"): {},
    ("model", "branches", "*"): None,
}


class Override(NamedTuple):
    """One setting as it was written."""

    path: tuple[str, ...]
    text: str | None  # None: a name without a value, which is True

    def __str__(self) -> str:
        return PREFIX + ".".join(self.path) + ("" if self.text is None else f"={self.text}")


def split(arguments: Sequence[str]) -> tuple[str, list[Override], list[str]]:
    """Takes the page and the settings out of a command line.

    Args:
        arguments: without the program's name.

    Returns:
        The page as it was given ("" where there is none), the settings in their order, and what is left.
    """
    page, overrides, remaining = "", [], []
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        name = f"-{name}" if name.startswith("-config") else name
        if name == PAGE or name.startswith(PREFIX):
            setting = value if equals else words.pop(0) if words and not words[0].startswith("--") else None
            if name == PAGE:
                page = setting or ""
            else:
                overrides.append(Override(tuple(name.removeprefix(PREFIX).split(".")), setting))
        elif name.startswith(f"--no{PREFIX[2:]}"):
            overrides.append(Override(tuple(name.removeprefix(f"--no{PREFIX[2:]}").split(".")), "false"))
        else:
            remaining.append(name + equals + value)
    return page, overrides, remaining


def load(page: str, overrides: Sequence[Override]) -> Any:
    """Returns the configuration of a page with some settings changed.

    Args:
        page: "configs/seq.py", or with an argument of its `get_config` "configs/seq.py:small".
        overrides: from `split`.

    Raises:
        UserError: the page cannot be read, a setting is unknown, or a value has another type.
    """
    path, colon, argument = page.partition(":")
    module = config_lib.load_page(Path(path).expanduser())
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path}: expected a page with a function get_config, like configs/seq.py, found none")
    try:
        config = module.get_config(argument) if colon else module.get_config()
    except UserError as error:
        is_named = f"{Path(path).name}:{argument}" in str(error)  # most pages name themselves
        raise error if is_named else UserError(f"{page}: {error}") from error
    except Exception as error:  # whatever the page does wrong
        raise UserError(f"{page} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{page}: expected settings from get_config, found {type(config).__name__}; start them from config.base()"
        )
    for override in overrides:
        change(config, override)
    return config


def change(config: Any, override: Override) -> None:
    """Sets one setting, which must be known, or belong to a table that takes any name.

    Raises:
        UserError: it is unknown, or the text is no value of its type.
    """
    section = config
    for depth, name in enumerate(override.path):
        is_known, last = name in section, depth == len(override.path) - 1
        example = section[name] if is_known else _example(override, override.path[:depth], section)
        if last:
            with config.unlocked(), config.ignore_type():
                section[name] = _value(override, example)
            return
        if not is_known:
            with config.unlocked(), config.ignore_type():
                section[name] = ConfigDict()
        section = section[name]
        if not hasattr(section, "items"):
            raise UserError(
                f"{override}: expected a table of settings as "
                f"config.{'.'.join(override.path[: depth + 1])}, found a value"
            )


def _example(override: Override, above: tuple[str, ...], section: Any) -> Any:
    """An example of the values of a table, for a name that it does not have yet."""
    if override.path in former.SETTINGS:
        return former.SETTINGS[override.path]
    for pattern, example in OPEN.items():
        if len(pattern) == len(above) and all(map(fnmatch.fnmatchcase, above, pattern)):
            return example
    location, name = ".".join(("config", *above)), override.path[len(above)]
    hint = f"it is now {legacy.FLAT[name]}" if name in legacy.FLAT and above[:1] == ("stages",) else ""
    raise UserError(f"{override}: the config has no field {location}.{name}; {hint or suggestion(name, section)}")


def _value(override: Override, example: Any) -> Any:
    """Reads a text as a value like an example."""
    text, location = override.text, str(override)
    if text is None and example == {}:
        return ConfigDict()  # "--config.stages.det.keep.agem": a method with its defaults
    if isinstance(example, bool) or text is None:
        word = "true" if text is None else text.lower()
        if not isinstance(example, bool | None) or word not in (*TRUE, *FALSE):
            raise UserError(f"{location}: expected {_described(example)}, found {text!r}")
        return word in TRUE
    if isinstance(example, str):
        return text
    literal = _literal(text)
    if isinstance(example, tuple | list) or (override.path[-1] == FREEZE and not isinstance(literal, dict)):
        if isinstance(literal, dict):  # a table where names alone are usual: parts with their epochs
            return literal
        items = literal if isinstance(literal, tuple | list) else text.split(",")
        return tuple(item for item in items if item != "")
    if example is None:
        return literal
    if hasattr(example, "items"):
        fits, value = isinstance(literal, dict), literal
    elif isinstance(example, int):
        fits, value = isinstance(literal, int) and not isinstance(literal, bool), literal
    else:
        fits, value = _is_number(text), float(text) if _is_number(text) else None
    if not fits:
        raise UserError(f"{location}: expected {_described(example)}, found {text!r}")
    return value


def _literal(text: str) -> Any:
    """A number, tuple or dict as Python writes it, or else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("nan", "inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _described(example: Any) -> str:
    if hasattr(example, "items"):
        return "a table, such as {'name': value}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{names.get(type(example), 'a value')}, such as {example!r}"
