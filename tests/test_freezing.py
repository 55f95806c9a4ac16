"""Which patterns are frozen from which step on."""

from typing import Any

import pytest

from mtl_jax.config.former import renamed_stage
from mtl_jax.config.section import read
from mtl_jax.config.stage_settings import ALWAYS, StageSettings
from mtl_jax.errors import UserError
from mtl_jax.training import freezing


def frozen(inputs: Any) -> Any:
    return read(StageSettings, {"freeze": inputs}, "config.stages.seg").freeze


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (("backbone", "neck,head"), dict.fromkeys(("backbone", "neck", "head"), ALWAYS)),
        (
            {"backbone": None, "backbone/stride_16": (0, 10)},
            {"backbone": ALWAYS, "backbone/stride_16": (0.0, 10.0)},
        ),
        ({"neck": [2.5, None]}, {"neck": (2.5, float("inf"))}),
        ((), {}),
    ],
)
def test_what_is_frozen_is_read_as_patterns_with_epochs(inputs, expected):
    assert frozen(inputs) == expected


@pytest.mark.parametrize("epochs", [5, (3, 1), (-1, 2), ("a", "b"), (0, 1, 2), (float("nan"), 3), "5:"])
def test_epochs_that_say_nothing_are_refused(epochs):
    with pytest.raises(UserError, match=r"stages\.seg\.freeze\.neck: expected None, or epochs from and to"):
        frozen({"neck": epochs})


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (("backbone@:5",), {"backbone": (0.0, 5.0)}),
        (("head/conv_*@2.5:",), {"head/conv_*": (2.5, None)}),
        (
            ("neck", "backbone/stage_[0-1]@1:3"),
            {"neck": None, "backbone/stride_2": (1, 3), "backbone/stride_4": (1, 3)},
        ),
    ],
)
def test_former_texts_are_read_as_what_they_are_called_now(former, now):
    assert frozen(renamed_stage({"freeze": former})["freeze"]) == frozen(now)


def phases(freeze: Any, total_steps: int = 100) -> Any:
    return freezing.phases(freezing.rules(frozen(freeze)), steps_per_epoch=10, total_steps=total_steps)


def test_without_epochs_there_is_one_phase():
    assert phases(()) == {0: ()}
    assert phases(("a", "b")) == {0: ("a", "b")}


def test_a_phase_begins_wherever_the_frozen_patterns_change():
    assert phases({"a": (0, 2), "b": (0, 5), "c": (3, None)}) == {0: ("a", "b"), 20: ("b",), 30: ("b", "c"), 50: ("c",)}


def test_what_begins_after_the_stage_is_left_out():
    assert phases({"a": (20, None), "b": (0, 50)}) == {0: ("b",)}
