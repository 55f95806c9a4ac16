"""Trees of arrays as checkpoints have them: on the host, keys as numbers, and how one differs from what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def on_host(tree: PyTree) -> PyTree:
    """Copies arrays to the host; PRNG keys become their numbers."""
    return jax.device_get(jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree))


def host_like(tree: PyTree) -> PyTree:
    """Returns zeros as `on_host` would return the leaves, of arrays or of their shapes."""

    def like(leaf: Any) -> Any:
        shape = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return np.zeros(shape.shape, shape.dtype)

    return jax.tree.map(like, tree)


def with_keys(expected: PyTree, restored: PyTree) -> PyTree:
    """Returns a restored tree whose numbers are PRNG keys where those of `expected` are."""
    return jax.tree.map(
        lambda want, leaf: jax.random.wrap_key_data(leaf) if _is_key(want) else leaf, expected, restored
    )


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def other_shape(expected: PyTree, restored: PyTree) -> str:
    """Says which leaf has another shape than expected; "" if none has.

    Args:
        expected: a tree of arrays.
        restored: a tree of the same structure.
    """
    for (location, want), (_, leaf) in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree_util.tree_leaves_with_path(restored), strict=True
    ):
        if want.shape != leaf.shape:
            return f"expected {_name(location)} of shape {want.shape}, found {leaf.shape}"
    return ""


def other_leaves(expected: Mapping[str, PyTree | None], saved: Mapping[str, PyTree]) -> str:
    """Says which leaves are missing, and which are there instead; "" if they are those expected.

    Args:
        expected: part -> tree; None expects whatever is there.
        saved: part -> tree.
    """
    wanted, found = set[str](), set[str]()
    for part, tree in expected.items():
        if tree is not None:
            wanted |= _names(part, tree)
            found |= _names(part, saved[part])
    groups = {"expected": sorted(wanted - found), "found": sorted(found - wanted)}
    return ", ".join(
        f"{label} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for label, names in groups.items()
        if names
    )


def _names(part: str, tree: PyTree) -> set[str]:
    return {f"{part}/{_name(location)}" for location, _ in jax.tree_util.tree_leaves_with_path(tree)}


def _name(location: Any) -> str:
    return jax.tree_util.keystr(location, simple=True, separator="/")
