"""Replay: a few exemplars of an old stream, trained on together with the new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import PyTree

from mtl_jax.continual import replay_buffer
from mtl_jax.continual.method import (
    Feed,
    Finished,
    Keep,
    Memory,
    Method,
    StageView,
    Starting,
    later,
    refuse_without_exemplars,
    setting,
)
from mtl_jax.continual.negatives import WithNegatives, labels_boxes_alone
from mtl_jax.continual.network_view import NetworkView
from mtl_jax.continual.replay_buffer import CANDIDATES, SELECTIONS, ReplayBuffer
from mtl_jax.data.sources.base import Sample, Source, Subset
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Replay(Method):
    """A few images of each old stream join a stage's batches, with their labels."""

    slot: ClassVar[str] = "replay"
    nothing: ClassVar[Mapping[str, Any]] = {}  # stream -> its buffer

    images: int = setting(0, "kept of each stream of this stage for the later ones; 0 keeps none")
    selection: str = setting(
        "class_balanced",
        "of them; herding takes those near the mean feature, diverse far apart, hard of a large loss",
        choices=SELECTIONS,
    )
    max_side: int = setting(640, "of a kept image", unit="px", least=1.0)
    max_mb: float = setting(
        0.0, "of the kept images of a stream with their labels, decoded; 0 sets no limit", unit="MB"
    )
    batch_size: int = setting(0, "images of each old stream added to every step of this stage; 0 is off")
    weight: float = setting(1.0, "of the loss on replayed labels")
    streams: tuple[str, ...] = setting((), "that are replayed, of the old ones; all of them if empty")
    negatives: bool = setting(False, "exemplars join this stage's streams of boxes, as images without their classes")

    def refuse(self, stage: StageView, starting: Starting) -> None:
        if unknown := [stream for stream in self.streams if stream not in starting.memory[self.slot]]:
            raise UserError(
                f"{stage.location}.keep.replay.streams: expected old streams with exemplars "
                f"({', '.join(starting.memory[self.slot]) or 'there is none'}), found {unknown[0]!r}"
            )
        if not self._old_buffers(stage, starting.memory):  # one without images has nothing to replay
            refuse_without_exemplars(f"{stage.location}.keep.replay.batch_size", self.batch_size, starting.tasks)
        if self.negatives:
            self._refuse_negatives(stage, starting.memory)

    def _refuse_negatives(self, stage: StageView, memory: Memory) -> None:
        location = f"{stage.location}.keep.replay.negatives"
        streams = [stream for stream in stage.streams if labels_boxes_alone(stage, stream)]
        if not streams:
            raise UserError(
                f"{location}: expected a stream that labels boxes alone, found {', '.join(stage.streams)}; leave it out"
            )
        for stream in streams:
            if not self._others_of_task(stage, memory, stream):
                raise UserError(
                    f"{location}: expected exemplars of another stream of boxes, found none; set keep.replay.images of "
                    "an earlier stage"
                )

    def _old_buffers(self, stage: StageView, memory: Memory) -> dict[str, ReplayBuffer]:
        """Returns the exemplars to replay, of streams that the stage does not train on."""
        old = {stream: buffer for stream, buffer in memory[self.slot].items() if stream not in stage.streams}
        return {stream: buffer for stream, buffer in old.items() if not self.streams or stream in self.streams}

    def _others_of_task(self, stage: StageView, memory: Memory, stream: str) -> list[ReplayBuffer]:
        """Returns those of them whose stream labels a task that the given one labels."""
        tasks = set(stage.stream_tasks(stream))
        old = self._old_buffers(stage, memory)
        return [buffer for other, buffer in old.items() if tasks & set(stage.stream_tasks(other))]

    def source(self, stage: StageView, memory: Memory, stream: str, source: Source) -> Source:
        if not self.negatives or not labels_boxes_alone(stage, stream):
            return source
        return WithNegatives(source, self._others_of_task(stage, memory, stream))

    def feeds(self, stage: StageView, memory: Memory, feeds: list[Feed]) -> list[Feed]:
        if not self.batch_size:
            return feeds
        old = self._old_buffers(stage, memory).items()
        return [*feeds, *(Feed(stream, buffer, self.batch_size, self.weight) for stream, buffer in old if len(buffer))]

    def leaves(self, keeps: Sequence[Keep], index: int) -> tuple[str, ...]:
        is_used = any(method.batch_size or method.negatives for method in later(keeps, index, Replay))
        return ("exemplars (keep.replay of a later stage)",) if self.images and is_used else ()

    def after(self, stage: StageView, finished: Finished, memory: Memory) -> Memory:
        if not self.images or stage.index == len(stage.keeps) - 1:
            return memory
        new_buffers = {
            stream: self._exemplars(stage, number, finished.end) for number, stream in enumerate(stage.streams)
        }
        return {**memory, self.slot: memory[self.slot] | new_buffers}

    def _exemplars(self, stage: StageView, number: int, variables: Mapping[str, PyTree]) -> ReplayBuffer:
        stream = stage.streams[number]
        generator = np.random.default_rng([stage.seed, stage.index, number])
        source = stage.source(stream)
        candidates = generator.permutation(len(source))[:CANDIDATES]
        return replay_buffer.fill(
            Subset(source, candidates.tolist()),
            count=self.images,
            selection=self.selection,
            generator=generator,
            describe=NetworkView(stage, stream, variables),
            max_side_px=self.max_side,
            max_bytes=int(self.max_mb * 1e6) or None,
        )

    def expected(self, stage: StageView, memory: Memory, variables: Mapping[str, PyTree]) -> Memory:
        del variables
        if not self.images:
            return memory
        return {**memory, self.slot: memory[self.slot] | {stream: stage.source(stream) for stream in stage.streams}}

    @staticmethod
    def to_tree(buffers: Mapping[str, ReplayBuffer]) -> Mapping[str, Any]:
        return {stream: replay_buffer.to_tree(buffer) for stream, buffer in buffers.items()}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Mapping[str, ReplayBuffer]:
        return {stream: replay_buffer.from_tree(buffer_tree) for stream, buffer_tree in tree.items()}


class Relabelled:
    """A source that has labels more, as far as their names go: stands in for what a stage is yet to store."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self._source = source
        self.class_names = {**source.class_names, **dict.fromkeys(names, ())}
        self.labelled_classes = getattr(source, "labelled_classes", {})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]
