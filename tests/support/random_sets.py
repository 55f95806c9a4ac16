"""Writes random small datasets of known content, and reads them as training does.

What a photo shows upright is drawn first; its file is that turned back, by Pillow, as a camera stores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax.data import pipeline
from mtl_jax.data.transforms import Augment

INPUT_PX = 48  # side of the network's input, larger than every photo
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # which ROTATE_270 undoes
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
NAMES = ("photo", "my photo", "a.b", "ünïcode", "x-1", "Über 2", "007", "train")


def size(rng: np.random.Generator) -> tuple[int, int]:
    """Draws height and width, px."""
    return int(rng.integers(12, 41)), int(rng.integers(12, 41))


def stored(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Returns upright pixels as a camera that writes this EXIF tag stores them."""
    if tag not in TO_STORED:
        return pixels
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    turned = [np.asarray(Image.fromarray(planes[..., i]).transpose(TO_STORED[tag])) for i in range(planes.shape[-1])]
    return turned[0] if pixels.ndim == 2 else np.stack(turned, axis=-1)


def write_photo(file: Path, upright: np.ndarray, tag: int) -> None:
    """Writes an RGB photo as PNG, whatever the file's suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(stored(upright, tag)).save(file, format="PNG", exif=exif)


def write_map(file: Path, values: np.ndarray) -> None:
    """Writes a greyscale file of 8 or 16 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file, format="PNG")


def rectangles(rng: np.random.Generator, height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    """Draws boxes (left, top, right, bottom) that do not overlap: one in each of `count` bands, px."""
    result = []
    for top, bottom in zip(*(np.linspace(0, height, count + 1).astype(int)[i:][:count] for i in (0, 1)), strict=True):
        first, last = np.sort(rng.choice(bottom - top + 1, 2, replace=False)) + top
        left, right = np.sort(rng.choice(width + 1, 2, replace=False))
        result.append((int(left), int(first), int(right), int(last)))
    return result


def stored_box(box: tuple[int, int, int, int], shape: tuple[int, int], tag: int) -> tuple[int, int, int, int]:
    """Returns where the pixels of a box lie in the stored photo."""
    left, top, right, bottom = box
    marked = np.zeros(shape, np.uint8)
    marked[top:bottom, left:right] = 1
    rows, columns = np.nonzero(stored(marked, tag))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def seen(source: Any, labels: Mapping[str, str], *, flip: bool, ignore_label: int | None = None) -> dict[str, Any]:
    """Returns what a training batch shows of every sample: id -> {"image", label: fields}."""
    batch = pipeline.train_batches(
        source,
        labels=labels,
        image_size=INPUT_PX,
        batch_size=len(source),
        augment=Augment(flip_probability=float(flip)),
        seed=int(flip),
        ignore_labels={} if ignore_label is None else dict.fromkeys(labels, ignore_label),
    )[0]
    return {
        name: {"image": batch["image"][i]}
        | {task: {field: of[i] for field, of in fields.items()} for task, fields in batch["labels"].items()}
        for i, name in enumerate(batch["ids"])
    }


def shown_map(upright: np.ndarray, missing: float, *, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a map must look like in the input, and where that is beyond doubt (not between two pixels)."""
    height, width = upright.shape
    scale = min(INPUT_PX / height, INPUT_PX / width)
    places = [(np.arange(INPUT_PX) + 0.5 - (INPUT_PX - side * scale) / 2) / scale for side in (height, width)]
    if flip:
        places[1] = places[1][::-1]
    inside = [(place >= 0) & (place < side) for place, side in zip(places, (height, width), strict=True)]
    sure = [abs(place - place.round()) > 1e-6 for place in places]
    rows, columns = (
        np.clip(place, 0, side - 1).astype(int) for place, side in zip(places, (height, width), strict=True)
    )
    result = np.where(inside[0][:, None] & inside[1], upright[np.ix_(rows, columns)], missing)
    return result, sure[0][:, None] & sure[1]


def shown_boxes(boxes: Any, shape: tuple[int, int], *, flip: bool) -> np.ndarray:
    """Returns where boxes of an upright photo must lie in the input."""
    height, width = shape
    scale = min(INPUT_PX / height, INPUT_PX / width)
    left, top = (INPUT_PX - width * scale) / 2, (INPUT_PX - height * scale) / 2
    moved = np.array(boxes, float).reshape(-1, 4) * scale + [left, top, left, top]
    return np.stack([INPUT_PX - moved[:, 2], moved[:, 1], INPUT_PX - moved[:, 0], moved[:, 3]], 1) if flip else moved
