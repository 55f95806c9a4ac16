"""Dark experience replay: replayed images keep the outputs that the network gave when they were stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax.continual.method import (
    Feed,
    Finished,
    Keep,
    Memory,
    Method,
    Passed,
    StageView,
    Starting,
    Term,
    later,
    refuse_without_exemplars,
    setting,
)
from mtl_jax.continual.network_view import NetworkView
from mtl_jax.continual.replay import Relabelled, Replay
from mtl_jax.continual.replay_buffer import ReplayBuffer
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DER(Method):
    """Replayed images are drawn to the outputs that the network gave when they were stored.

    References:
        Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", 2020.
    """

    weight: float = setting(1.0, "of the squared distance; 0 is off")

    def check_keep(self, location: str, keep: Keep, tasks: Iterable[str]) -> None:
        del tasks
        if self.weight and "paste" in keep and keep["paste"].share:
            raise UserError(
                f"{location} compares replayed images with the outputs that were stored for them, and paste "
                "changes the images; name one of them"
            )

    @classmethod
    def in_stage(cls, keeps: Sequence[Keep], index: int, name: str) -> Method | None:
        configured = keeps[index].get(name)
        return configured or (cls(weight=0.0) if _is_used(keeps, index) else None)

    def refuse(self, stage: StageView, starting: Starting) -> None:
        refuse_without_exemplars(f"{stage.location}.keep.der.weight", self.weight, starting.tasks)

    def feeds(self, stage: StageView, memory: Memory, feeds: list[Feed]) -> list[Feed]:
        """Brings back whole images, as they were stored, with their outputs."""
        del memory

        def with_outputs(feed: Feed) -> Feed:
            names = [label_name(task) for task in stage.stream_tasks(feed.stream)]
            extra = {name: name for name in names if name in feed.source.class_names}
            return feed._replace(augmented=not extra, extra_labels=extra)

        return [with_outputs(feed) for feed in feeds] if self.weight else feeds

    def terms(self, passed: Passed, stage_memory: PyTree | None) -> Iterator[Term]:
        del stage_memory
        for stream in passed.group if self.weight else ():
            for task in passed.labelled[stream]:
                stored_outputs = passed.labels[stream].get(label_name(task))
                if stored_outputs is not None:
                    far = distance(passed.raw[task][passed.rows[stream]], stored_outputs["outputs"])
                    yield Term(task, self.weight * far, {f"{task}/{stream}/output_distance": far})

    def leaves(self, keeps: Sequence[Keep], index: int) -> tuple[str, ...]:
        return ("outputs of exemplars (keep.der of a later stage)",) if _is_used(keeps, index) else ()

    def after(self, stage: StageView, finished: Finished, memory: Memory) -> Memory:
        buffers = dict(memory[Replay.slot])
        for stream in stage.streams if _is_used(stage.keeps, stage.index) else ():
            view = NetworkView(stage, stream, finished.end)
            buffers[stream] = _with_outputs(buffers[stream], view.outputs(buffers[stream]))
        return {**memory, Replay.slot: buffers}

    def expected(self, stage: StageView, memory: Memory, variables: Mapping[str, PyTree]) -> Memory:
        del variables
        sources = dict(memory[Replay.slot])
        for stream in stage.streams if _is_used(stage.keeps, stage.index) else ():
            names = tuple(label_name(task) for task in stage.stream_tasks(stream))
            sources[stream] = Relabelled(sources[stream], names)
        return {**memory, Replay.slot: sources}


def _is_used(keeps: Sequence[Keep], index: int) -> bool:
    """Whether a later stage compares with what this one stores."""
    replay_settings = keeps[index].get("replay")
    return bool(replay_settings and replay_settings.images) and any(
        method.weight for method in later(keeps, index, DER)
    )


def _with_outputs(buffer: ReplayBuffer, outputs: Sequence[Mapping[str, np.ndarray]]) -> ReplayBuffer:
    samples = []
    for sample, raw in zip(buffer.samples, outputs, strict=True):
        output_labels = {label_name(task): {"outputs": value} for task, value in raw.items()}
        samples.append({**sample, "labels": sample["labels"] | output_labels})
    names = {label_name(task): () for task in outputs[0]}
    return ReplayBuffer(tuple(samples), dict(buffer.class_names) | names, buffer.labelled_classes)


def label_name(task: str) -> str:
    """Returns under which label an exemplar holds the outputs of a task."""
    return f"{task}/outputs"


def distance(raw: Float[Array, "batch ..."], stored_outputs: Float[Array, "batch ..."]) -> Float[Array, ""]:
    """The mean squared distance of outputs from those stored.

    Together with the loss on the stored labels, this is DER++; alone, it is DER.

    Args:
        raw: what the head emits for the replayed images now.
        stored_outputs: what it emitted for them when they were stored.

    References:
        Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", 2020, equation 6.
    """
    return jnp.square(raw.astype(jnp.float32) - jax.lax.stop_gradient(stored_outputs).astype(jnp.float32)).mean()
