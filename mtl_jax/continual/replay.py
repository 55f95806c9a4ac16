"""Replay: a few exemplars of an old stream, kept as decoded samples and trained on together with the new one."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, PyTree, UInt8

from mtl_jax.continual import exemplars
from mtl_jax.continual.method import (
    Feed,
    Finished,
    Keep,
    Memory,
    Method,
    Phase,
    StageTasks,
    StageView,
    later,
    refuse_without_exemplars,
    setting,
)
from mtl_jax.continual.negatives import WithNegatives, labels_boxes_alone
from mtl_jax.continual.network_view import NetworkView
from mtl_jax.data import transforms, warp
from mtl_jax.data.sources.base import Fields, Sample, Source, Subset
from mtl_jax.errors import UserError

EMPTY = np.frombuffer(b"{}", np.uint8)
SELECTIONS = ("random", "reservoir", "class_balanced", "herding", "diverse", "hard")
CANDIDATES = 2000  # training images that exemplars are chosen among; decoding more would take minutes


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
    negatives: bool = setting(False, "exemplars join this stage's streams of boxes, as images without their classes")

    def refuse(
        self,
        stage: StageView,
        tasks: StageTasks,
        memory: Memory,
        variables: Mapping[str, PyTree],
        phases: Iterable[Phase],
    ) -> None:
        del variables, phases
        if not self._old_buffers(stage, memory):  # one without images has nothing to replay
            refuse_without_exemplars(f"{stage.location}.keep.replay.batch_size", self.batch_size, tasks)
        if self.negatives:
            self._refuse_negatives(stage, memory)

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
        """Returns the exemplars of streams that the stage does not train on."""
        return {stream: buffer for stream, buffer in memory[self.slot].items() if stream not in stage.streams}

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
        return fill(
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
        return {stream: to_tree(buffer) for stream, buffer in buffers.items()}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Mapping[str, ReplayBuffer]:
        return {stream: from_tree(buffer_tree) for stream, buffer_tree in tree.items()}


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


@runtime_checkable
class Describe(Protocol):
    """Outputs of the network for a source's samples, for the selections that need them."""

    def features(self, source: Source) -> Float[np.ndarray, "samples channels"]:
        """Returns one vector for each sample."""
        ...

    def losses(self, source: Source) -> Float[np.ndarray, "samples"]:
        """Returns one loss for each sample."""
        ...


@dataclasses.dataclass(frozen=True)
class ReplayBuffer:
    """Exemplars of one stream; a source like the one they were taken from."""

    samples: tuple[Sample, ...]
    class_names: Mapping[str, tuple[str, ...]]
    # Label name -> those of its classes that were looked for, where they are not all.
    labelled_classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def size_bytes(self) -> int:
        """Bytes of all images and labels."""
        return sum(map(sample_bytes, self.samples))


def sample_bytes(sample: Sample) -> int:
    """Bytes of a sample's image and labels.

    Args:
        sample: as a source returns it.

    Returns:
        The number of bytes.
    """
    fields = [array for label in sample["labels"].values() for array in label.values()]
    return sum(np.asarray(array).nbytes for array in (sample["image"], *fields))


def fill(
    source: Source,
    *,
    count: int,
    selection: str,
    generator: np.random.Generator,
    describe: Describe | None = None,
    max_side_px: int | None = None,
    max_bytes: int | None = None,
) -> ReplayBuffer:
    """Takes exemplars from a source.

    Args:
        source: of the old stream.
        count: how many exemplars at most.
        selection: one of `SELECTIONS`, the functions of `exemplars`. Only "random" and "reservoir" do without reading
            every sample.
        generator: source of randomness: the same state chooses the same exemplars.
        describe: what the network makes of the samples; "herding", "diverse" and "hard" need it.
        max_side_px: exemplars with a longer side are downscaled to it, with their labels.
        max_bytes: bound on the bytes of all exemplars together; those that do not fit are left out.

    Returns:
        The buffer.

    Raises:
        UserError: if the selection is unknown, nothing can be taken, or no exemplar fits.
    """
    if selection not in SELECTIONS:
        raise UserError(f'expected selection to be one of {", ".join(SELECTIONS)}, found "{selection}"')
    if count < 1 or len(source) == 0:
        raise UserError(
            f"expected one exemplar or more to keep, found count={count} of {len(source)} samples; "
            "raise the count or turn replay off"
        )
    indices = _select(source, count, selection, generator, describe)
    samples: list[Sample] = []
    used_bytes = needed_bytes = 0
    for index in indices.tolist():
        exemplar = downscale(source[index], max_side_px)
        needed_bytes = sample_bytes(exemplar)
        if max_bytes is None or used_bytes + needed_bytes <= max_bytes:
            samples.append(exemplar)
            used_bytes += needed_bytes
    if not samples:
        raise UserError(
            f"expected room for at least one exemplar, found a limit of {max_bytes} bytes where the last one "
            f"needs {needed_bytes}; raise the limit or lower max_side_px"
        )
    labelled = dict(getattr(source, "labelled_classes", {}))
    return ReplayBuffer(tuple(samples), dict(source.class_names), labelled)


