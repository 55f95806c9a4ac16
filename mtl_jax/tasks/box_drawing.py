"""Frames around detected objects, with labels that neither overlap nor leave the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

MOST_LABELS = 12  # of the best boxes; more would cover the picture
FEW, WIDE, NARROW = 5, 1.5, 1.0  # lines of up to so many boxes, and of more, points
FAINT: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.45}  # of boxes beyond the labelled ones
LABEL_POINTS = 7.5
CHARACTER, LINE = 0.6, 1.5  # width of a character and height of a label, in units of the size of its text


class Framed(NamedTuple):
    """One box to draw."""

    corners: tuple[float, float, float, float]  # left, top, right, bottom, in the axes' data
    text: str
    colour: str


class Area(NamedTuple):
    """A rectangle in the axes' data."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, area: Area) -> bool:
        """Whether two areas overlap."""
        return self.left < area.right and area.left < self.right and self.top < area.bottom and area.top < self.bottom

    def within(self, area: Area) -> bool:
        """Whether an area is contained in another."""
        return (
            area.left <= self.left and area.top <= self.top and self.right <= area.right and self.bottom <= area.bottom
        )


def draw(axes: Any, boxes: Sequence[Framed]) -> None:
    """Frames every box, the best ones more strongly, and labels these where there is room.

    Args:
        axes: of matplotlib, whose limits are those of the image.
        boxes: the best first, which lies on top.
    """
    from matplotlib.patches import Rectangle  # slow to import

    style: dict[str, Any] = {"linewidth": WIDE if len(boxes) <= FEW else NARROW}
    for order, (corners, _, colour) in enumerate(boxes):
        left, top, right, bottom = corners
        line = style if order < MOST_LABELS else FAINT
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, **line)
        frame.set_zorder(3 - 0.5 * order / len(boxes))
        axes.add_patch(frame)
    for box, area in place_labels(axes, boxes[:MOST_LABELS]):
        ground = {"facecolor": box.colour, "edgecolor": "none", "pad": 0.8}
        axes.text(
            (area.left + area.right) / 2,
            (area.top + area.bottom) / 2,
            box.text,
            fontsize=LABEL_POINTS,
            color="white",
            bbox=ground,
            ha="center",
            va="center",
            zorder=4,
        )


def place_labels(axes: Any, boxes: Sequence[Framed]) -> Iterator[tuple[Framed, Area]]:
    """Yields the boxes whose label has room, and where it goes."""
    left, right = sorted(map(float, axes.get_xlim()))
    top, bottom = sorted(map(float, axes.get_ylim()))
    picture, occupied = Area(left, top, right, bottom), []
    frame, points = axes.get_window_extent(), 72 / axes.figure.dpi
    across = (right - left) / (float(frame.width) * points)
    down = (bottom - top) / (float(frame.height) * points)
    for box in boxes:
        width = (CHARACTER * len(box.text) + 0.6) * LABEL_POINTS * across
        height = LINE * LABEL_POINTS * down
        for area in _places(box, width, height):
            if area.within(picture) and not any(area.meets(label_area) for label_area in occupied):
                occupied.append(area)
                yield box, area
                break


def _places(box: Framed, width: float, height: float) -> Iterator[Area]:
    """Candidate places of a label: above its box, inside at the top, below, each at the left and then at the right."""
    left, top, right, bottom = box.corners
    for y in (top - height, top, bottom, bottom - height):
        for x in (left, right - width):
            yield Area(x, y, x + width, y + height)
