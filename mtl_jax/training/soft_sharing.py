"""Soft sharing: a network for each task, and a penalty on the distance between corresponding parameters."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mtl_jax.models.patterns import path_of


def draw_near(branches: Sequence[PyTree], weight: float | Float[Array, ""]) -> list[PyTree]:
    """Takes the proximal step of the squared distances between paired parameters.

    The penalty is strength / 2 * the sum over pairs of networks of |a - b|². Its proximal step moves each parameter
    towards the mean of its counterparts, exactly however strong the penalty is: at strength 0 nothing moves, at an
    infinite one all become the mean, and the networks are one.

    Args:
        branches: the networks' parameters, of which those at one path and of one shape are counterparts.
        weight: learning rate times strength.

    Returns:
        The parameters after the step.

    References:
        Duong, Cohn, Bird, Cook, "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural Network
        Parser", 2015 (the penalty). Parikh, Boyd, "Proximal Algorithms", 2014, section 1.1 (the step).
    """
    pairs: dict[tuple, list[Array]] = {}
    for branch in branches:
        for path, leaf in jax.tree_util.tree_leaves_with_path(branch):
            pairs.setdefault((path_of(path), leaf.shape), []).append(leaf)
    means = {location: jnp.stack(leaves).mean(0) for location, leaves in pairs.items() if len(leaves) > 1}

    def nearer(path: tuple, leaf: Array) -> Array:
        location = (path_of(path), leaf.shape)
        if location not in means:
            return leaf
        # Between networks that are n: the sum over pairs is n times the sum of squared distances from the mean.
        return means[location] + (leaf - means[location]) / (1 + weight * len(pairs[location]))

    return [jax.tree_util.tree_map_with_path(nearer, branch) for branch in branches]
