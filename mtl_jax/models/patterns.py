"""Patterns of parameter paths: "backbone" matches all below it, "head/conv_*" by wildcard, "head/kernels" by kind."""

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
    """Whether a layer or parameter, such as "backbone/block_4/expand/conv", lies at or below one of the patterns.

    A pattern that ends in "kernels", "norms" or "patches" names the parameters of that kind at or below the rest of it.
    """
    return any(_matches(path, pattern) for pattern in patterns)


def _matches(path: str, pattern: str) -> bool:
    above, _, last = pattern.rpartition("/")
    if last in KINDS:
        return KINDS[last](path.split("/")) and (not above or _lies_in(path, above))
    return _lies_in(path, pattern)


def _lies_in(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")


def _is_norm(names: Sequence[str]) -> bool:
    return any(name == "norm" or name.startswith("norm_") for name in names)


def _is_patch(names: Sequence[str]) -> bool:
    return any(name.startswith("patch_") for name in names)


def _is_kernel(names: Sequence[str]) -> bool:
    """Whether it is a kernel that is no patch and no task's slice of the head, or a bias next to one."""
    below_head = names[names.index("head") + 1 :] if "head" in names else ()
    shared = not below_head or below_head[0].startswith(HEAD_LAYERS)
    return shared and not _is_norm(names) and not _is_patch(names)


HEAD_LAYERS = ("conv_", "attention")  # besides norms, patches and the tasks' slices
KINDS = {"kernels": _is_kernel, "norms": _is_norm, "patches": _is_patch}


def change_where(change: Callable[[Array], Array], params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """Changes the leaves that lie at or below one of the patterns."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if matches(path_of(path), patterns) else leaf, params
    )


def expanded(pattern: str, layers_by_component: Mapping[str, Sequence[str]]) -> list[str]:
    """Puts the layers of a part in its place: "backbone/stride_[24]" becomes the path of each layer of both parts.

    "backbone/stride_8" stands for the layers that end at stride 8 px, "backbone/until_8" for all up to there.

    Args:
        pattern: to read.
        layers_by_component: "stride_2" and so on -> the names of its layers in the backbone.
    """
    names = pattern.split("/")
    for position, name in enumerate(names):
        layers = [
            layer
            for component, component_layers in layers_by_component.items()
            if _is_part(component, name)
            for layer in component_layers
        ]
        if layers and names[:position][-1:] == ["backbone"]:
            return ["/".join([*names[:position], layer, *names[position + 1 :]]) for layer in layers]
    return [pattern]


def _is_part(component: str, name: str) -> bool:
    """Whether a part, such as "stride_8", is one that a name stands for."""
    stride = name.removeprefix("until_")
    if name != stride and stride.isdigit():
        return int(component.removeprefix("stride_")) <= int(stride)
    return name.startswith("stride_") and fnmatch.fnmatchcase(component, name)
