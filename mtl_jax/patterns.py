"""Parameters by their paths: "backbone" names all that lies below it, "head/conv_*" what fits."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
from jaxtyping import Array, PyTree


def paths(params: PyTree) -> list[str]:
    """Returns the path of every parameter, names joined by slashes."""
    return [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def path_of(path: tuple) -> str:
    """Returns JAX's path of a leaf, names joined by slashes."""
    return "/".join(entry.key for entry in path)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a layer or parameter, such as "backbone/block_4/expand/conv", lies at or below one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*") for pattern in patterns)


def change_where(change: Callable[[Array], Array], params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """Changes the leaves that lie at or below one of the patterns."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if matches(path_of(path), patterns) else leaf, params
    )


def expanded(pattern: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Puts the layers of a part in its place: "backbone/stage_[01]" becomes the path of each layer of both stages.

    Args:
        pattern: to read.
        parts: "stage_0" and so on -> the names of its layers.
    """
    names = pattern.split("/")
    for position, name in enumerate(names):
        layers = [layer for part, own in parts.items() if fnmatch.fnmatchcase(part, name) for layer in own]
        if name.startswith("stage_") and layers:
            return ["/".join([*names[:position], layer, *names[position + 1 :]]) for layer in layers]
    return [pattern]
