"""Mistakes of any stage are found before the first is trained, from shapes alone."""

from pathlib import Path
from typing import Any

import pytest
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment, tasks
from mtl_jax.errors import UserError
from mtl_jax.training import dry_run

DIGITS = tuple("0123456789")
KEPT = {"keep": {"replay": {"images": 3}}}
HELD = {"keep": {"gpm": {"energy": 0.9}}}


def rehearse(first: dict[str, Any], second: dict[str, Any], *, norms_from: int = 0, **stream: Any) -> None:
    config: Any = config_lib.base()
    config.image_size = config.contract.latency_image_size = 64
    with config.ignore_type():
        config.model.update(MODEL | {"norms_from": norms_from})
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    options = {"labels": "segmentation", "size": 64, "length": 16}
    config.streams.masks = config_lib.stream("digits", {"seg": "segmentation"}, options=options, batch_size=4)
    settings = {"options": options | {"labels": "classification"}, "batch_size": 4} | stream
    label = settings.pop("label", "classification")
    config.streams.single = config_lib.stream("digits", {"cls": label}, **settings)
    config.stages.seg = config_lib.stage(("masks",), **first)
    config.stages.cls = config_lib.stage(("single",), **second)
    config.order = ("seg", "cls")
    settings = config_lib.resolve(config)
    dry_run.check_arguments(settings)
    dry_run.rehearse(settings, experiment.build(settings, data_root=Path()))


@pytest.mark.usefixtures("tiny_backbone")
def test_what_fits_passes():
    retained = {"replay": {"batch_size": 2}, "der": {}, "lwf": {}, "agem": {}, "ewc": {"strength": 1.0}}
    rehearse(KEPT, {"keep": retained})
    rehearse(HELD, {"train_batch_norm": "new_levels"})  # a level that the first stage did not read
    rehearse(HELD, {}, norms_from=1)


@pytest.mark.parametrize(
    ("first", "second", "stream", "words"),
    [
        (HELD, {}, {}, "config.stages.cls moves the running statistics"),
        ({"keep": {"gpm": {"layers": ("head",)}}}, {}, {}, "config.stages.cls trains backbone"),
        (
            KEPT,
            {"keep": {"replay": {"batch_size": 2}, "paste": {}, "der": {}}},
            {},
            "config.stages.cls.keep.der comp",
        ),
        (
            {},
            {"keep": {"ewc": {"strength": 1.0, "estimator": "exact"}}},
            {},
            'ewc.estimator="exact" needs a task whose',
        ),
        (
            KEPT,
            {"keep": {"agem": {}, "replay": {"batch_size": 2}}, "balance": "pcgrad"},
            {},
            'balance: expected "sum" with keep.agem',
        ),
        (
            {},
            {},
            {"options": {"labels": "segmentation", "size": 64, "length": 16}, "label": "segmentation"},
            "expected the classes of task cls",
        ),
    ],
)
@pytest.mark.usefixtures("tiny_backbone")
def test_a_mistake_of_the_second_stage_is_told_before_the_first(first, second, stream, words):
    with pytest.raises(UserError, match=words):
        rehearse(first, second, **stream)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tasks.cls.label_smoothing", "high", "config.tasks.cls.label_smoothing: expected a number"),
        (
            "tasks.cls.label_smoothing",
            float("nan"),
            "config.tasks.cls.label_smoothing: expected at most 1e+09, found nan",
        ),
        ("tasks.cls.strides", 8, "config.tasks.cls.strides: expected numbers, such as (8, 16)"),
        ("streams.single.options.size", "big", "config.streams.single.options.size: expected a whole number"),
        ("streams.single.augment.hue", "high", "config.streams.single.augment.hue: expected a number"),
        ("streams.single.augment.random_position", 2, "augment.random_position: expected True or False"),
        ("stages.cls.balance_options.c", "high", "config.stages.cls.balance_options.c: expected a number"),
    ],
)
def test_arguments_have_the_types_of_their_functions(field, value, words):
    config: Any = config_lib.base()
    config.tasks.cls = {"kind": "classification", "classes": ("cat", "dog")}
    config.streams.single = config_lib.stream(
        "digits", {"cls": "classification"}, augment={"hue": 0.0}, options={"size": 64}
    )
    config.stages.cls = config_lib.stage(("single",), balance="cagrad", balance_options={"c": 1.0})

    def check():
        settings = config_lib.read_settings(config)
        dry_run.check_arguments(settings)
        tasks.build(settings.tasks)

    check()
    *above, name = field.split(".")
    with config.ignore_type(), config.unlocked():
        section = config
        for component in above:
            section = section[component]
        section[name] = value
    with pytest.raises(UserError) as raised:
        check()
    assert words in str(raised.value)
