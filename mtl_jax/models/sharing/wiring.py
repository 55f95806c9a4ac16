"""The ways to share a network between tasks, by name, each made of the same backbone, neck and head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.backbone import BackboneMaker
from mtl_jax.models.head import Head
from mtl_jax.models.sharing.columns import ColumnsNetwork, CrossStitchNetwork, ProgressiveNetwork
from mtl_jax.models.sharing.divided import DividedBackbone
from mtl_jax.models.sharing.network import BranchedNetwork, MultiTaskNetwork
from mtl_jax.models.sharing.taskwise import AdapterNetwork, AttentionNetwork, ExpertsNetwork, TaskwiseNetwork
from mtl_jax.tasks.base import Task

Network = MultiTaskNetwork | BranchedNetwork | ColumnsNetwork | TaskwiseNetwork

SHARE_ALL = "all"
SHARE_CHOICES = (SHARE_ALL, "stage_0", "stage_1", "stage_2", "stage_3")  # stage k ends at stride 2 ** (k + 1)


class PartFactories(NamedTuple):
    """Make the parts of a network."""

    backbone: BackboneMaker
    neck: Callable[[Mapping[str, Any]], nn.Module]  # takes the network's settings, or those of a branch
    head: Callable[[Mapping[str, Any], tuple[Task, ...]], Head]


def wire(
    settings: Mapping[str, Any],
    branches: Mapping[str, Mapping[str, Any]],
    makers: PartFactories,
    tasks: tuple[Task, ...],
) -> Network:
    """Makes the network that the settings name.

    Args:
        settings: The section "model" of a configuration, whole.
        branches: Task -> the settings of what it has for itself.
        makers: Of its parts.
        tasks: All that the network will ever emit.

    Raises:
        UserError: Settings that exclude each other.
    """
    sharing = settings["sharing"]
    if sharing == "hard":
        return _hard(settings, branches, makers, tasks)
    for name, plain in (("share_until", SHARE_ALL), ("norms_from", 0)):
        if settings[name] != plain:
            raise UserError(
                f"model.{name}: expected {plain!r} where model.sharing is {sharing!r}, found {settings[name]!r}: it "
                'is a choice of sharing "hard"'
            )
    if sharing in COLUMNS:
        own = {"make_neck": lambda task: makers.neck(branches[task.name])}
        own |= {"make_head": lambda task: makers.head(branches[task.name], (task,))}
        return COLUMNS[sharing](make_backbone=makers.backbone, tasks=tasks, **own)
    common = {"make_neck": lambda: makers.neck(settings), "make_head": lambda: makers.head(settings, tasks)}
    if sharing in EXPERTS:
        common |= {"experts": settings["experts"], "own_experts": sharing == "cgc"}
    return TASKWISE[sharing](make_backbone=makers.backbone, tasks=tasks, **common)


COLUMNS = {"independent": ColumnsNetwork, "cross_stitch": CrossStitchNetwork, "progressive": ProgressiveNetwork}
EXPERTS = {"mmoe": ExpertsNetwork, "cgc": ExpertsNetwork}
TASKWISE = {"series_adapters": AdapterNetwork, "attention": AttentionNetwork, **EXPERTS}
FORMER_NAMES = {"adapters": "series_adapters"}  # of old pages and checkpoints
WAYS = ("hard", *COLUMNS, *TASKWISE)


def has_branches(settings: Mapping[str, Any]) -> bool:
    """Whether each task has a neck and a head for itself."""
    return settings["share_until"] != SHARE_ALL or settings["sharing"] in COLUMNS


def _hard(
    settings: Mapping[str, Any],
    branches: Mapping[str, Mapping[str, Any]],
    makers: PartFactories,
    tasks: tuple[Task, ...],
) -> Network:
    if settings["share_until"] == SHARE_ALL:
        divided = settings["norms_from"]
        backbone = DividedBackbone(makers.backbone, divided or 1, parent=None)
        parts = backbone, makers.neck(settings), makers.head(settings, tasks)
        return MultiTaskNetwork(*parts, tasks, divided > 0, settings["patches"])
    if settings["norms_from"]:
        raise UserError(
            "model.norms_from, model.batch_norm_per_task: the branches have batch norms of their own; share all, or "
            "set neither"
        )
    stride = 2 ** SHARE_CHOICES.index(settings["share_until"])
    if stride >= settings["output_stride"]:
        raise UserError(
            f"model.share_until: {settings['share_until']} ends at stride {stride} px, output_stride is "
            f"{settings['output_stride']}: nothing is left for the branches; share less, or all"
        )
    return BranchedNetwork(
        makers.backbone(until=stride),
        functools.partial(makers.backbone, after=stride),
        lambda name: makers.neck(branches[name]),
        lambda task: makers.head(branches[task.name], (task,)),
        tasks,
    )


def whole_backbone(model: Network) -> nn.Module:
    """Returns the backbone that a network is made of, by itself."""
    if isinstance(model, MultiTaskNetwork):
        return model.backbone.make_backbone()
    return model.upper(after=1) if isinstance(model, BranchedNetwork) else model.make_backbone()
