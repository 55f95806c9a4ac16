"""Mask files with the names of images: class indices, or colours with a palette file."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax.data.formats.entries import Annotations, Entry
from mtl_jax.data.formats.mask_files import ColourMask, NumberMask, colours_in
from mtl_jax.data.formats.pairs import Pair, pairs_of
from mtl_jax.data.formats.palettes import BLACK, Palette, palette_of
from mtl_jax.data.formats.pixels import mask_of
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import BACKGROUND, Dataset, MaskFiles
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split
from mtl_jax.data.images import read_image
from mtl_jax.data.masks import distinct, usual_void
from mtl_jax.data.pixel_labels import mask_values
from mtl_jax.data.sources.base import VOID, missing
from mtl_jax.errors import UserError

FOREGROUND = "foreground"  # second class of unnamed binary masks
THREADS = min(16, 2 * (os.cpu_count() or 1))
MAX_COLOURS = 256  # of masks without a palette file
VOID_COLOUR = (224, 224, 192)  # of unlabelled pixels, as in PASCAL VOC


def is_masks(place: Place) -> bool:
    """Returns whether images have mask files of the same name."""
    return bool(pairs_of(place, depth=False))


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Assigns masks to images and determines the classes of their values; reads every mask.

    Raises:
        UserError: a mask cannot be read or has a colour that the palette lacks.
    """
    del kind
    pairs = pairs_of(place, depth=False)
    roots = {pair.map.parent for pair in pairs} | {pair.map.parent.parent for pair in pairs}
    roots |= {place.root.parent} if any(place.root not in pair.image.parents for pair in pairs) else set()
    palette = palette_of(place, sorted(roots))
    names, masks, notes = _masks(pairs, palette)
    entries = [
        Entry(
            pair.image,
            str(pair.map),
            split=place.listed_split_of(pair.image) or place.split_of(pair.image) or place.split_of(pair.map),
            mask=mask,
        )
        for pair, mask in zip(pairs, masks, strict=True)
    ]
    with_mask = {pair.image for pair in pairs} | {pair.map for pair in pairs}
    folders = {pair.image.parent for pair in pairs}
    unlabelled = [image for image in place.below_images if image.parent in folders and image not in with_mask]
    annotations = Annotations(entries, mask_names=names, notes=[f"{place.path}: {note}" for note in notes])
    annotations.counts["images without mask, left out"] = len(unlabelled)
    return annotations


def _masks(pairs: Sequence[Pair], palette: Palette | None) -> tuple[tuple[str, ...], list[MaskFiles], list[str]]:
    """Returns class names, masks, and notes on how values were interpreted."""
    if palette is not None and palette.colours:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="masks") as pool:
            by_colour = pool.map(lambda pair: _is_coloured(pair.map, palette), pairs)
        if all(by_colour):
            names, colours = palette.names, dict(palette.colours)
            if BLACK not in colours:
                names, colours = (
                    (BACKGROUND, *names),
                    {c: v + 1 if v >= 0 else v for c, v in colours.items()} | {BLACK: 0},
                )
            return names, [ColourMask(pair.map, colours, len(names)) for pair in pairs], []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="masks") as pool:
        numbers = list(pool.map(lambda pair: _numbers(pair.map), pairs))
    if any(values is None for values in numbers):
        return _colours_without_palette(pairs)
    values = {value for values in numbers for value in values or ()}
    names = palette.names if palette is not None else ()
    if not names and len(values) <= 2 and 0 in values and max(values) in (1, VOID):
        note = f"the masks hold {' and '.join(map(str, sorted(values)))} alone: read as {BACKGROUND} and {FOREGROUND}."
        return (BACKGROUND, FOREGROUND), [NumberMask(pair.map, 2, binary=True) for pair in pairs], [note]
    if not names:
        classes = values - {VOID} if len(values - {VOID}) <= VOID else values
        names = tuple(map(str, range(max(classes, default=0) + 1)))
        note = f"no file names the classes of the masks (palette.csv, classes.txt): {len(names)} are called by number."
        return names, [NumberMask(pair.map, len(names)) for pair in pairs], [note]
    if values == {0, VOID} and len(names) == 2:
        note = f"the masks hold 0 and {VOID} alone: read as {names[0]} and {names[1]}."
        return names, [NumberMask(pair.map, 2, binary=True) for pair in pairs], [note]
    if values - {usual_void(len(names))} and max(values - {usual_void(len(names))}) >= len(names):
        misfit = next(pair.map for pair, values in zip(pairs, numbers, strict=True) if max(values or {0}) >= len(names))
        raise UserError(
            f"{misfit}: expected values below {len(names)}, as {palette.file if palette else 'the names'} has so many "
            f"classes, or {usual_void(len(names))} (void), found {max(values - {usual_void(len(names))})}; correct one"
        )
    return names, [NumberMask(pair.map, len(names)) for pair in pairs], []


