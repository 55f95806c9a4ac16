"""Writes a dataset as a few large ArrayRecord files, which many processes read faster than many small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtl_jax.data import records
from mtl_jax.data.sources.base import Source
from mtl_jax.errors import UserError

VERSION = 1
OPTIONS = "group_size:1,uncompressed"  # each record is read by itself, and images are compressed already


def index_name(split: str) -> str:
    """Returns the name of the file that lists a split's shards."""
    return f"{split}.json"


def write(source: Source, folder: Path, *, split: str, shard_bytes: int) -> list[str]:
    """Writes one split; the list of its shards comes last, so that what is there without it is no dataset yet.

    Args:
        source: of the samples, which keep their order.
        folder: gets the shards and the list; made where it is absent.
        split: that the source holds.
        shard_bytes: after which a shard ends.

    Returns:
        The names of the shards.

    Raises:
        UserError: an image that cannot be read, a list that is there already, or no library for ArrayRecord.
    """
    index = folder / index_name(split)
    if index.exists():
        raise UserError(f"{index}: expected no {split} split yet, found one; name another folder, or remove this one")
    writer = _writer()
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, str | int]] = []
    origin = getattr(source, "image_origin", None)
    first = 0
    while first < len(source):
        path = folder / f"{split}-{len(shards):05d}.array_record"
        out, size, position = writer(str(path), OPTIONS), 0, first
        while position < len(source) and (size < shard_bytes or position == first):
            file = origin(position) if origin is not None else None
            record = records.encode(source[position], file if isinstance(file, Path) else None)
            out.write(record)
            size, position = size + len(record), position + 1
        out.close()
        shards.append({"file": path.name, "samples": position - first, "bytes": path.stat().st_size})
        first = position
    partial_file = index.with_name(index.name + ".part")
    names = {label: list(names) for label, names in source.class_names.items()}
    labelled = {label: list(names) for label, names in getattr(source, "labelled_classes", {}).items()}
    index_content = {"version": VERSION, "class_names": names, "labelled_classes": labelled, "shards": shards}
    partial_file.write_text(json.dumps(index_content, indent=1) + "\n")
    partial_file.replace(index)
    return [str(shard["file"]) for shard in shards]


def _writer() -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise UserError(f"shards need the package array-record ({error}): pip install array-record") from error
    return ArrayRecordWriter
