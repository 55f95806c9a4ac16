"""Loads a backbone's weights under torchvision's names, from .npz or .pth."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import efficientnet, mobilenet_v3, torch_file

BLOCK_PARTS = (
    "expand",
    "depthwise",
    "squeeze_excite",
    "project",
)  # in torchvision's order; some are left out
LAYERS = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
MAX_BYTES = 1 << 29  # of an unpacked file; the largest published backbone has 22 MB
NAMES_SHOWN = 4  # of each kind of mistake, so that the message stays one readable line


class Architecture(NamedTuple):
    """How torchvision names a network's parts."""

    title: str
    blocks: tuple[str, ...]  # of block_1, block_2 …, below "features"
    classifier: Mapping[str, str]  # of the layers after the features

    @property
    def last(self) -> int:
        """The number of the last convolution, below "features"."""
        return int(self.blocks[-1].split(".")[0]) + 1


def _mobilenet_v3(title: str, rows: tuple[mobilenet_v3.Row, ...]) -> Architecture:
    numbers = tuple(str(number) for number, _ in enumerate(rows, start=1))
    return Architecture(title, numbers, {"hidden": "classifier.0", "logits": "classifier.3"})


ARCHITECTURES = {
    "mobilenet_v3_small": _mobilenet_v3("MobileNetV3-Small", mobilenet_v3.SMALL),
    "mobilenet_v3_large": _mobilenet_v3("MobileNetV3-Large", mobilenet_v3.LARGE),
    "efficientnet_b0": Architecture(
        "EfficientNet-B0",
        tuple(
            f"{number}.{repeat}"
            for number, stage in enumerate(efficientnet.B0, start=1)
            for repeat in range(stage.repeats)
        ),
        {"logits": "classifier.1"},
    ),
}

Variables = Mapping[str, Any]
TreePath = tuple[str, ...]


def load(variables: Variables, path: str | Path, *, backbone: str = "mobilenet_v3_small") -> dict[str, Any]:
    """Puts a file's weights in place of the backbone's, or of the whole published network's.

    Args:
        variables: {"params", "batch_stats"} of a multi-task network (its backbone is replaced, in every branch), or of
            a whole published network such as `MobileNetV3SmallClassifier`.
        path: A .npz or .pth file of torchvision's `state_dict`. The classifier of a published file is left
            out where the network has none.
        backbone: Name of the network's backbone.

    Returns:
        Variables like those given.

    Raises:
        UserError: No weights of this backbone are published, the file cannot be read, or its names, shapes or values
            do not fit.
    """
    return merge(variables, read_state_dict(path), source=str(path), backbone=backbone)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of named arrays.

    Args:
        path: The file; .npz, .pth or .pt.

    Returns:
        {name: array}.

    Raises:
        UserError: The file is absent, of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a file of pretrained weights, found none; check the path")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pth", ".pt"):
        return _read_pth(path)
    raise UserError(f"{path}: expected pretrained weights in a .npz or .pth file, found another suffix; convert it")


