"""Which stream each step trains on, where streams of unequal size take turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


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
    chosen = shares(sizes, temperature)
    numbers = np.random.default_rng(seed).choice(len(chosen), size=steps, p=list(chosen.values()))
    names = tuple(chosen)
    return tuple(names[number] for number in numbers)
