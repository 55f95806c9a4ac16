"""Embedded data: scenes composed on the fly from scikit-learn's handwritten digits, no download."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from mtl_jax.data.sources.base import SPLITS, Fields, Sample, check_split
from mtl_jax.errors import UserError

DIGITS = tuple("0123456789")
LABELS = ("segmentation", "detection", "classification")
DEFAULT_LENGTHS = {"train": 2000, "val": 200}

_SPLIT_SEED = 1797  # any fixed number: which handwriting is for validation never changes
_VAL_FRACTION = 0.2  # of the handwritten samples of each digit
_SOFT_EDGE = (0.25, 0.65)  # enlarged ink becomes transparent below and opaque above
_INK = 0.25  # opacity from which a pixel belongs to the digit
_MAX_DIGITS = 5
_SIDE = (0.28, 0.45)  # of a digit in a scene with several, as a fraction of the scene
_SINGLE_SIDE = (0.4, 0.75)  # of the only digit of a scene
_PLACING_ATTEMPTS = 12
_MAX_OVERLAP = 0.1  # of the smaller box
_MAX_ROTATION_DEG = 10.0
_GROUND = (10.0, 100.0)  # brightness of the background's colours, of 255
_CONTRAST = (10.0, 35.0)  # of the background's texture
_LIGHT = (150.0, 255.0)  # brightness of the digits' colours: light on dark, so that minutes of training suffice


class DigitScenes:
    """Digits in varied colours and sizes on textured backgrounds, deterministic by split and index.

    The handwriting in train and val scenes is disjoint. Labels are "segmentation" (0 background, 1-10 the
    digits), "detection" (1-5 digits per scene, tight boxes) or "classification"; several at once label the
    same scenes. With "classification" among them every scene holds one digit.

    Args:
        data_root: not used; the data is embedded.
        split: "train" or "val".
        labels: one label name, or several.
        size: of the scenes, px, both sides.
        length: number of scenes; by default 2000 to train and 200 to validate.
        digits: those that the scenes show, in the order of their labels.

    Raises:
        UserError: an unknown split, label or digit, a size under 32 px, or no scenes.

    References:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    embedded = True  # scenes follow from the program and the options alone

    def __init__(
        self,
        *,
        split: str,
        labels: str | Sequence[str] = "segmentation",
        size: int = 112,
        length: int | None = None,
        digits: Sequence[str] = DIGITS,
        data_root: str | Path | None = None,
    ) -> None:
        del data_root
        check_split(split)
        self.labels = (labels,) if isinstance(labels, str) else tuple(labels)
        unknown = [label for label in self.labels if label not in LABELS]
        if unknown or not self.labels:
            raise UserError(f"expected labels among {', '.join(LABELS)}, found {unknown}; choose some of them")
        names = tuple(digits)
        if not names or len(set(names)) < len(names) or not set(names) <= set(DIGITS):
            raise UserError(
                f"expected digits among {', '.join(DIGITS)}, each once, found {digits!r}; choose some of them"
            )
        if size < 32:
            raise UserError(f"expected scenes of at least 32 px, found {size}; digits would be unreadable")
        if length is not None and (not isinstance(length, int) or length < 1):
            raise UserError(f"expected a number of scenes from 1, found length={length!r}; leave it out")
        self.size = size
        self._single = "classification" in self.labels
        self.class_names = {label: ("background", *names) if label == LABELS[0] else names for label in self.labels}
        self._length = DEFAULT_LENGTHS[split] if length is None else length
        self._split = split
        self._digits_text = "" if names == DIGITS else f" of {','.join(names)}"
        ink, digit = handwriting(split)
        is_selected = np.isin(digit, [int(name) for name in names])
        places = np.array([names.index(name) if name in names else 0 for name in DIGITS])
        self._ink, self._digit = ink[is_selected], places[digit[is_selected]]

    def __len__(self) -> int:
        return self._length

    def image_origin(self, index: int) -> bytes:
        """Returns what the scene is drawn from, and so is its alone."""
        several = "one" if self._single else "several"
        return f"digits {self._split} {self.size} {several}{self._digits_text} {index}".encode()

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        rng = np.random.default_rng((SPLITS.index(self._split), index))
        image = background(rng, self.size)
        mask = np.zeros((self.size, self.size), np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        digits: list[int] = []
        for _ in range(1 if self._single else int(rng.integers(1, _MAX_DIGITS + 1))):
            low, high = _SINGLE_SIDE if self._single else _SIDE
            ink_index = int(rng.integers(len(self._ink)))
            ink = draw_digit(self._ink[ink_index], rng, side=int(self.size * rng.uniform(low, high)))
            corner = _free_corner(ink, rng, self.size, boxes)
            if corner is None:
                continue
            boxes.append(_paint(image, mask, ink, corner, int(self._digit[ink_index]) + 1, rng))
            digits.append(int(self._digit[ink_index]))
        scene_labels = {
            "segmentation": {"mask": mask},
            "detection": _fields(boxes, digits),
            "classification": {"label": np.array(digits[0], np.int32)},
        }
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        labels = {label: scene_labels[label] for label in self.labels}
        return {"image": pixels, "labels": labels, "id": f"{self._split}-{index:05d}"}


@functools.cache
def handwriting(split: str) -> tuple[Float[np.ndarray, "samples 8 8"], Int[np.ndarray, "samples"]]:
    """Returns the split's ink (0..1) and digits; each digit's samples are divided in the same proportion."""
    pixels, target = _digits()
    rng = np.random.default_rng(_SPLIT_SEED)
    is_in_split = np.zeros(len(target), bool)
    for digit in range(len(DIGITS)):
        samples = rng.permutation(np.flatnonzero(target == digit))
        is_in_split[samples[: round(_VAL_FRACTION * len(samples))]] = True
    if split == "train":
        is_in_split = ~is_in_split
    ink = pixels[is_in_split].reshape(-1, 8, 8) / 16.0  # the data's levels are 0 to 16
    return ink.astype(np.float32), target[is_in_split].astype(np.int32)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 samples of scikit-learn and the digits that they show; from its file, as its import takes a second."""
    found = importlib.util.find_spec("sklearn")
    file = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(target)


def background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """A coloured texture: smooth noise over a gradient, sometimes striped, of varied contrast, 0..255."""
    contrast = rng.uniform(*_CONTRAST)
    cells = int(rng.integers(3, 12))
    corners = rng.uniform(*_GROUND, (1, 1, 3)) + rng.uniform(-contrast, contrast, (2, 2, 3))
    texture = cv2.resize(corners.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    noise = rng.uniform(-contrast, contrast, (cells, cells, 3)).astype(np.float32)
    texture += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(size / 16, size / 3)
        along = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
        phase = along[None, :] * np.float32(np.cos(angle)) + along[:, None] * np.float32(np.sin(angle))
        colour = rng.uniform(-contrast, contrast, 3).astype(np.float32) / 2
        texture += np.sin(phase)[:, :, None] * colour[None, None, :]
    grain = rng.standard_normal((size, size), np.float32) * np.float32(rng.uniform(0, 8))
    texture += grain[:, :, None]
    return texture


def draw_digit(
    ink: Float[np.ndarray, "8 8"], rng: np.random.Generator, *, side: int
) -> Float[np.ndarray, "height width"]:
    """Returns the digit enlarged and slightly rotated, cropped to the pixels that belong to it."""
    scale = side / ink.shape[0]
    turn = cv2.getRotationMatrix2D((3.5, 3.5), rng.uniform(-_MAX_ROTATION_DEG, _MAX_ROTATION_DEG), scale)
    turn[:, 2] += side / 2 - 4.0  # the centre of the 8 x 8 samples goes to the centre of the drawing
    low, high = _SOFT_EDGE
    large = cv2.warpAffine(ink, turn, (side, side), flags=cv2.INTER_CUBIC)
    large = ((large - low) / (high - low)).clip(0, 1)
    solid = large > _INK
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_corner(
    ink: np.ndarray, rng: np.random.Generator, size: int, occupied: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int] | None:
    height, width = ink.shape
    for _ in range(_PLACING_ATTEMPTS):
        left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        if all(_overlap((left, top, left + width, top + height), box) <= _MAX_OVERLAP for box in occupied):
            return left, top
    return None


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(width, 0) * max(height, 0) / smaller


def _paint(
    image: np.ndarray,
    mask: UInt8[np.ndarray, "size size"],
    ink: np.ndarray,
    corner: tuple[int, int],
    value: int,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws into image and mask, and returns the box."""
    (left, top), (height, width) = corner, ink.shape
    place = (slice(top, top + height), slice(left, left + width))
    colour = rng.uniform(*_LIGHT, 3).astype(np.float32)
    image[place] += ink[:, :, None] * (colour[None, None, :] - image[place])
    mask[place][ink > _INK] = value
    return left, top, left + width, top + height


def _fields(boxes: Sequence[tuple[int, int, int, int]], digits: Sequence[int]) -> Fields:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "boxes_xyxy": corners,
        "label": np.array(digits, np.int32),
        "crowd": np.zeros(len(digits), bool),
        "area": (corners[:, 2:] - corners[:, :2]).prod(axis=1),
    }
