"""Looks at a set that `prepare` has laid out, as training will before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mtl_jax.data import findings, opened, survey
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import SPLITS
from mtl_jax.errors import UserError

KINDS = {  # set -> the source that reads it
    "voc": "voc_segmentation",
    "coco": "coco_detection",
    "imagenette": "image_folder",
    "open-images": "open_images",
}


def describe(name: str, *, data_root: Path, cache: Path | None = None) -> Iterator[str]:
    """Looks at every image of a set.

    Args:
        name: a key of `KINDS`.
        data_root: the folder that holds the sets.
        cache: as in `survey.look`.

    Yields:
        One line about each split, and what is odd.

    Raises:
        UserError: the set is not there, or files cannot be read; names all, or counts them.
    """
    for split in SPLITS:
        with opened.recording() as files:
            source = registry.build(KINDS[name], data_root=data_root, split=split)
        surveyed = survey.look(source, files=files, name=f"{KINDS[name]} {split} {data_root.absolute()}", cache=cache)
        if surveyed.errors:
            raise UserError(findings.broken(surveyed.errors))
        yield f"{name} {split}: {findings.line(findings.figures(surveyed, source.class_names))}"
        location = f"{name}, {split}"
        notes = [f"{location}: {note}" for note in surveyed.reading.notes]
        yield from (
            f"warning: {warning}" for warning in [*notes, *findings.odd_images(surveyed, [], location=location)]
        )
