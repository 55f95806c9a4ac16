"""Memory of finished stages, slot by slot: empty, and on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.continual import METHODS
from mtl_jax.continual.method import Memory


def nothing() -> Memory:
    """Returns the memory before the first stage."""
    return {kind.slot: kind.nothing for kind in METHODS.values() if kind.slot}


def to_tree(memory: Memory) -> dict[str, Any]:
    """Returns the memory as a tree of arrays, for a checkpoint."""
    return {kind.slot: kind.to_tree(memory[kind.slot]) for kind in METHODS.values() if kind.slot}


def from_tree(tree: Mapping[str, Any]) -> Memory:
    """The inverse of `to_tree`; a slot that has come since is empty."""
    kinds = {kind.slot: kind for kind in METHODS.values() if kind.slot}
    return {slot: kind.from_tree(tree[slot]) if slot in tree else kind.nothing for slot, kind in kinds.items()}
