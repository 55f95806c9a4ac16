"""Depth maps: photographs with greyscale files of the same name, whose levels are distances."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mtl_jax.data.formats.entries import Annotations, Entry
from mtl_jax.data.formats.pairs import pairs_of
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, DepthFile
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split
from mtl_jax.data.images import is_of_16_bits, read_image
from mtl_jax.data.pixel_labels import decode_depth

MILLIMETRES = 1000.0  # levels per metre of 16-bit files
EIGHT_BIT = 25.5  # levels per metre of 8-bit files, so that 255 is 10 m


def is_depth(place: Place) -> bool:
    """Returns whether images have greyscale files of many levels and the same name."""
    return bool(pairs_of(place, depth=True))


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Assigns depth maps to images; 16-bit levels are millimetres, level 255 of 8 bits is 10 m."""
    del kind
    pairs = pairs_of(place, depth=True)
    entries, eight_bit = [], 0
    for pair in pairs:
        is_deep = is_of_16_bits(pair.map)
        eight_bit += not is_deep
        depth = DepthFile(pair.map, MILLIMETRES if is_deep else EIGHT_BIT)
        split = place.split_of(pair.image) or place.split_of(pair.map)
        entries.append(Entry(pair.image, str(pair.map), split=split, depth=depth))
    annotations = Annotations(entries)
    if eight_bit:
        annotations.notes.append(f"{place.path}: {eight_bit} depth maps have 8 bits: their 255 is read as 10 m.")
    if eight_bit < len(pairs):
        annotations.notes.append(
            f"{place.path}: {len(pairs) - eight_bit} depth maps have 16 bits: read as millimetres."
        )
    return annotations


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}/images and {split}/depth, in 16-bit millimetres; depths beyond 65 m become missing."""
    for split, records in by_split(dataset):
        folder = split or NO_SPLIT if dataset.splits else "."
        for record in records:
            if record.depth is None:
                out.counts["images without depth left out"] += 1
                continue
            image = out.put_image(record, f"{folder}/images")
            file, levels_per_metre = record.depth
            metres = decode_depth(
                file, image=read_image(record.image), levels_per_metre=levels_per_metre, stored=record.stored
            )
            levels = np.round(np.nan_to_num(metres) * MILLIMETRES)
            too_deep = levels > np.iinfo(np.uint16).max
            out.counts["images with depths beyond 65 m, now missing"] += bool(too_deep.any())
            Image.fromarray(np.where(too_deep, 0, levels).astype(np.uint16)).save(
                out.file(f"{folder}/depth/{image.stem}.png")
            )
