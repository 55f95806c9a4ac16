"""Input pipeline from a source to batches: element i depends on the seed and i alone, so any step can be the first."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, overload

import grain
import numpy as np
from absl import flags
from jaxtyping import Float32

from mtl_jax.data import partial
from mtl_jax.data.cache import cached
from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.mosaic import mosaic
from mtl_jax.data.sources.base import Fields, Sample, Source
from mtl_jax.data.transforms import Augment, apply
from mtl_jax.data.warp import fit, warp
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Geometry

XLA_ALIGNMENT = 64  # bytes
NO_IGNORE_LABELS: Mapping[str, int] = MappingProxyType({})
ALL_CLASSES: Mapping[str, partial.Classes] = MappingProxyType({})


class EvalBatch(NamedTuple):
    """Fitted images, with the labels at original resolution; `len(ids)` of the images are real."""

    image: Float32[np.ndarray, "batch height width 3"]  # the last one is repeated to fill the batch
    ids: list[str]
    targets: list[dict[str, Fields]]  # per image: task -> the sample's own labels
    geometries: list[Geometry]


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Returns the number of batches that make about one pass over so many samples, at least 1."""
    return max(1, size // batch_size)


def train_batches(
    source: Source,
    *,
    labels: Mapping[str, str],
    image_size: int | tuple[int, int],
    batch_size: int,
    augment: Augment,
    seed: int,
    max_boxes: int = 64,
    cache_bytes: int = 0,
    ignore_labels: Mapping[str, int] = NO_IGNORE_LABELS,
    classes: Mapping[str, partial.Classes] = ALL_CLASSES,
    share: tuple[int, int] = (0, 1),
) -> grain.MapDataset:
    """Returns endless, random-access batches; every sample comes once before any comes again.

    Args:
        source: of samples. A `cache.CachedSource` keeps its own limit.
        labels: task name -> the source's label name.
        image_size: height and width of the network's input, px.
        batch_size: images per batch.
        augment: random changes.
        seed: of order and augmentation; element i is a function of (seed, i), whatever the threads.
        max_boxes: rows of a detection label; the largest boxes stay.
        cache_bytes: limit of the memory for decoded samples.
        ignore_labels: task name -> the value of void pixels in its masks; 255 (65535 of u16 masks) by default.
        classes: task name -> its classes as the source sees them; by default the source's are the task's.
        share: which part of every batch to make, and of how many equal parts that follow each other in the batch.

    Returns:
        Elements {"image": f32[batch, height, width, 3] in 0..1, "labels": {task: labels}, "ids": of the samples}.

    Raises:
        UserError: the source is empty or has no such label.
    """
    _check(source, labels)
    load = _Load(cached(source, cache_bytes), tuple(dict.fromkeys(labels.values())), _pair(image_size), augment)
    order_seed, augment_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    host_index, host_count = share
    samples = grain.MapDataset.range(len(source)).shuffle(seed=order_seed).repeat().random_map(load, seed=augment_seed)
    collate = functools.partial(
        _collate,
        labels=dict(labels),
        max_boxes=max_boxes,
        ignore_labels=dict(ignore_labels),
        classes=dict(classes),
    )
    batches = samples.batch(batch_size // host_count, batch_fn=collate)
    return batches if host_count == 1 else batches[host_index::host_count]


def without_ids(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a batch, which is what a jitted function takes."""
    return {name: entry for name, entry in batch.items() if name != "ids"}


def examples(
    source: Source,
    *,
    labels: Mapping[str, str],
    image_size: int | tuple[int, int],
    max_boxes: int = 64,
    crop: bool = False,
    ignore_labels: Mapping[str, int] = NO_IGNORE_LABELS,
    classes: Mapping[str, partial.Classes] = ALL_CLASSES,
) -> Iterator[dict[str, Any]]:
    """Yields a source's examples in its order, unchanged but for their size, without a batch axis.

    Args:
        source: of samples.
        labels: task name -> the source's label name.
        image_size: height and width of the network's input, px.
        max_boxes: rows of a detection label; the largest boxes stay.
        crop: images fill the input, instead of lying whole between grey bars.
        ignore_labels: as for `train_batches`.
        classes: as for `train_batches`.

    Raises:
        UserError: the source is empty or has no such label.
    """
    _check(source, labels)
    generator = np.random.default_rng(0)  # draws nothing: every augmentation is off
    for index in range(len(source)):
        sample = apply(source[index], generator, size=_pair(image_size), augment=Augment(crop=crop))
        batch = _collate([sample], labels=labels, max_boxes=max_boxes, ignore_labels=ignore_labels, classes=classes)
        by_task = {task: {name: field[0] for name, field in fields.items()} for task, fields in batch["labels"].items()}
        yield {"image": batch["image"][0], "labels": by_task}


class EvalBatches(Sequence[EvalBatch]):
    """Batches over a whole source in its order."""

    def __init__(
        self,
        source: Source,
        labels: Mapping[str, str],
        size: tuple[int, int],
        batch_size: int,
        crop: bool,
        ignore_labels: Mapping[str, int] = NO_IGNORE_LABELS,
        classes: Mapping[str, partial.Classes] = ALL_CLASSES,
    ) -> None:
        self._source, self._labels, self._batch_size = source, dict(labels), batch_size
        self._ignore_labels, self._classes = dict(ignore_labels), dict(classes)
        self._size, self._crop = size, crop

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    @overload
    def __getitem__(self, index: int) -> EvalBatch: ...

    @overload
    def __getitem__(self, index: slice) -> list[EvalBatch]: ...

    def __getitem__(self, index: int | slice) -> EvalBatch | list[EvalBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = range(len(self))[index] * self._batch_size  # raises IndexError, counts negative ones from the end
        samples = [self._source[i] for i in range(first, min(first + self._batch_size, len(self._source)))]
        images = [sample["image"] for sample in samples]
        batch, geometries = fitted(images, size=self._size, batch_size=self._batch_size, crop=self._crop)
        targets = [
            {
                task: _of_task(sample["labels"][label], self._ignore_labels.get(task), self._classes.get(task))
                for task, label in self._labels.items()
            }
            for sample in samples
        ]
        return EvalBatch(batch, [sample["id"] for sample in samples], targets, geometries)


def eval_batches(
    source: Source,
    *,
    labels: Mapping[str, str],
    image_size: int | tuple[int, int],
    batch_size: int,
    crop: bool = False,
    ignore_labels: Mapping[str, int] = NO_IGNORE_LABELS,
    classes: Mapping[str, partial.Classes] = ALL_CLASSES,
) -> EvalBatches:
    """Returns the batches of one pass over a source, in its order, without augmentation.

    Args:
        source: of samples.
        labels: task name -> the source's label name.
        image_size: height and width of the network's input, px.
        batch_size: images per batch; the last batch is filled by repeating its last image.
        crop: images fill the input, instead of lying whole between grey bars.
        ignore_labels: as for `train_batches`.
        classes: as for `train_batches`.

    Raises:
        UserError: the source is empty or has no such label.
    """
    _check(source, labels)
    return EvalBatches(source, labels, _pair(image_size), batch_size, crop, ignore_labels, classes)


def fitted(
    images: Sequence[np.ndarray], *, size: tuple[int, int], batch_size: int, crop: bool = False
) -> tuple[Float32[np.ndarray, "batch height width 3"], list[Geometry]]:
    """Fits u8 RGB images into one batch, whose last one is repeated to fill it, and says where each went."""
    placements = [fit(*image.shape[:2], size=size, crop=crop) for image in images]
    warped = [warp(image, placement, size=size) for image, placement in zip(images, placements, strict=True)]
    warped += warped[-1:] * (batch_size - len(warped))
    geometries = [Geometry(*location, *image.shape[:2]) for image, location in zip(images, placements, strict=True)]
    return _unit_images(warped), geometries


def prefetch(
    dataset: grain.MapDataset | Sequence[Any], *, start: int = 0, threads: int = 1, processes: int = 0, buffer: int = 4
) -> grain.DatasetIterator:
    """Returns an iterator that prepares elements ahead, in order.

    Args:
        dataset: from `train_batches` or `eval_batches`.
        start: the first element; a resumed run continues at its step.
        threads: that prepare elements; 0 prepares each on request.
        processes: that prepare elements in the place of this one, each with so many threads and a cache of its own.
        buffer: elements ready or in work at a time. A batch of 8 at 512 px takes 25 MB.

    Returns:
        The iterator; `close()` ends its threads, `get_state()` and `set_state()` save and set its position.
    """
    if not isinstance(dataset, grain.MapDataset):
        dataset = grain.MapDataset.source(dataset)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads) if threads else 0)
    if processes:
        if not flags.FLAGS.is_parsed():  # Grain's processes read flags of absl, which this program's are not
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=1)
        return iter(dataset[start:].to_iter_dataset(options).mp_prefetch(workers))
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


class _Load:
    """index, rng -> augmented sample, still in u8."""

    def __init__(self, source: Source, names: tuple[str, ...], size: tuple[int, int], augment: Augment) -> None:
        self._source, self._names, self._size, self._augment = source, names, size, augment

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        if rng.random() < self._augment.mosaic_probability:
            indices = rng.integers(len(self._source), size=3).tolist()
            samples = [self._read_sample(i) for i in (index, *indices)]
            return mosaic(samples, rng, size=self._size, augment=self._augment)
        return apply(self._read_sample(index), rng, size=self._size, augment=self._augment)

    def _read_sample(self, index: int) -> Sample:
        sample = self._source[index]
        labels = {name: sample["labels"][name] for name in self._names}
        return {"image": sample["image"], "labels": labels, "id": sample["id"]}


def _collate(
    samples: Sequence[Sample],
    *,
    labels: Mapping[str, str],
    max_boxes: int,
    ignore_labels: Mapping[str, int],
    classes: Mapping[str, partial.Classes],
) -> dict[str, Any]:
    by_task = {
        task: _stack(
            [_of_task(sample["labels"][label], ignore_labels.get(task), classes.get(task)) for sample in samples],
            max_boxes,
        )
        for task, label in labels.items()
    }
    return {
        "image": _unit_images([sample["image"] for sample in samples]),
        "labels": by_task,
        "ids": tuple(sample["id"] for sample in samples),
    }


def _of_task(fields: Fields, ignore_label: int | None, classes: partial.Classes | None) -> Fields:
    in_terms = fields if classes is None else partial.in_task_terms(fields, classes)
    return shape_of(in_terms).with_void(in_terms, ignore_label)


def _stack(labels: Sequence[Fields], max_boxes: int) -> Fields:
    return shape_of(labels[0]).stack(labels, max_boxes)


def _unit_images(images: Sequence[np.ndarray]) -> np.ndarray:
    batch = _aligned((len(images), *images[0].shape))
    for i, image in enumerate(images):
        np.multiply(image, np.float32(1 / 255), out=batch[i])
    return batch


def _aligned(shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """An array that XLA on a CPU takes as it is; what begins elsewhere it copies, in a step's own time."""
    count = math.prod(shape)
    numbers = np.empty(count + XLA_ALIGNMENT // 4, np.float32)
    first = -numbers.ctypes.data % XLA_ALIGNMENT // 4
    return numbers[first : first + count].reshape(shape)


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _check(source: Source, labels: Mapping[str, str]) -> None:
    if len(source) == 0:
        raise UserError("expected a source with samples, found an empty one; check its folder and split")
    for task, label in labels.items():
        if label not in source.class_names:
            names = ", ".join(source.class_names)
            raise UserError(f"task {task}: expected a label of the source ({names}), found {label!r}")
