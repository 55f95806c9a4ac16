"""Streams take turns in proportion to their size, its root, or alike, and the same seed draws the same turns."""

import collections
import math

import pytest

from mtl_jax.data import sampling

SIZES = {"large": 900, "small": 100}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (math.inf, 0.5)])
def test_shares_follow_size_to_the_power_of_one_over_the_temperature(temperature, share):
    assert sampling.shares(SIZES, temperature)["large"] == pytest.approx(share)
    drawn = sampling.draw(SIZES, temperature, steps=4000, seed=0)
    assert collections.Counter(drawn)["large"] / 4000 == pytest.approx(share, abs=0.03)


def test_turns_are_a_function_of_the_seed():
    one, same, other = (sampling.draw(SIZES, 1.0, steps=50, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
