"""Loads MobileNetV3-Small weights under torchvision's names: from .npz, or .pth where torch is installed."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError

BLOCK_PARTS = (
    "expand",
    "depthwise",
    "squeeze_excite",
    "project",
)  # in torchvision's order; some are left out
LAYERS = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
CLASSIFIER = {"hidden": "classifier.0", "logits": "classifier.3"}
NAMES_SHOWN = 4  # of each kind of mistake, so that the message stays one readable line

Variables = Mapping[str, Any]
TreePath = tuple[str, ...]


def load(variables: Variables, path: str | Path) -> dict[str, Any]:
    """Puts a file's weights in place of the backbone's, or of the whole published network's.

    Args:
        variables: {"params", "batch_stats"} of a multi-task network (its backbone is replaced, in every branch), or of
            `MobileNetV3SmallClassifier`.
        path: A .npz or .pth file of torchvision's `state_dict`. The classifier of a published file is left
            out where the network has none.

    Returns:
        Variables like those given.

    Raises:
        UserError: The file cannot be read, or its names, shapes or values do not fit.
    """
    return merge(variables, read_state_dict(path), source=str(path))


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of named arrays.

    Args:
        path: The file; .npz, .pth or .pt.

    Returns:
        {name: array}.

    Raises:
        UserError: The file is absent, of another kind, or damaged, or it needs torch, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a file of pretrained weights, found none: check the path")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pth", ".pt"):
        return _read_pth(path)
    raise UserError(f"{path}: expected pretrained weights in a .npz or .pth file, found another suffix: convert it")


def merge(variables: Variables, state_dict: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """Puts named arrays in their places; see `load`.

    Args:
        variables: What to replace in.
        state_dict: {torchvision name: array in PyTorch's layout}.
        source: Where the arrays are from, for the error message.

    Returns:
        Variables like those given.

    Raises:
        UserError: A name is missing or unexpected, an array has the wrong shape, or it holds NaN or infinity.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    paths = [tuple(step.key for step in path) for path, _ in leaves]
    names = _torchvision_names(paths)
    given = {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    if not any(name.startswith("classifier.") for name in names.values()):
        given = {name: value for name, value in given.items() if not name.startswith("classifier.")}
    converted = {path: _to_our_layout(given[name], path) for path, name in names.items() if name in given}
    shapes = {path: leaf.shape for path, (_, leaf) in zip(paths, leaves, strict=True)}
    _refuse_misfits(names, given, converted, shapes, source=source)
    merged = [
        jnp.asarray(converted[path], leaf.dtype) if path in converted else leaf
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, merged)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:
            archive: Any = np.load(stream, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: expected a whole .npz archive of plain arrays, found {_one_line(error)}: fetch it again"
        ) from error
    return {name: np.asarray(array) for name, array in arrays.items()}  # members of other kinds are bytes


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # optional, and slow to import
    except ImportError as error:
        raise UserError(
            f"{path}: expected torch, which reads .pth files, found it not installed: install torch, or "
            "convert the file elsewhere: numpy.savez(path, **{name: t.numpy() for name, t in state.items()})"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path}: expected a PyTorch state_dict of plain tensors, found {_one_line(error)}: fetch again"
        ) from error


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _torchvision_names(paths: list[TreePath]) -> dict[TreePath, str]:
    """Maps the paths of the variables that a file holds to torchvision's names."""
    inside = {path: _inside_backbone(path) for path in paths}
    parts = {rest[:2] for rest in inside.values() if rest}
    last = 1 + len({block for block, _ in parts if block.startswith("block_")})
    names = {}
    for path in paths:
        if path[1] in CLASSIFIER:
            names[path] = f"{CLASSIFIER[path[1]]}.{LEAVES[path[-1]]}"
        elif rest := inside[path]:
            names[path] = f"features.{_feature_name(rest, parts, last)}.{LEAVES[path[-1]]}"
    return names


def _inside_backbone(path: TreePath) -> TreePath:
    """The path below the backbone, or the part of it in a task's branch; empty for other variables."""
    depth = next((depth for depth in (1, 2) if path[depth] in ("backbone", "features")), None)
    return () if depth is None else path[depth + 1 :]


def _feature_name(rest: TreePath, parts: set[TreePath], last: int) -> str:
    if rest[0] in ("stem", "last"):
        return f"{0 if rest[0] == 'stem' else last}.{LAYERS[rest[1]]}"
    present = [part for part in BLOCK_PARTS if (rest[0], part) in parts]
    return f"{rest[0].removeprefix('block_')}.block.{present.index(rest[1])}.{LAYERS[rest[2]]}"


def _to_our_layout(value: np.ndarray, path: TreePath) -> np.ndarray:
    """OIHW to what the layer holds: [in, out] for 1x1 convolutions, else HWIO."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value[0, 0] if value.shape[:2] == (1, 1) else value
    return value


def _refuse_misfits(
    names: Mapping[TreePath, str],
    given: Mapping[str, np.ndarray],
    converted: Mapping[TreePath, np.ndarray],
    shapes: Mapping[TreePath, tuple[int, ...]],
    *,
    source: str,
) -> None:
    expected = set(names.values())
    found = {
        "missing": sorted(expected - set(given)),
        "unexpected": sorted(set(given) - expected),
        "of wrong shape": [
            f"{names[path]} {given[names[path]].shape}"
            for path, value in converted.items()
            if value.shape != shapes[path]
        ],
        "not finite": [names[path] for path, value in converted.items() if not np.isfinite(value).all()],
    }
    mistakes = [f"{kind}: {_shortened(listed)}" for kind, listed in found.items() if listed]
    if mistakes:
        raise UserError(
            f"{source}: expected MobileNetV3-Small weights with torchvision's names, found "
            f"{'; '.join(mistakes)}: use the file of this architecture and width"
        )


def _shortened(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
