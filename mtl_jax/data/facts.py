"""Facts about one sample that are kept without its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.label_shapes import SHAPES, name_of
from mtl_jax.data.opened import Opened, digest
from mtl_jax.data.sources.base import Fields, Sample


class SampleFacts(NamedTuple):
    """One sample, as JSON can hold it."""

    id: str
    height: int  # px
    width: int
    one_colour: bool  # all pixels equal
    content: str  # digest of the image's file, or of what the source makes it of; "" where that is not known
    pixels: str  # digest of the decoded image
    labels: dict[str, dict[str, Any]]  # label name -> "kind", "digest", and what its shape observes
    grey_bits: int | None = None  # by which greyscale of 16-bit files is scaled, where the dataset has shown any so far


def facts_of(sample: Sample, *, files: Sequence[Opened] = (), origin: Path | bytes | None = None) -> SampleFacts:
    """Looks at one sample.

    Args:
        sample: decoded.
        files: that were read for it.
        origin: which of them is the image's, or what the image is made of.
    """
    image = sample["image"]
    if isinstance(origin, bytes):
        content = digest(origin)
    else:
        content = next((file.digest for file in files if origin and file.path == str(origin.absolute())), "")
    return SampleFacts(
        id=sample["id"],
        height=image.shape[0],
        width=image.shape[1],
        one_colour=bool((image == image[:1, :1]).all()),
        content=content,
        pixels=image_digest(image),
        labels={name: _label_facts(fields) for name, fields in sample["labels"].items()},
    )


def image_digest(image: np.ndarray) -> str:
    """Returns a digest that two images share only if all their pixels are equal."""
    return _array_digest(image)


def _label_facts(fields: Fields) -> dict[str, Any]:
    kind = name_of(fields)
    content = "".join(f"{name} {_array_digest(_as_int32(fields[name]))} " for name in sorted(fields))
    return {"kind": kind, "digest": digest(content.encode()), **SHAPES[kind].observe(fields)}


def _as_int32(field: np.ndarray) -> np.ndarray:
    """Whole numbers of another width are the same label."""
    return field.astype(np.int32) if field.dtype.kind in "iub" else field


def _array_digest(array: np.ndarray) -> str:
    return digest(repr(array.shape).encode() + array.tobytes())
