"""Sampling of streams by temperature, where streams of unequal size take turns; and a held-out part of a split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl_jax.data.sources.base import Source, Subset
from mtl_jax.errors import UserError


def shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Returns each stream's share of the steps, proportional to size ** (1 / temperature).

    Args:
        sizes: stream -> number of its images.
        temperature: 1 draws by size, 2 by its square root, infinity all streams alike.

    References:
        Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild: Findings and Challenges",
        2019, section 4.2.
    """
    weights = np.array(list(sizes.values()), np.float64) ** (1.0 / temperature)
    return dict(zip(sizes, (weights / weights.sum()).tolist(), strict=True))


def draw(sizes: Mapping[str, int], temperature: float, *, steps: int, seed: int) -> tuple[str, ...]:
    """Draws the stream of every step, by `shares`."""
    probabilities = shares(sizes, temperature)
    numbers = np.random.default_rng(seed).choice(len(probabilities), size=steps, p=list(probabilities.values()))
    names = tuple(probabilities)
    return tuple(names[number] for number in numbers)


def held_out(source: Source, percent: float) -> tuple[Subset, Subset]:
    """Divides a source into images that are held out, at even distances, and the rest.

    Neighbours are mostly of one class or scene, so that the held-out ones are of every kind.

    Args:
        source: in any order.
        percent: of its images that are held out; at least one image is.

    Raises:
        UserError: nothing would be left to train on.
    """
    count = max(1, round(len(source) * percent / 100))
    if count >= len(source):
        raise UserError(
            f"held_out_percent: expected some training images to be left, found {percent:g}, which is {count} of "
            f"{len(source)}; set it to 0"
        )
    held_out_indices = {int((number + 0.5) * len(source) / count) for number in range(count)}
    return Subset(source, sorted(held_out_indices)), Subset(
        source, [index for index in range(len(source)) if index not in held_out_indices]
    )
