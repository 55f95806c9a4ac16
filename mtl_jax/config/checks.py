"""What a configuration may hold: names, types, ranges and choices, checked before anything is read or built."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from mtl_jax.config import legacy
from mtl_jax.errors import UserError

CHOICES = {
    "train_batch_norm": ("everywhere", "new_levels", "nowhere"),
    "gradient_space": ("params", "features"),
    "update": ("forward", "mask", "weight"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("constant", "linear", "cosine"),
}
ON_NAN = ("stop", "skip")
MAX_SEED = 2.0**32 - 1  # what every generator takes
MAX_LAYERS = 100.0  # beyond, it takes minutes to find that the network is too large
MAX_SIZE = 16384.0  # px; beyond, no machine holds a batch
MAX_NUMBER = 1e9  # of a setting that is not told to take infinity
MAX_NAME = 64  # characters; names become parts of file names, of which every system takes 255
# Names become folders, parameter paths, flags and columns, and all of those take these characters on every system.
NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}")
# No names of tasks: "all" asks for every task, the others are layers of the head and parts of a batch norm.
RESERVED = ("all", "attention", "bias", "mean", "scale", "shared", "var")
RESERVED_BEGINNINGS = ("branch_", "conv_", "norm_")
TABLES = ("tasks", "streams", "stages")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


# By the beginning of an annotation: whether a value is of that kind, and what the kind is called.
TAKEN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda value: value is None, "None"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "text"),
    "tuple": (_is_sequence, "several values"),
    "Sequence": (_is_sequence, "several values"),
    "Mapping": (lambda value: hasattr(value, "items"), "a table of settings"),
}


def check(config: Any, defaults: Any, stream: Any, stage: Any) -> None:
    """Checks that the parts of a config name each other, and that every setting has its type and range.

    Args:
        config: to check.
        defaults: of the whole config.
        stream: defaults of a stream.
        stage: defaults of a stage.

    Raises:
        UserError: the first setting that does not fit, with what was expected.
    """
    _check_types("config", config, defaults)
    for section in ("model", "contract"):
        _check_types(f"config.{section}", config[section], defaults[section])
    _check_names(config)
    _check_run(config)
    for name, settings in config.streams.items():
        _check_types(f"config.streams.{name}", settings, stream)
        _check_stream(config, f"config.streams.{name}", settings)
    for name, settings in config.stages.items():
        _check_types(f"config.stages.{name}", settings, stage)
        _check_stage(config, f"config.stages.{name}", settings)
    _require_names("config.contract.baseline_from", config.contract.baseline_from, "config.tasks", config.tasks)


def check_arguments(where: str, given: Any, factory: Callable[..., Any]) -> None:
    """Checks that keyword arguments have the types that the function names; the names are the function's to check.

    Args:
        where: the arguments' place, for the error.
        given: name -> value.
        factory: that takes them.

    Raises:
        UserError: a value of another type, or that is not a number where one belongs; or a list of class names in which
            one is missing or stands twice.
    """
    parameters = inspect.signature(factory).parameters
    for name in parameters.keys() & given.keys():
        value: Any = given[name]
        place = f"{where}.{name}"
        taken = [TAKEN.get(kind.partition("[")[0]) for kind in str(parameters[name].annotation).split(" | ")]
        known = [each for each in taken if each is not None]
        if len(known) == len(taken) and not any(fits(value) for fits, _ in known):
            default = parameters[name].default
            example = f", such as {default!r}" if default not in (inspect.Parameter.empty, None, ()) else ""
            expected = " or ".join(dict.fromkeys(what for _, what in known))
            raise UserError(f"{place} is {value!r}; expected {expected}{example}")
        if name == "classes" and value is not None:
            tables = value.items() if hasattr(value, "items") else [("", value)]
            for label, names in tables:
                check_class_names(f"{place}.{label}" if label else place, names)
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{place} is nan; expected a number")


def check_class_names(where: str, names: Any) -> None:
    """Checks that names of classes are texts that tell the classes apart.

    Args:
        where: they are, for the error.
        names: of the classes, in their order.

    Raises:
        UserError: there is none; or one is no text, is empty or stands twice.
    """
    if not _is_sequence(names):
        raise UserError(f"{where} is {names!r}; expected a list of names, such as ('cat', 'dog')")
    if not names:
        raise UserError(f"{where} is empty; expected names of classes, such as ('cat', 'dog')")
    unnamed = [name for name in names if not isinstance(name, str) or not name.strip()]
    if unnamed:
        raise UserError(f"{where} has the class {unnamed[0]!r}; expected a name, in letters or digits")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where} has {', '.join(map(repr, twice))} more than once; expected each class once")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean …?" where a known name is near, or else all known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known) or 'nothing'}"


def _check_names(config: Any) -> None:
    for table in TABLES:
        for name, section in config[table].items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UserError(
                    f"config.{table} has the name {str(name)[: 2 * MAX_NAME]!r}; expected 1 to {MAX_NAME} of the "
                    "letters A to Z and a to z, digits, _ and -, not beginning with -: it becomes part of files"
                )
            if not hasattr(section, "items"):
                raise UserError(f"config.{table}.{name} is {section!r}; expected a table of settings")
            if not isinstance(kind := section.get("kind", ""), str):
                raise UserError(f"config.{table}.{name}.kind is {kind!r}; expected text")
    for task in config.tasks:
        if task in RESERVED or task.startswith(RESERVED_BEGINNINGS):
            raise UserError(
                f"config.tasks has the name {task!r}, which has a meaning of its own, as have {', '.join(RESERVED)} "
                f"and what begins with {', '.join(RESERVED_BEGINNINGS)}; call the task something else"
            )


def _check_run(config: Any) -> None:
    if config.on_nan not in ON_NAN:
        raise UserError(f"config.on_nan is {config.on_nan!r}; expected one of {', '.join(ON_NAN)}")
    _require_range("config", config, ("image_size",), 1.0, most=MAX_SIZE)
    _require_range("config", config, ("log_every_steps", "keep_checkpoints"), 1.0)
    _require_range("config", config, ("cache_gb", "loader_threads", "example_images", "survey_images"), 0.0)
    _require_range("config", config, ("tolerated_leakage_percent",), 0.0, most=100.0)
    _require_range("config", config, ("checkpoint_every_seconds",), 0.0, most=math.inf)
    _require_range("config", config, ("seed",), 0.0, most=MAX_SEED)
    _require_range("config.model", config.model, ("head_layers", "experts"), 1.0, most=MAX_LAYERS)
    _require_range("config.model", config.model, ("neck_channels", "head_channels"), 1.0)
    _require_range("config.contract", config.contract, ("latency_image_size",), 1.0, most=MAX_SIZE)
    limits = ("max_drop_percent", "max_train_seconds", "max_latency_ms")
    _require_range("config.contract", config.contract, limits, 0.0, most=math.inf)
    if not config.order:
        raise UserError("config.order is empty; expected the names of the stages to train, e.g. ('seg', 'det')")
    _require_names("config.order", config.order, "config.stages", config.stages)
    if twice := [name for name in config.stages if list(config.order).count(name) > 1]:
        raise UserError(f"config.order names {', '.join(twice)} twice; expected each stage once")


def _check_stream(config: Any, where: str, settings: Any) -> None:
    if not settings.labels:
        raise UserError(f"{where}.labels is empty; expected task -> label name, e.g. {{'seg': 'segmentation'}}")
    _require_names(f"{where}.labels", settings.labels, "config.tasks", config.tasks)
    _check_values(f"{where}.labels", settings.labels, "")
    _require_range(where, settings, ("batch_size", "eval_batch_size", "max_boxes"), 1.0)
    _require_range(where, settings, ("image_size", "train_image_size"), 0.0, most=MAX_SIZE)


def _check_stage(config: Any, where: str, settings: Any) -> None:
    if not settings.streams:
        raise UserError(f"{where}.streams is empty; expected names of config.streams")
    _require_names(f"{where}.streams", settings.streams, "config.streams", config.streams)
    _require_names(f"{where}.loss_weights", settings.loss_weights, "config.tasks", config.tasks)
    for table in ("loss_weights", "rates"):
        _check_values(f"{where}.{table}", settings[table], 0.0)
        _require_range(f"{where}.{table}", settings[table], tuple(settings[table]), 0.0)
    if settings.warm_start:
        _require_names(f"{where}.warm_start", (settings.warm_start,), "config.tasks", config.tasks)
    for choice, allowed in CHOICES.items():
        if settings[choice] not in allowed:
            raise UserError(f"{where}.{choice} is {settings[choice]!r}; expected one of {', '.join(allowed)}")
    _check_stage_numbers(where, settings)


def _check_stage_numbers(where: str, settings: Any) -> None:
    if not 0 <= settings.ema_decay < 1:
        raise UserError(f"{where}.ema_decay is {settings.ema_decay}; expected 0 <= ema_decay < 1")
    if not 0 < settings.epochs <= MAX_NUMBER:
        raise UserError(f"{where}.epochs is {settings.epochs}; expected more than 0 and at most {MAX_NUMBER:g}")
    _require_range(where, settings, ("micro_batches",), 1.0)
    _require_range(where, settings, ("sampling_temperature", "soft_sharing"), 0.0, most=math.inf)
    _require_range(where, settings, ("warmup_fraction", "momentum"), 0.0, most=1.0)
    # What is left out above and has no sign: rates, weights and counts, 0 of which is off.
    signless = [name for name, value in settings.items() if isinstance(value, numbers.Real)]
    free = ("sampling_temperature", "soft_sharing")
    _require_range(where, settings, tuple(name for name in signless if name not in free), 0.0)


def _check_types(where: str, settings: Any, defaults: Any) -> None:
    """Every setting is known, and of the type of its default."""
    for name in settings:
        if name not in defaults:
            moved = f"it is now {legacy.FLAT[name]}" if name in legacy.FLAT and "keep" in defaults else ""
            raise UserError(f"{where} has no setting {name}; {moved or suggestion(str(name), defaults)}")
    for name in defaults:
        if name not in settings:
            raise UserError(f"{where}.{name} is missing; expected a value such as {defaults[name]!r}")
        _check_type(f"{where}.{name}", settings[name], defaults[name])


def _check_values(where: str, table: Any, example: Any) -> None:
    for name, value in table.items():
        _check_type(f"{where}.{name}", value, example)


def _check_type(where: str, value: Any, default: Any) -> None:
    is_of_kind, expected = TAKEN.get(type(default).__name__, TAKEN["Mapping"])
    fits = is_of_kind(value)
    if isinstance(default, tuple):
        fits, expected = fits and all(isinstance(each, str) for each in value), "a tuple of names"
    if not fits:
        raise UserError(f"{where} is {value!r}; expected {expected}")


def _require_names(where: str, names: Any, table: str, known: Any) -> None:
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise UserError(f"{where} names {', '.join(unknown)}; {table} has {', '.join(known) or 'nothing'}")


def _require_range(
    where: str, settings: Any, names: tuple[str, ...], least: float, *, most: float = MAX_NUMBER
) -> None:
    for name in names:
        if not least <= settings[name] <= most:
            limit = "" if most == math.inf else f" and at most {most:g}"
            raise UserError(f"{where}.{name} is {settings[name]}; expected at least {least:g}{limit}")
