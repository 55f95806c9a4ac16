"""Which patterns are frozen from which step on."""

import math

import pytest

from mtl_jax.errors import UserError
from mtl_jax.training import freezing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("backbone", ("backbone", 0.0, math.inf)),
        ("backbone@:5", ("backbone", 0.0, 5.0)),
        ("head/conv_*@2.5:", ("head/conv_*", 2.5, math.inf)),
        ("neck@1:3", ("neck", 1.0, 3.0)),
    ],
)
def test_a_rule_is_a_pattern_with_epochs(text, expected):
    assert freezing.parse(text, where="freeze") == expected


@pytest.mark.parametrize("text", ["backbone@", "backbone@5", "@:5", "neck@3:1", "neck@-1:", "neck@a:b", "neck@nan:"])
def test_a_rule_that_says_nothing_is_refused(text):
    with pytest.raises(UserError, match=r"freeze has .* expected a pattern"):
        freezing.parse(text, where="freeze")


def phases(*rules, total_steps=100):
    parsed = [freezing.parse(rule, where="freeze") for rule in rules]
    return freezing.phases(parsed, steps_per_epoch=10, total_steps=total_steps)


def test_without_epochs_there_is_one_phase():
    assert phases() == {0: ()}
    assert phases("a", "b") == {0: ("a", "b")}


def test_a_phase_begins_wherever_the_frozen_patterns_change():
    assert phases("a@:2", "b@:5", "c@3:") == {0: ("a", "b"), 20: ("b",), 30: ("b", "c"), 50: ("c",)}


def test_what_begins_after_the_stage_is_left_out():
    assert phases("a@20:", "b@:50") == {0: ("b",)}
