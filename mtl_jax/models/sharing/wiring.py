"""The ways to share a network between tasks, by name, each made of the same backbone, neck and head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import flax.linen as nn

from mtl_jax.config.model_settings import COMPONENTS, SHARE_ALL, ModelSettings
from mtl_jax.errors import UserError
from mtl_jax.models.backbones.backbone import BackboneMaker
from mtl_jax.models.head import Head
from mtl_jax.models.patches import Patches
from mtl_jax.models.sharing.columns import ColumnsNetwork, CrossStitchNetwork, ProgressiveNetwork
from mtl_jax.models.sharing.divided import DividedBackbone
from mtl_jax.models.sharing.network import BranchedNetwork, MultiTaskNetwork, PartPatches
from mtl_jax.models.sharing.taskwise import AdapterNetwork, AttentionNetwork, ExpertsNetwork, TaskwiseNetwork
from mtl_jax.tasks.base import Task

Network = MultiTaskNetwork | BranchedNetwork | ColumnsNetwork | TaskwiseNetwork
T = TypeVar("T")


def once_a_network(function: Callable[[Network], T]) -> Callable[[Network], T]:
    """Keeps the results of the last networks; type checkers do not see that Flax modules can be hashed."""
    return cast("Callable[[Network], T]", functools.lru_cache(maxsize=8)(function))


class PartFactories(NamedTuple):
    """Make the parts of a network."""

    backbone: BackboneMaker
    neck: Callable[[ModelSettings], nn.Module]  # takes the network's settings, or those of a branch
    head: Callable[[ModelSettings, tuple[Task, ...]], Head]


@dataclasses.dataclass(frozen=True)
class PartMaker:
    """Makes a neck or a head; equal where what it makes is, so that equal networks are traced once."""

    part: nn.Module

    def __call__(self) -> Any:
        """Returns the part, of no network yet."""
        return self.part.clone(parent=None)


@dataclasses.dataclass(frozen=True)
class PartOfTaskMaker:
    """As `PartMaker`, of each task."""

    parts: tuple[tuple[str, nn.Module], ...]  # by task

    def __call__(self, task: Task) -> Any:
        """Returns the task's part, of no network yet."""
        return dict(self.parts)[task.name].clone(parent=None)


def wire(
    settings: ModelSettings,
    branches: Mapping[str, ModelSettings],
    makers: PartFactories,
    tasks: tuple[Task, ...],
) -> Network:
    """Makes the network that the settings name.

    Args:
        settings: Of the network.
        branches: Task -> the settings of what it has for itself.
        makers: Of its parts.
        tasks: All that the network will ever emit.

    Raises:
        UserError: Settings that exclude each other.
    """
    sharing = settings.sharing
    if sharing == "hard":
        return _hard(settings, branches, makers, tasks)
    only_hard = (("share_until", SHARE_ALL, settings.share_until), ("norms_from", 0, settings.norms_from))
    for name, default, setting in only_hard:
        if setting != default:
            raise UserError(
                f"config.model.{name}: expected {default!r} with sharing {sharing!r}, found {setting!r}, a choice of "
                'sharing "hard"'
            )
    if sharing in COLUMNS:
        make_neck, make_head = _makers_of_tasks(branches, makers, tasks)
        return COLUMNS[sharing](makers.backbone, make_neck=make_neck, make_head=make_head, tasks=tasks)
    common: dict[str, Any] = {"make_neck": PartMaker(makers.neck(settings))}
    common |= {"make_head": PartMaker(makers.head(settings, tasks))}
    if sharing in EXPERTS:
        common |= {"experts": settings.experts, "own_experts": sharing == "cgc"}
    return TASKWISE[sharing](make_backbone=makers.backbone, tasks=tasks, **common)


COLUMNS = {"independent": ColumnsNetwork, "cross_stitch": CrossStitchNetwork, "progressive": ProgressiveNetwork}
EXPERTS = {"mmoe": ExpertsNetwork, "cgc": ExpertsNetwork}
TASKWISE = {"series_adapters": AdapterNetwork, "attention": AttentionNetwork, **EXPERTS}
WAYS = ("hard", *COLUMNS, *TASKWISE)


def has_branches(settings: ModelSettings) -> bool:
    """Whether each task has a neck and a head for itself."""
    return settings.share_until != SHARE_ALL or settings.sharing in COLUMNS


def _makers_of_tasks(
    branches: Mapping[str, ModelSettings], makers: PartFactories, tasks: tuple[Task, ...]
) -> tuple[PartOfTaskMaker, PartOfTaskMaker]:
    """The makers of each task's own neck and head."""
    necks = tuple((task.name, makers.neck(branches[task.name])) for task in tasks)
    heads = tuple((task.name, makers.head(branches[task.name], (task,))) for task in tasks)
    return PartOfTaskMaker(necks), PartOfTaskMaker(heads)


def _hard(
    settings: ModelSettings,
    branches: Mapping[str, ModelSettings],
    makers: PartFactories,
    tasks: tuple[Task, ...],
) -> Network:
    stride = settings.share_until
    if not isinstance(stride, int):
        divided = settings.norms_from
        backbone = DividedBackbone(makers.backbone, divided or 1, parent=None)
        components = backbone, makers.neck(settings), makers.head(settings, tasks)
        return MultiTaskNetwork(*components, tasks, divided > 0, _patches(settings))
    if settings.norms_from:
        raise UserError(
            f"config.model.norms_from: expected 0 with share_until {stride}, as the branches have batch norms of their "
            f"own, found {settings.norms_from} px; share all, or set neither"
        )
    if stride >= settings.output_stride:
        raise UserError(
            f"config.model.share_until: expected less than output_stride, {settings.output_stride} px, beyond which "
            f"nothing is left for the branches, found {stride} px; share less, or all"
        )
    return BranchedNetwork(
        makers.backbone(until=stride),
        dataclasses.replace(makers.backbone, after=stride),
        *_makers_of_tasks(branches, makers, tasks),
        tasks,
    )


def _patches(settings: ModelSettings) -> PartPatches:
    ranks, depthwise = settings.patches, settings.depthwise_patches
    return PartPatches(
        **{component: Patches(ranks.get(component, 0), depthwise.get(component, False)) for component in COMPONENTS}
    )


def whole_backbone(model: Network) -> nn.Module:
    """Returns the backbone that a network is made of, by itself."""
    if isinstance(model, MultiTaskNetwork):
        return model.backbone.make_backbone()
    return model.upper(after=1) if isinstance(model, BranchedNetwork) else model.make_backbone()