def _select(
    source: Source, count: int, selection: str, generator: np.random.Generator, describe: Describe | None
) -> Int[np.ndarray, "chosen"]:
    if selection == "random":
        return exemplars.random(len(source), count, generator=generator)
    if selection == "reservoir":
        return exemplars.reservoir(range(len(source)), count, generator=generator)
    if selection == "class_balanced":
        return exemplars.class_balanced(_classes(source), count, generator=generator)
    if describe is None:
        raise UserError(f'expected what the network makes of the samples for selection "{selection}", found none')
    if selection == "hard":
        return exemplars.hard(describe.losses(source), count)
    if selection == "diverse":
        return exemplars.diverse(describe.features(source), count)
    classes = _classes(source)
    single = all(len(class_set) == 1 for class_set in classes)  # a class per image: every class is herded by itself
    groups = [next(iter(class_set)) for class_set in classes] if single else None
    return exemplars.herding(describe.features(source), count, groups=groups)


def _classes(source: Source) -> list[set[int]]:
    return [exemplars.sample_classes(source[index]) for index in range(len(source))]


def downscale(sample: Sample, max_side_px: int | None) -> Sample:
    """A copy of a sample whose longer side is at most `max_side_px`; its labels follow the image.

    Args:
        sample: as a source returns it.
        max_side_px: of the result; None keeps the size.

    Returns:
        The copy, which shares no memory with the sample.
    """
    height, width = sample["image"].shape[:2]
    ratio = 1.0 if max_side_px is None else max_side_px / max(height, width)
    if ratio < 1.0:
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        sample = transforms.place(sample, warp.stretch(height, width, size=size), size=size)
    return copy.deepcopy(sample)


def to_tree(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """The whole buffer as one array of bytes, for a checkpoint.

    One array (a NumPy `.npz` archive) rather than one per field: boxes may be empty, and stores of arrays
    refuse arrays without elements and are slow with thousands of small ones.

    Args:
        buffer: any buffer.

    Returns:
        {"npz": u8[bytes]}
    """
    arrays = {"class_names": _to_bytes(json.dumps(dict(buffer.class_names)))}
    if buffer.labelled_classes:
        arrays["labelled_classes"] = _to_bytes(json.dumps(dict(buffer.labelled_classes)))
    for number, sample in enumerate(buffer.samples):
        arrays[f"{number}/image"] = sample["image"]
        arrays[f"{number}/id"] = _to_bytes(sample["id"])
        for name, fields in sample["labels"].items():
            arrays |= {f"{number}/labels/{name}/{field}": array for field, array in fields.items()}
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]  # a false overload match
    return {"npz": np.frombuffer(archive.getvalue(), dtype=np.uint8)}


def from_tree(tree: Mapping[str, Any]) -> ReplayBuffer:
    """The inverse of `to_tree`, exact.

    Args:
        tree: as restored from a checkpoint.

    Returns:
        The buffer.
    """
    with np.load(io.BytesIO(np.asarray(tree["npz"]).tobytes()), allow_pickle=False) as archive:
        arrays = {path: archive[path] for path in archive.files}
    class_names, labelled = (
        {name: tuple(of) for name, of in json.loads(_to_text(arrays.pop(key, EMPTY))).items()}
        for key in ("class_names", "labelled_classes")
    )
    count = sum(path.endswith("/id") and path.count("/") == 1 for path in arrays)
    labels: list[dict[str, Fields]] = [{} for _ in range(count)]
    for path, array in arrays.items():
        number, *_ = path.split("/")
        if path.startswith(f"{number}/labels/"):
            # A label's name may hold a slash, a field's does not.
            name, field = path.removeprefix(f"{number}/labels/").rsplit("/", 1)
            labels[int(number)].setdefault(name, {})[field] = array
    samples = tuple(
        Sample(image=arrays[f"{i}/image"], labels=labels[i], id=_to_text(arrays[f"{i}/id"])) for i in range(count)
    )
    return ReplayBuffer(samples, class_names, labelled)


def _to_bytes(text: str) -> UInt8[np.ndarray, "bytes"]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _to_text(array: UInt8[np.ndarray, "bytes"]) -> str:
    return array.tobytes().decode()
