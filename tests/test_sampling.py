"""Streams take turns in proportion to their size, its root, or alike, and the same seed draws the same turns."""

import collections
import math
from typing import ClassVar

import numpy as np
import pytest

from mtl_jax.data import sampling
from mtl_jax.errors import UserError

SIZES = {"large": 900, "small": 100}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (math.inf, 0.5)])
def test_shares_follow_size_to_the_power_of_one_over_the_temperature(temperature, share):
    assert sampling.shares(SIZES, temperature)["large"] == pytest.approx(share)
    rendered = sampling.draw(SIZES, temperature, steps=4000, seed=0)
    assert collections.Counter(rendered)["large"] / 4000 == pytest.approx(share, abs=0.03)


def test_turns_are_a_function_of_the_seed():
    first, matches, second = (sampling.draw(SIZES, 1.0, steps=50, seed=seed) for seed in (1, 1, 2))
    assert first == matches
    assert first != second


class Numbers:
    """A source of so many numbers."""

    class_names: ClassVar = {}

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        return {"id": index}


@pytest.mark.parametrize(("count", "percent", "held"), [(100, 10.0, 10), (7, 1.0, 1), (240, 33.0, 79)])
def test_held_out_images_lie_at_even_distances_and_are_nobody_else_s(count, percent, held):
    out, remainder = sampling.held_out(Numbers(count), percent)
    ids, peers = [out[i]["id"] for i in range(len(out))], [remainder[i]["id"] for i in range(len(remainder))]
    assert len(ids) == held
    assert sorted(ids + peers) == list(range(count))
    assert np.ptp(np.diff([*ids, ids[0] + count])) <= 1


def test_something_is_left_to_train_on():
    with pytest.raises(UserError, match=r"expected some training images to be left, found .* 1 of 1; set it to 0"):
        sampling.held_out(Numbers(1), 5.0)