def _is_coloured(file: Path, palette: Palette) -> bool:
    """Returns whether a file encodes classes by colour: it has no indices, or all its colours are in the palette.

    Raises:
        UserError: the file cannot be read.
    """
    return _numbers(file) is None or colours_in(file) <= palette.colours.keys() | {BLACK}


def _numbers(file: Path) -> frozenset[int] | None:
    """Returns the values of a greyscale or palette file; None for a colour file.

    Raises:
        UserError: the file cannot be read.
    """
    return _numbers_once(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _numbers_once(file: Path, changed_ns: int) -> frozenset[int] | None:
    del changed_ns
    try:
        return frozenset(distinct(mask_values(file)).tolist())
    except UserError:
        read_image(file)  # raises if the file cannot be read at all
        return None


def _colours_without_palette(
    pairs: Sequence[Pair],
) -> tuple[tuple[str, ...], list[MaskFiles], list[str]]:
    colours = Counter(colour for pair in pairs for colour in colours_in(pair.map))
    if len(colours) > MAX_COLOURS:
        raise UserError(
            f"{pairs[0].map}: expected masks of at most {MAX_COLOURS} colours, found {len(colours)}; save them "
            "without smoothing or loss, or add the palette's file (palette.csv: name,r,g,b)"
        )
    ordered = sorted(colours)
    names = tuple(BACKGROUND if colour == BLACK else "#{:02x}{:02x}{:02x}".format(*colour) for colour in ordered)
    values = {colour: value for value, colour in enumerate(ordered)}
    note = (
        f"no file names the colours of the masks (palette.csv: name,r,g,b): {len(names)} classes are called by colour."
    )
    return names, [ColourMask(pair.map, values, len(names)) for pair in pairs], [note]


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}/images, {split}/masks in colour, and palette.csv."""
    names = dataset.classes["segmentation"]
    colours = [_colour(value) for value in range(len(names))]
    table = np.array([*colours, VOID_COLOUR], np.uint8)
    has_void = False
    for split, records in by_split(dataset):
        for record in records:
            mask = mask_of(record, {name: value for value, name in enumerate(names)}, read_image(record.image))
            if mask is None:
                out.counts["images without mask left out"] += 1
                continue
            image = out.put_image(record, f"{split or NO_SPLIT if dataset.splits else '.'}/images")
            void = mask == missing(mask)
            has_void |= bool(void.any())
            painted = table[np.where(void, len(names), mask)]
            Image.fromarray(painted).save(
                out.file(f"{image.parent.parent.relative_to(out.folder)}/masks/{image.stem}.png")
            )
    stream = io.StringIO(newline="")
    rows = [(name, *colour) for name, colour in zip(names, colours, strict=True)]
    csv.writer(stream).writerows([("name", "r", "g", "b"), *rows, *([("void", *VOID_COLOUR)] if has_void else [])])
    out.file("palette.csv").write_text(stream.getvalue(), encoding="utf-8", newline="")


def _colour(value: int) -> tuple[int, int, int]:
    """Returns the PASCAL VOC colour of a class: its bits are distributed to red, green and blue in turn."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= ((value >> bit) & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]
