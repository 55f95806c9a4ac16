"""Sections of a configuration: frozen dataclasses whose fields carry default, reason, unit and the values they take."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Container, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from mtl_jax.config.checks import ACCEPTED_TYPES, MAX_NUMBER, require_choice, suggestion
from mtl_jax.errors import UserError

RULE = "rule"
REQUIRED: Any = object()  # in a default's place: the setting has none


class Rule(NamedTuple):
    """Description and limits of a setting."""

    reason: str
    unit: str = ""
    least: float = -math.inf
    above: float | None = None  # the setting is more than this
    below: float | None = None
    most: float = MAX_NUMBER
    choices: tuple[Any, ...] = ()  # empty: any


def setting(default: Any, reason: str, **limits: Any) -> Any:
    """Returns a dataclass field with its default, and what `Rule` holds.

    Args:
        default: a plain value, or `REQUIRED`.
        reason: what the setting is, or why one would change it.
        **limits: the other fields of `Rule`. Those of numbers hold for every number of a table or list.
    """
    metadata = {RULE: Rule(reason, **limits)}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """Settings that belong together; where one is out of its range, there is no such section."""

    former: ClassVar[Mapping[str, str]] = {}  # name of an earlier version -> what it is called now

    def __post_init__(self) -> None:
        """Checks every setting by its field.

        Raises:
            UserError: names the setting, beginning with its own name.
        """
        for field in dataclasses.fields(self):
            if RULE in field.metadata:
                _check(field.name, getattr(self, field.name), field.metadata[RULE])
        self.check()

    def check(self) -> None:
        """Checks what settings of this section mean for each other.

        Raises:
            UserError: settings that exclude each other, beginning with the name of one.
        """

    @classmethod
    def sections(cls, raw_values: Any) -> dict[str, Any]:
        """Returns the values as the constructor takes them; a section with sections below it reads those."""
        return dict(raw_values.items())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, sections below included."""
        return dataclasses.asdict(self)


S = TypeVar("S", bound=Section)


def read(section: type[S], raw_values: Any, location: str, **extra_fields: Any) -> S:
    """Reads a section from a table: what is left out has its default.

    Args:
        section: to read.
        raw_values: name -> value; a dict, or a ConfigDict, which is no Mapping.
        location: the table, for errors.
        **extra_fields: those that are not the table's to give.

    Raises:
        UserError: a setting that is unknown or missing, or a value that does not fit.
    """
    if not hasattr(raw_values, "items"):
        raise UserError(f"{location}: expected a table of settings{_example(section)}, found {raw_values!r}")
    kinds = typing.get_type_hints(section)
    for name, _ in raw_values.items():
        require_known(section, location, name, extra_fields=extra_fields)
    for field in dataclasses.fields(section):
        if _is_required(field) and field.name not in (*raw_values, *extra_fields):
            kind = kinds[field.name]
            raise UserError(f"{location}.{field.name}: expected {_described(kind, _name(kind))}, found none")
    try:
        values = {name: fitted(name, value, kinds[name]) for name, value in section.sections(raw_values).items()}
        return section(**values, **extra_fields)
    except UserError as error:
        raise UserError(f"{location}.{error}") from error


def _example(section: type[Section]) -> str:
    """The first setting with its default, where it has a plain one."""
    for field in dataclasses.fields(section)[:1]:
        if RULE in field.metadata and isinstance(field.default, int | float | str):
            return f", such as {{{field.name!r}: {field.default!r}}}"
    return ""


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.init and field.default is missing and field.default_factory is missing


def require_known(section: type[Section], location: str, name: Any, *, extra_fields: Container[str] = ()) -> None:
    """Checks that a section has a setting.

    Args:
        section: class of the section.
        location: the section, for the error.
        name: of the setting.
        extra_fields: fields that come from elsewhere; those without a rule are no settings.

    Raises:
        UserError: it has none of this name, with what it is called now, or the nearest right name.
    """
    fields = [field for field in dataclasses.fields(section) if field.init]
    field_names = [field.name for field in fields if RULE in field.metadata or field.name not in extra_fields]
    if name not in field_names:
        hint = f"it is now {section.former[name]}" if name in section.former else suggestion(str(name), field_names)
        raise UserError(f"{location} has no setting {name}; {hint}")


def defaults(section: type[Section]) -> dict[str, Any]:
    """Returns the default of every setting, as plain values."""
    return section().to_dict()


def plain(value: Any) -> Any:
    """Returns tables as dicts and sequences as tuples, all through."""
    if hasattr(value, "items"):
        return {name: plain(element) for name, element in value.items()}
    return tuple(plain(element) for element in value) if isinstance(value, list | tuple) else value


def fitted(location: str, value: Any, kind: Any) -> Any:
    """Returns a value as a field's type says: whole numbers as floats where these belong, lists as tuples.

    Names that a command line gives as one text ("seg, det") are taken apart.

    Args:
        location: the setting, for errors.
        value: as it was given.
        kind: the annotation of the field.

    Raises:
        UserError: it is of another type.
    """
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    named_options = [(option, _name(option)) for option in options]
    for option, name in named_options:
        if name not in ACCEPTED_TYPES or ACCEPTED_TYPES[name][0](value):
            return _inner(location, value, option, name)
    if isinstance(value, str) and value.isdigit() and int in options:  # as a command line gives it
        return int(value)
    expected = " or ".join(dict.fromkeys(_described(option, name) for option, name in named_options))
    raise UserError(f"{location}: expected {expected}, found {value!r}")


def _name(kind: Any) -> str:
    return "None" if kind is types.NoneType else getattr(typing.get_origin(kind) or kind, "__name__", str(kind))


def _described(kind: Any, name: str) -> str:
    if name != "tuple":
        return ACCEPTED_TYPES[name][1]
    return "a tuple of names, such as ('name',)" if typing.get_args(kind)[:1] == (str,) else "numbers, such as (8, 16)"


def _inner(location: str, value: Any, kind: Any, name: str) -> Any:
    inner = typing.get_args(kind)
    if name == "float":
        return float(value)
    if name == "tuple" and inner[:1] in ((int,), (float,)):
        return tuple(fitted(f"{location}[{index}]", element, inner[0]) for index, element in enumerate(value))
    if name == "Mapping":
        return {key: fitted(f"{location}.{key}", element, inner[1]) for key, element in value.items()}
    if name == "tuple" and inner[:1] == (str,):
        if not all(isinstance(element, str) for element in value):
            raise UserError(f"{location}: expected {_described(kind, name)}, found {plain(value)!r}")
        return tuple(word.strip() for element in value for word in element.split(",") if word.strip())
    return plain(value) if name in ("tuple", "Any") else value


def _check(location: str, value: Any, rule: Rule) -> None:
    if isinstance(value, dict):
        for name, element in value.items():
            _check(f"{location}.{name}", element, rule)
    elif isinstance(value, tuple):
        for index, element in enumerate(value):
            _check(f"{location}[{index}]", element, rule)
    elif rule.choices:
        require_choice(location, value, rule.choices)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        is_above = rule.above is None or value > rule.above
        is_below = rule.below is None or value < rule.below
        if not (rule.least <= value <= rule.most and is_above and is_below):
            raise UserError(f"{location}: expected {_range(rule)}, found {value}")


def _range(rule: Rule) -> str:
    limits = {"at least": rule.least, "more than": rule.above, "less than": rule.below, "at most": rule.most}
    bounds = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None and math.isfinite(limit)]
    unit = f" {rule.unit}" if rule.unit else ""
    return " and ".join(bounds) + unit if bounds else "a number"
