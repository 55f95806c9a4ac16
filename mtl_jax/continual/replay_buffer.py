"""A few images of an old stream, kept as decoded samples: how they are chosen, downscaled and stored."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from mtl_jax.continual import exemplars
from mtl_jax.data import transforms, warp
from mtl_jax.data.sources.base import Fields, Sample, Source
from mtl_jax.errors import UserError

EMPTY = np.frombuffer(b"{}", np.uint8)
SELECTIONS = ("random", "reservoir", "class_balanced", "herding", "diverse", "hard")
CANDIDATES = 2000  # training images that exemplars are chosen among; decoding more would take minutes


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
        describe: outputs of the network for the samples; "herding", "diverse" and "hard" need them.
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
        raise UserError(f'expected outputs of the network for the samples for selection "{selection}", found none')
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
