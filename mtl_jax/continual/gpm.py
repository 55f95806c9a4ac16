"""Gradient projection memory: later updates are orthogonal to the space of old tasks' features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mtl_jax.continual.held_space import NOTHING, Held, from_tree, project, remember, to_tree
from mtl_jax.continual.method import Finished, Keep, Memory, Method, StageView, Starting, setting
from mtl_jax.errors import UserError
from mtl_jax.models import kernel_inputs
from mtl_jax.models.layers import ByBatch
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import matches, paths


@dataclasses.dataclass(frozen=True)
class GPM(Method):
    """Later updates of the kernels that tasks share leave alone the space in which this stage's features lie.

    References:
        Saha, Garg, Roy, "Gradient Projection Memory for Continual Learning", 2021.
    """

    slot: ClassVar[str] = "gpm"
    nothing: ClassVar[Held] = NOTHING

    energy: float = setting(0.95, "share of the energy of this stage's features that is held; 0 holds none", most=1.0)
    images: int = setting(100, "training images that it is measured on, at the stage's end", least=1.0)
    layers: tuple[str, ...] = setting(
        ("*",), "patterns of the shared parameters that are held; later stages freeze the others"
    )

    @classmethod
    def in_stage(cls, keeps: Sequence[Keep], index: int, name: str) -> Method | None:
        """It acts in every stage after one that named it."""
        holds = any(name in keep and keep[name].energy for keep in keeps[:index])
        return keeps[index].get(name) or (cls(energy=0.0) if holds else None)

    def refuse(self, stage: StageView, starting: Starting) -> None:
        params = starting.variables["params"]
        self._patterns(stage, params)
        before = (method for keep in stage.keeps[: stage.index] for method in keep.values() if isinstance(method, GPM))
        for patterns in (stage_patterns._patterns(stage, params) for stage_patterns in before):
            for phase in starting.phases if patterns else ():
                require_still(
                    starting.memory[self.slot],
                    starting.variables,
                    layers=patterns,
                    frozen=phase.frozen,
                    train_batch_norm=phase.train_batch_norm,
                    tasks=tuple(stage.tasks),
                    location=stage.location,
                )

    def frozen(self, memory: Memory) -> tuple[str, ...]:
        return memory[self.slot].other_params

    def before(self, starting: Starting) -> PyTree | None:
        return starting.memory[self.slot].bases or None

    def project(self, updates: PyTree, stage_memory: PyTree | None) -> PyTree:
        return project(updates, stage_memory) if stage_memory else updates

    def leaves(self, keeps: Sequence[Keep], index: int) -> tuple[str, ...]:
        is_holding = self.energy and index < len(keeps) - 1
        return ("trace of what its kernels read (keep.gpm)",) if is_holding else ()

    def after(self, stage: StageView, finished: Finished, memory: Memory) -> Memory:
        held: Held = memory[self.slot]
        for stream, reader in self._reads(stage, finished.end["params"]).items():
            reader, total, other_paths = jax.jit(reader), {}, ()
            for batch in stage.batches(stream, images=self.images):
                inputs_read = jax.device_get(reader(finished.end, batch["image"]))
                sums = {path: covariance.astype(np.float64) for path, covariance in inputs_read.covariances.items()}
                total, other_paths = (
                    {path: total.get(path, 0.0) + covariance for path, covariance in sums.items()},
                    inputs_read.other_params,
                )
            held = remember(held, total, other_paths, energy=self.energy)
        return {**memory, self.slot: held}

    def expected(self, stage: StageView, memory: Memory, variables: Mapping[str, PyTree]) -> Memory:
        """Which parameters will be held, with bases of one direction."""
        held: Held = memory[self.slot]
        for stream, reader in self._reads(stage, variables["params"]).items():
            size = stage.image_size(stream)
            inputs_read = jax.eval_shape(reader, variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
            new_bases = {
                path: np.ones((*sums.shape[1:3], 1), np.float32) for path, sums in inputs_read.covariances.items()
            }
            held = Held(new_bases | held.bases, tuple(dict.fromkeys([*held.other_params, *inputs_read.other_params])))
        return {**memory, self.slot: held}

    def _patterns(self, stage: StageView, params: PyTree) -> tuple[str, ...]:
        """Patterns of the parameters that the stage's tasks hold in the later stages; none where it holds nothing."""
        if not self.energy:
            return ()
        return shared_layers(
            params, stage.expanded(self.layers), tuple(stage.tasks), location=f"{stage.location}.keep.gpm"
        )

    def _reads(
        self, stage: StageView, params: PyTree
    ) -> dict[str, Callable[[Mapping[str, PyTree], Any], kernel_inputs.KernelInputs]]:
        """Stream -> `(variables, image) -> what its tasks read` of what is held; nothing for the last stage."""
        patterns = self._patterns(stage, params)
        if not patterns or stage.index == len(stage.keeps) - 1:
            return {}

        def is_chosen(path: str) -> bool:
            return owner_of(tuple(path.split("/")), tuple(stage.tasks)) is None and matches(path, patterns)

        def read(stream: str) -> Callable[..., kernel_inputs.KernelInputs]:
            task_names = tuple(stage.stream_tasks(stream))
            return functools.partial(kernel_inputs.covariances, stage.model, tasks=task_names, selects=is_chosen)

        return {stream: read(stream) for stream in stage.streams}

    @staticmethod
    def to_tree(space: Held) -> Mapping[str, Any]:
        return to_tree(space)

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Held:
        return from_tree(tree)