def merge(
    variables: Variables,
    state_dict: Mapping[str, np.ndarray],
    *,
    source: str,
    backbone: str = "mobilenet_v3_small",
) -> dict[str, Any]:
    """Puts named arrays in their places; see `load`.

    Args:
        variables: What to replace in.
        state_dict: {torchvision name: array in PyTorch's layout}.
        source: Where the arrays are from, for the error message.
        backbone: Name of the network's backbone.

    Returns:
        Variables like those given.

    Raises:
        UserError: No weights of this backbone are published, a name is missing or unexpected, an array has the wrong
            shape, or it holds NaN or infinity.
    """
    if backbone not in ARCHITECTURES:
        raise UserError(
            f"{source}: expected weights of a backbone that torchvision publishes, {', '.join(ARCHITECTURES)}, found "
            f"the backbone {backbone}; choose another, or start from random weights with --config.pretrained="
        )
    architecture = ARCHITECTURES[backbone]
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    paths = [tuple(step.key for step in path) for path, _ in leaves]
    names = _torchvision_names(paths, architecture)
    arrays = {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    if not any(name.startswith("classifier.") for name in names.values()):
        arrays = {name: value for name, value in arrays.items() if not name.startswith("classifier.")}
    converted = {path: _to_our_layout(arrays[name], path) for path, name in names.items() if name in arrays}
    shapes = {path: leaf.shape for path, (_, leaf) in zip(paths, leaves, strict=True)}
    _refuse_misfits(names, arrays, converted, shapes, source=source, title=architecture.title)
    filled = [
        jnp.asarray(converted[path], leaf.dtype) if path in converted else leaf
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, filled)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        _refuse_bomb(path)
        with path.open("rb") as stream:
            archive: Any = np.load(stream, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive or header may raise anything
        raise UserError(
            f"{path}: expected a whole .npz archive of plain arrays, found {_one_line(error)}; fetch it again"
        ) from error
    return {name: np.asarray(array) for name, array in arrays.items()}  # members of other kinds are bytes


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    try:
        _refuse_bomb(path)
        return torch_file.read(path)
    except Exception as error:  # a damaged archive may raise anything
        raise UserError(
            f"{path}: expected a PyTorch state_dict of plain tensors, found {_one_line(error)}; fetch again"
        ) from error


def _refuse_bomb(path: Path) -> None:
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes where {MAX_BYTES} are the limit")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _torchvision_names(paths: list[TreePath], architecture: Architecture) -> dict[TreePath, str]:
    """Maps the paths of the variables that a file holds to torchvision's names."""
    inner_paths = {path: _inside_backbone(path) for path in paths}
    blocks = {inner_path[:2] for inner_path in inner_paths.values() if inner_path}
    names = {}
    for path in paths:
        if path[1] in architecture.classifier:
            names[path] = f"{architecture.classifier[path[1]]}.{LEAVES[path[-1]]}"
        elif (inner_path := inner_paths[path]) and not any(name.startswith("patch_") for name in inner_path):
            names[path] = f"features.{_feature_name(inner_path, blocks, architecture)}.{LEAVES[path[-1]]}"
    return names


def _inside_backbone(path: TreePath) -> TreePath:
    """The path below the backbone, or the part of it in a task's branch; empty for other variables."""
    depth = next((depth for depth, name in enumerate(path[:3]) if name in ("backbone", "features")), None)
    return () if depth is None else path[depth + 1 :]


def _feature_name(inner_path: TreePath, blocks: set[TreePath], architecture: Architecture) -> str:
    if inner_path[0] in ("stem", "last"):
        return f"{0 if inner_path[0] == 'stem' else architecture.last}.{LAYERS[inner_path[1]]}"
    block_parts = [block_part for block_part in BLOCK_PARTS if (inner_path[0], block_part) in blocks]
    block = architecture.blocks[int(inner_path[0].removeprefix("block_")) - 1]
    return f"{block}.block.{block_parts.index(inner_path[1])}.{LAYERS[inner_path[2]]}"


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
    arrays: Mapping[str, np.ndarray],
    converted: Mapping[TreePath, np.ndarray],
    shapes: Mapping[TreePath, tuple[int, ...]],
    *,
    source: str,
    title: str,
) -> None:
    expected = set(names.values())
    misfits = {
        "missing": sorted(expected - set(arrays)),
        "unexpected": sorted(set(arrays) - expected),
        "of wrong shape": [
            f"{names[path]} {arrays[names[path]].shape}"
            for path, value in converted.items()
            if value.shape != shapes[path]
        ],
        "not finite": [
            names[path]
            for path, value in converted.items()
            if value.shape == shapes[path] and not (value.dtype.kind in "biuf" and np.isfinite(value).all())
        ],
    }
    mistakes = [f"{kind}: {_shortened(names_listed)}" for kind, names_listed in misfits.items() if names_listed]
    if mistakes:
        raise UserError(
            f"{source}: expected {title} weights with torchvision's names, found "
            f"{'; '.join(mistakes)}; use the file of this architecture and width"
        )


def _shortened(names: list[str]) -> str:
    remainder = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {remainder} more" if remainder > 0 else "")
