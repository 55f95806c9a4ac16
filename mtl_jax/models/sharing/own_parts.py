"""Reads what the settings give each task of its own in layers that all share: batch norms above a stride, patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.models.patches import Patches
from mtl_jax.models.sharing.network import PartPatches

NORM_STRIDES = (0, 1, 2, 4, 8, 16, 32)  # px; 0 gives tasks no norms of their own, 1 all of them
MAX_KERNEL = 15  # cells


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `norms_from` and `patches` as the network takes them.

    Args:
        settings: The section "model" of a configuration, whole.

    Raises:
        UserError: A value out of range, or settings that exclude each other.
    """
    stride = _stride(settings)
    kernel = settings["head_kernel"]
    if not isinstance(kernel, int) or not 1 <= kernel <= MAX_KERNEL or kernel % 2 == 0:
        raise UserError(f"model.head_kernel: expected an odd number of cells up to {MAX_KERNEL}, found {kernel!r}")
    patches = _patches(settings)
    if any(part.rank or part.depthwise for part in patches) and not stride:
        raise UserError(
            "model.patches, model.depthwise_patches: each task then passes through the layers by itself, and needs "
            "batch norms of its own; set model.norms_from (8 px, or 32 for those of neck and head alone)"
        )
    if (patches.backbone.rank or patches.backbone.depthwise) and stride >= settings["output_stride"]:
        raise UserError(
            f"model.patches.backbone: no stage lies above model.norms_from, {stride} px; lower it, or patch no backbone"
        )
    return {"norms_from": stride, "patches": patches}


def _stride(settings: Mapping[str, Any]) -> int:
    stride, every = settings["norms_from"], settings["batch_norm_per_task"]
    if stride not in NORM_STRIDES or isinstance(stride, bool):
        expected = ", ".join(map(str, NORM_STRIDES))
        raise UserError(f"model.norms_from: expected a stride in px, one of {expected}, found {stride!r}")
    if every and stride not in (0, 1):
        raise UserError(
            f"model.norms_from: {stride} px and model.batch_norm_per_task=True, which is 1 px, exclude each other; "
            "set one of them"
        )
    return 1 if every else stride


def _patches(settings: Mapping[str, Any]) -> PartPatches:
    ranks, depthwise = dict(settings["patches"]), dict(settings["depthwise_patches"])
    for name, given in (("patches", ranks), ("depthwise_patches", depthwise)):
        if unknown := sorted(set(given) - set(PartPatches._fields)):
            raise UserError(f"model.{name}: expected {', '.join(PartPatches._fields)}, found {', '.join(unknown)}")
    for part, rank in ranks.items():
        if not isinstance(rank, int) or rank < 0:
            raise UserError(f"model.patches.{part}: expected a rank, a whole number from 0, found {rank!r}")
    return PartPatches(
        **{part: Patches(ranks.get(part, 0), bool(depthwise.get(part, False))) for part in PartPatches._fields}
    )