def shared_layers(
    params: PyTree, patterns: tuple[str, ...], tasks: tuple[str, ...], *, location: str
) -> tuple[str, ...]:
    """Checks that patterns name parameters that tasks share.

    Args:
        params: of the network.
        patterns: to check.
        tasks: of the network.
        location: the settings, for the error.

    Returns:
        The patterns.

    Raises:
        UserError: one of them names none.
    """
    shared = [path for path in paths(params) if owner_of(tuple(path.split("/")), tasks) is None]
    for pattern in patterns:
        if not any(matches(path, (pattern,)) for path in shared):
            raise UserError(
                f"{location}.layers: expected patterns of parameters that tasks share, found {pattern!r}; "
                + (
                    f"they lie in {', '.join(dict.fromkeys(path.split('/')[0] for path in shared))}"
                    if shared
                    else f"there is none, so leave {location} out"
                )
            )
    return patterns


def require_still(
    held: Held,
    variables: Mapping[str, PyTree],
    *,
    layers: tuple[str, ...],
    frozen: tuple[str, ...],
    train_batch_norm: ByBatch,
    tasks: tuple[str, ...],
    location: str,
) -> None:
    """Checks that a stage leaves as it is what held kernels read.

    Args:
        held: by the stages before.
        variables: at the stage's beginning.
        layers: patterns of the parameters that are held.
        frozen: patterns that the stage leaves as they are from its first step to its last.
        train_batch_norm: of the stage.
        tasks: of the network.
        location: the stage's settings, for the error.

    Raises:
        UserError: shared parameters other than the held ones are trained, or running statistics move; it says which
            setting helps.
    """
    if not held.bases and not held.other_params:
        return
    for path in paths(variables["params"]):
        if owner_of(tuple(path.split("/")), tasks) is None and not matches(path, (*layers, *frozen)):
            raise UserError(
                f"{location} trains {path}, and what it changes reaches the kernels that keep.gpm of an earlier stage "
                f'holds; freeze it with {location}.freeze, or hold it too with keep.gpm.layers=("*",) of that stage'
            )
    for path in paths(variables["batch_stats"]):
        layer = path.rpartition("/")[0]
        moves = train_batch_norm(layer) if callable(train_batch_norm) else train_batch_norm
        if moves and f"{layer}/scale" in held.other_params:
            raise UserError(
                f"{location} moves the running statistics of {layer}, and with them what the kernels read that "
                "keep.gpm "
                f'of an earlier stage holds; set {location}.train_batch_norm="new_levels" (or "nowhere"), or give each '
                "task batch norms of its own (model.norms_from)"
            )
