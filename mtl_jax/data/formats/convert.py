"""Conversion of a dataset to another format, completely or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mtl_jax.data.formats import pixels
from mtl_jax.data.formats.records import LABELS, Dataset, Record
from mtl_jax.data.formats.table import FORMATS, read
from mtl_jax.data.formats.writing import Out
from mtl_jax.errors import UserError


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
        source: dataset as read; its `reading` counts dropped labels.
        path: output folder.
        kinds: written kinds of label.
        counts: counts by name of labels that the new format cannot represent.
    """

    source: Dataset
    path: Path
    kinds: tuple[str, ...]
    counts: dict[str, int]


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: str,
    kind: str | None = None,
    format: str = "auto",
    images: str | Path | None = None,
    annotated_on: str = "auto",
) -> Converted:
    """Converts the images and labels of a dataset to another format.

    Args:
        src: folder or file of the labels.
        dst: output folder, which has to be empty or absent.
        to: a key of `FORMATS`.
        kind: kind of label to write, a key of `LABELS`; None writes all that the format supports.
        format: format of the source, a key of `FORMATS`, or "auto".
        images: folder of the source's images, if it is separate.
        annotated_on: as for `read`.

    Raises:
        UserError: the source cannot be read, the format supports none of its labels, or the output folder is not empty.
    """
    if to not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)}, found {to!r}; choose one of them")
    target = Path(dst).expanduser()
    _check_free(target)
    source = read(src, kind=kind, format=format, images=images, annotated_on=annotated_on)
    kinds = tuple(
        label_kind for label_kind in FORMATS[to].written if label_kind in source.kinds and kind in (None, label_kind)
    )
    if not kinds:
        raise UserError(
            f"{source.path}: expected {', '.join(FORMATS[to].written)} for the format {to}, found "
            f"{', '.join(source.kinds)}; choose another format"
        )
    with _staged(target) as folder:
        out = Out(folder, source)
        FORMATS[to].write(_adapt_labels(source, kinds, FORMATS[to].outlines, out), out)
    return Converted(source, target, kinds, {name: count for name, count in out.counts.items() if count})


def _adapt_labels(source: Dataset, kinds: tuple[str, ...], outlines: str, out: Out) -> Dataset:
    """Converts labels to the forms that a format supports."""
    labels = {LABELS[kind] for kind in kinds} | ({"detection"} if "masks" in kinds else set())
    classes = {label: names for label, names in source.classes.items() if label in labels}
    records = source.records
    if "classes" in kinds:  # written as tags in formats without classes
        classes.setdefault("multi_label", source.classes["classification"])
        records = tuple(map(_with_class_as_tag, records))
    source = dataclasses.replace(source, classes=classes, records=records)
    if "masks" not in kinds:
        return pixels.without_outlines(source)
    return source if outlines == "masks" else pixels.with_objects(source, outlines=outlines, counts=out.counts)


def _with_class_as_tag(record: Record) -> Record:
    if record.tags is not None or record.class_name is None:
        return record
    return dataclasses.replace(record, tags={record.class_name: True})


def _check_free(target: Path) -> None:
    try:
        is_occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise UserError(f"{target}: expected a folder to write, found {error.strerror}; name another") from error
    if is_occupied:
        raise UserError(f"{target}: expected an empty folder or none, found something; name another")


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes the target on success, and is removed otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield folder
            folder.chmod(0o755)
            if target.is_dir():
                target.rmdir()
            os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target}: expected a folder to write, found {error}; name another or free the disk"
        ) from error
