"""The boxes of a COCO file: clipped to their images, each once, and whether they look like another convention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.sources.base import Fields
from mtl_jax.errors import UserError

FAR_PX = 1e9  # no image is so large: a coordinate beyond is as good as infinite
SLACK_PX = 1.0  # by which rounded numbers may leave an image
LARGEST_SHARE = 1.1  # of an image's side, with rounded numbers that leave it; no dataset's boxes are all so small in px
LEAST_SIDE_PX = 1.0  # of a box that anything can be learnt from
SUSPICIOUS_SHARE = 0.5  # of boxes that leave their image


Numbers = tuple[float, float, float, float]


class Box(NamedTuple):
    """One annotated object, clipped to its image."""

    xyxy: Numbers
    label: int
    crowd: bool
    area: float  # px², of the object's outline where the file gives it


class Boxes:
    """Collects the boxes of images, and counts what happens to them.

    Args:
        image_count: how many images there are.

    Attributes:
        of_image: by the number of the image.
        dropped: number of boxes by reason.
    """

    def __init__(self, image_count: int) -> None:
        self.of_image: list[list[Box]] = [[] for _ in range(image_count)]
        self.dropped: Counter[str] = Counter()
        self._sized = 0  # boxes with an area, wherever they are
        self._outside = 0  # of these: ending right of or below their image
        self._clipped = 0  # of those kept
        self._largest = 0.0  # of their numbers
        self._fit_as_corners = True  # all of them
        self._first = self._first_outside = ""

    def add(
        self, annotation: Mapping[str, Any], *, image: int, label: int, size: tuple[int, int], location: str
    ) -> None:
        """Adds a box, or counts why not.

        Args:
            annotation: of the file.
            image: its number.
            label: the object's class.
            size: width and height of the image, px.
            location: the annotation is, as errors name it.

        Raises:
            UserError: it is no box.
        """
        bbox = _bbox(annotation.get("bbox"), location)
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise UserError(f"{location}: expected iscrowd 0 or 1, found {crowd!r}; correct the file")
        if bbox is None:
            self.dropped["degenerate"] += 1
            return
        self._watch(bbox, size)
        xyxy = _clipped(bbox, size)
        if xyxy is None:
            self.dropped["outside"] += 1
            return
        area = annotation.get("area", (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]))
        if type(area) not in (int, float) or not 0 <= area < FAR_PX**2:
            raise UserError(f"{location}: expected an area in px², found {area!r}; correct the file")
        box = Box(xyxy, label, bool(crowd), float(area))
        if any(box[:3] == earlier_box[:3] for earlier_box in self.of_image[image]):
            self.dropped["listed_twice"] += 1
        else:
            self.of_image[image].append(box)
            x, y, width, height = bbox
            self._clipped += any(
                abs(was - clipped_side) > SLACK_PX
                for was, clipped_side in zip((x, y, x + width, y + height), xyxy, strict=True)
            )

    def _watch(self, bbox: Numbers, size: tuple[int, int]) -> None:
        """Notes what distinguishes pixels from shares, and sizes from corners."""
        x, y, width, height = bbox
        is_beyond = x + width > size[0] + SLACK_PX or y + height > size[1] + SLACK_PX
        self._sized += 1
        self._outside += is_beyond
        self._largest = max(self._largest, *map(abs, bbox))
        self._fit_as_corners &= x < width <= size[0] + SLACK_PX and y < height <= size[1] + SLACK_PX
        self._first = self._first or str(list(bbox))
        if is_beyond:
            self._first_outside = self._first_outside or f"{list(bbox)} of an image of {size[0]} x {size[1]} px"

    def check(self, file: Path) -> None:
        """Refuses boxes that are no pixels.

        Args:
            file: that they are of.

        Raises:
            UserError: all numbers are shares of the image.
        """
        if self._sized and self._largest <= LARGEST_SHARE:
            raise UserError(
                f"{file}: expected bbox as x, y, width, height in pixels, found no number above {LARGEST_SHARE:g} in "
                f"{self._sized} boxes (first: {self._first}), smaller than a pixel, as shares of the image are; "
                "multiply them by its size"
            )

    def notes(self, file: Path) -> Iterator[str]:
        """Yields warnings where no box is an object, and where the numbers look like corners."""
        boxes = [box for of_image in self.of_image for box in of_image]
        if not any(_is_usable(box) for box in boxes):
            crowds = sum(box.crowd for box in boxes)
            problem_counts = {
                "with iscrowd=1, which stand for groups": crowds,
                f"smaller than {LEAST_SIDE_PX:.0f} px": len(boxes) - crowds,
            } | {f"dropped as {reason.replace('_', ' ')}": count for reason, count in self.dropped.items()}
            text = (
                ", ".join(f"{count} {noun}" for noun, count in problem_counts.items() if count) or "the file has none"
            )
            yield f"{file}: no box is that of an object ({text}); correct the file."
        outside = (
            f"{file}: {self._outside} of {self._sized} boxes (first: {self._first_outside}) end outside their image"
        )
        if self._outside and self._fit_as_corners:  # of sizes, hardly all are larger than their box's corner
            yield (
                f"{outside} and are clipped, but all would fit as corners: bbox is x, y, width, height; if the last "
                "two numbers are a corner, subtract the first two from them."
            )
        elif self._outside > SUSPICIOUS_SHARE * self._sized:
            yield f"{outside} and are clipped or dropped: look whether they are in pixels of these images."

    def counts(self, images: Iterable[int]) -> dict[str, int]:
        """Returns what was read of some images, and what of all was clipped and dropped, by name."""
        boxes_by_image = [self.of_image[image] for image in images]
        return {
            "boxes": sum(map(len, boxes_by_image)),
            "crowds among them": sum(box.crowd for boxes in boxes_by_image for box in boxes),
            "images without boxes": sum(not boxes for boxes in boxes_by_image),
            "boxes clipped": self._clipped,
            **{f"boxes dropped: {reason.replace('_', ' ')}": count for reason, count in self.dropped.items()},
        }


def _is_usable(box: Box) -> bool:
    left, top, right, bottom = box.xyxy
    return not box.crowd and min(right - left, bottom - top) >= LEAST_SIDE_PX


def fields(boxes: Sequence[Box]) -> Fields:
    """Returns boxes as a detection label."""
    return {
        "boxes_xyxy": np.array([box.xyxy for box in boxes], np.float32).reshape(-1, 4),
        "label": np.array([box.label for box in boxes], np.int32),
        "crowd": np.array([box.crowd for box in boxes], bool),
        "area": np.array([box.area for box in boxes], np.float32),
    }


def _bbox(bbox: Any, location: str) -> Numbers | None:
    """Returns the four numbers; None where they have no area or are no finite numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise UserError(f"{location}: expected bbox [x, y, width, height], found {bbox}; correct the file")
    if not all(abs(value) < FAR_PX for value in bbox) or min(bbox[2:]) <= 0:  # NaN is not below it either
        return None
    x, y, width, height = map(float, bbox)
    return x, y, width, height


def _clipped(bbox: Numbers, size: tuple[int, int]) -> Numbers | None:
    """Returns the corners inside the image; None where nothing of the box is."""
    x, y, width, height = bbox
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    return None if right <= left or bottom <= top else (left, top, right, bottom)
