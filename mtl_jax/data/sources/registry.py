"""Which datasets can be read: one small random-access class per format, by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtl_jax.config.checks import check_arguments, require_choice
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import largest_level
from mtl_jax.data.sources.base import SPLITS, Reading, Sample, Source, reading_of
from mtl_jax.data.sources.coco import CocoDetection
from mtl_jax.data.sources.digits import DigitScenes
from mtl_jax.data.sources.image_folder import ImageFolder
from mtl_jax.data.sources.labels import Labels
from mtl_jax.data.sources.nyuv2 import NYUv2
from mtl_jax.data.sources.open_images import OpenImages
from mtl_jax.data.sources.shards import Shards
from mtl_jax.data.sources.tfds import Tfds
from mtl_jax.data.sources.utkface import UTKFace
from mtl_jax.data.sources.voc import VocSegmentation
from mtl_jax.errors import UserError

__all__ = ["SOURCES", "Reading", "Sample", "Source", "build", "options_of", "reading_of"]

SOURCES: dict[str, Callable[..., Source]] = {
    "voc_segmentation": VocSegmentation,
    "coco_detection": CocoDetection,
    "open_images": OpenImages,
    "image_folder": ImageFolder,
    "utkface": UTKFace,
    "nyuv2": NYUv2,
    "tfds": Tfds,
    "shards": Shards,
    "labels": Labels,
    "digits": DigitScenes,
}


OF_THE_RUN = ("data_root", "split")  # arguments of every source that are no options of it


def options_of(kind: str) -> tuple[str, ...]:
    """Returns the keyword arguments of a source; none of a kind that there is not."""
    return tuple(inspect.signature(SOURCES[kind]).parameters) if kind in SOURCES else ()


def check_options(kind: str, options: Mapping[str, Any], *, location: str) -> None:
    """Checks a source and its options without opening anything.

    Args:
        kind: a key of `SOURCES`.
        options: keyword arguments of the source.
        location: the settings, for the error.

    Raises:
        UserError: no such kind or option, or an option that is missing or of another type.
    """
    require_choice(f"{location}.source", kind, SOURCES)
    check_arguments(f"{location}.options", options, SOURCES[kind], reserved=OF_THE_RUN)


def build(kind: str, *, data_root: str | Path | None, split: str, **options: Any) -> Source:
    """Opens one split of a dataset.

    Args:
        kind: a key of `SOURCES`.
        data_root: the folder of all datasets.
        split: "train" or "val".
        **options: keyword arguments of the source.

    Raises:
        UserError: no such kind, option, folder or split, or an option of another type.
    """
    check_options(kind, options, location="stream")
    source = SOURCES[kind](data_root=data_root, split=split, **options)
    grey = getattr(source, "grey", None)
    if isinstance(grey, GreyBits):

        def levels() -> Iterator[int]:
            training: Any = source
            if split != SPLITS[0]:
                with contextlib.suppress(UserError):  # there is none: the split decides by itself
                    training = SOURCES[kind](data_root=data_root, split=SPLITS[0], **options)
            return (largest_level(training.image_origin(index)) for index in range(len(training)))

        grey.decide_by(levels)
    return source
