"""Orientation of a dataset's labels: pixels as stored, or upright as EXIF says; decided once for all images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from mtl_jax.data.sources.base import counted
from mtl_jax.errors import UserError

ANNOTATED_ON = ("auto", "upright", "stored")

# Where a corner (x, y) of the stored pixels goes, by the value of the EXIF tag.
_CORNERS = {
    2: lambda x, y, width, height: (width - x, y),
    3: lambda x, y, width, height: (width - x, height - y),
    4: lambda x, y, width, height: (x, height - y),
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}
_SIDEWAYS = (5, 6, 7, 8)


class Header(NamedTuple):
    """Orientation of a file's pixels."""

    width: int  # px, as stored
    height: int
    orientation: int  # EXIF: 1 is upright

    @property
    def is_turned(self) -> bool:
        """Whether it is stored in another way than it is shown."""
        return self.orientation in _CORNERS

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as a viewer shows them."""
        return (self.height, self.width) if self.orientation in _SIDEWAYS else (self.width, self.height)


class Convention(NamedTuple):
    """How the labels of turned images are meant whose size does not decide."""

    stored: bool | None  # in the stored pixels; None where neither a setting nor another image decides
    turned: int = 0  # images that EXIF turns
    unclear: int = 0  # of these: both readings fit
    notes: tuple[str, ...] = ()

    def decided(self, name: object, noun: str) -> bool:
        """Returns `stored`.

        Args:
            name: of the image that asks.
            noun: its labels, as the error names them.

        Raises:
            UserError: nothing decides.
        """
        if self.stored is None:
            in_dataset = f" and in none of the dataset's {self.turned} turned images" if self.turned else ""
            raise UserError(
                f"{name}: expected a size that shows whether {noun} are of the pixels as stored or turned upright as "
                f"EXIF asks, found none here{in_dataset}; set "
                "annotated_on to stored or upright (an option of the stream, and of mtl-jax train, inspect and convert)"
            )
        return self.stored


def check(annotated_on: str) -> str:
    """Returns the setting.

    Raises:
        UserError: it is none of `ANNOTATED_ON`.
    """
    if annotated_on not in ANNOTATED_ON:
        raise UserError(f"expected annotated_on among {', '.join(ANNOTATED_ON)}, found {annotated_on!r}; choose one")
    return annotated_on


def is_stored(header: Header, annotated: tuple[int, int]) -> bool | None:
    """Whether labels count in the stored pixels by their size alone; None where both readings fit, or neither does.

    Args:
        header: of the image.
        annotated: width and height that the labels were made for, px.
    """
    stored_size = (header.width, header.height)
    if not header.is_turned or header.upright_size == stored_size:
        return None
    return {header.upright_size: False, stored_size: True}.get(annotated)


def judge(
    images: Iterable[tuple[str, Header, tuple[int, int] | None]], *, annotated_on: str, noun: str, location: object
) -> Convention:
    """Judges by the images whose size decides how the others are meant.

    Args:
        images: name, header, and the size (width, height) that the labels were made for, None where unknown.
        annotated_on: "upright" or "stored" decides; "auto" follows the majority.
        noun: the labels, as the notes name them, such as "boxes".
        location: the dataset is, as the notes say.
    """
    by_size: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, header, annotated in images:
        if header.is_turned:
            by_size[None if annotated is None else is_stored(header, annotated)].append(name)
    stored, upright, unclear = by_size[True], by_size[False], by_size[None]
    turned = len(stored) + len(upright) + len(unclear)
    if annotated_on == "auto" and not stored and not upright:
        return Convention(None, turned, turned)
    decided = len(stored) > len(upright) if annotated_on == "auto" else annotated_on == "stored"
    reading = "as stored" if decided else "upright"
    notes: list[str] = []
    if unclear and annotated_on == "auto":
        notes.append(
            f"{location}: EXIF turns {counted(len(unclear), 'images')} (first: {unclear[0]}) whose size does not show "
            f"whether {noun} are of the pixels as stored or upright: taken {reading}, like "
            f"{max(len(stored), len(upright))} whose size does; set annotated_on to stored or upright (an option of "
            "the stream, and of mtl-jax train, inspect and convert) to decide."
        )
    odd = upright if decided else stored
    if odd and (len(odd) < len(stored) + len(upright) or annotated_on != "auto"):
        notes.append(
            f"{location}: the size of {counted(len(odd), 'images')} (first: {odd[0]}) fits their {noun} only "
            f"{'upright' if decided else 'as stored'}, unlike the rest of the dataset ({reading}): they are read so; "
            "look whether two exports were mixed."
        )
    return Convention(decided, turned, len(unclear), tuple(notes))


def turn_boxes(boxes_xyxy: Float32[np.ndarray, "boxes 4"], header: Header) -> Float32[np.ndarray, "boxes 4"]:
    """Moves boxes from the stored pixels to the upright ones."""
    turn = _CORNERS.get(header.orientation)
    if turn is None:
        return boxes_xyxy
    first = turn(boxes_xyxy[:, 0], boxes_xyxy[:, 1], header.width, header.height)
    second = turn(boxes_xyxy[:, 2], boxes_xyxy[:, 3], header.width, header.height)
    corners = np.stack([np.stack(first, axis=1), np.stack(second, axis=1)])
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1).astype(np.float32)


def turn_points(points: Float[np.ndarray, "points 2"], header: Header) -> Float[np.ndarray, "points 2"]:
    """Moves corners (x, y) from the stored pixels to the upright ones."""
    turn = _CORNERS.get(header.orientation)
    if turn is None:
        return points
    return np.stack(turn(points[:, 0], points[:, 1], header.width, header.height), axis=1)
