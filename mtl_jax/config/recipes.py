"""Settings that belong together: one network whose kernels every task uses, learnt one task after another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

IMAGENET = ("backbone/until_8", "backbone/kernels")  # what ImageNet's features are kept in
EXEMPLARS = 10  # images that a stage leaves to later ones
RETENTION = {"lwf": {"weight": 2.0}, "replay": {"batch_size": 2}}


def share_kernels(config: Any) -> None:
    """Gives each task batch norms above stride 8 and small patches on the shared kernels of neck and head."""
    config.model.update(
        {
            "norms_from": 8,
            "head_convolution": "separable",
            "head_kernel": 5,
            "patches": {"neck": 16, "head": 16},
            "depthwise_patches": {"head": True},
        }
    )


def without_patches(config: Any) -> None:
    """Takes the patches away again."""
    config.model.patches.update({"neck": 0, "head": 0})
    config.model.depthwise_patches.head = False


def one_after_another(order: tuple[str, ...]) -> Mapping[str, dict[str, Any]]:
    """Returns what each stage adds to its settings: what it leaves as it is, and what keeps the older tasks.

    ImageNet's kernels serve every task under batch norms of its own, and stay; so tasks meet in neck and head alone.
    The first stage trains these freely, the later ones move them, held by distillation and replay; the last of three or
    more leaves them as they are, so that its norms, patches and outputs alone are trained.

    Args:
        order: the names of the stages.
    """
    first, *later_tasks = order
    locked = later_tasks[-1:] if len(order) > 2 else []
    moving = [name for name in later_tasks if name not in locked]
    stages: dict[str, dict[str, Any]] = {first: {"freeze": IMAGENET}}
    stages |= {name: {"freeze": IMAGENET, "keep": copy.deepcopy(RETENTION)} for name in moving}
    stages |= {name: {"freeze": (*IMAGENET, "neck/kernels", "head/kernels")} for name in locked}
    for name in (first, *moving[:-1]) if moving else ():  # exemplars of those that a later stage may move
        stages[name].setdefault("keep", {}).setdefault("replay", {})["images"] = EXEMPLARS
    return stages
