"""Composes four samples into one, so that a detector sees more and smaller objects per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.label_shapes.pixels import tiled
from mtl_jax.data.sources.base import WHOLE_FIELDS, Fields, Sample
from mtl_jax.data.transforms import Augment, change_colours, place, random_scales
from mtl_jax.data.warp import Placement, fit, snapped
from mtl_jax.errors import UserError

_CENTRE = (0.25, 0.75)  # where the four images meet, as a fraction of the output


def mosaic(samples: Sequence[Sample], rng: np.random.Generator, *, size: tuple[int, int], augment: Augment) -> Sample:
    """Composes four samples around a random point; each is scaled, cropped and flipped by itself.

    Args:
        samples: four, each with the same labels; they are not changed.
        rng: source of chance.
        size: of the output, (height, width) px.
        augment: how much may change.

    Raises:
        UserError: a label is one for a whole image, such as a class.

    References:
        Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020.
    """
    single = [name for name, fields in samples[0]["labels"].items() if not shape_of(fields).can_join]
    if single:
        raise UserError(
            f"augment: expected labels that join in a mosaic, found {', '.join(single)}; "
            "set mosaic_probability=0 for it"
        )
    middle_y, middle_x = (round(side * rng.uniform(*_CENTRE)) for side in size)
    quarters = [
        _quarter(sample, rng, bottom=bottom, right=right, middle=(middle_y, middle_x), size=size, augment=augment)
        for sample, (bottom, right) in zip(samples, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]
    corners = [(0, 0), (0, middle_x), (middle_y, 0), (middle_y, middle_x)]
    labels = {
        name: _join_labels([quarter["labels"][name] for quarter in quarters], corners) for name in samples[0]["labels"]
    }
    image = change_colours(tiled([quarter["image"] for quarter in quarters]), rng, augment=augment)
    return {"image": image, "labels": labels, "id": "+".join(sample["id"] for sample in samples)}


def _quarter(
    sample: Sample,
    rng: np.random.Generator,
    *,
    bottom: int,
    right: int,
    middle: tuple[int, int],
    size: tuple[int, int],
    augment: Augment,
) -> Sample:
    """One image of a mosaic: touches the middle if it is smaller than its quarter, else a random crop."""
    height, width = sample["image"].shape[:2]
    space_y = size[0] - middle[0] if bottom else middle[0]
    space_x = size[1] - middle[1] if right else middle[1]
    scale_x, scale_y = random_scales(rng, fit(height, width, size=size, crop=augment.crop).scale_x, augment)
    slack_x, slack_y = space_x - width * scale_x, space_y - height * scale_y
    offset_x = slack_x * (rng.random() if slack_x < 0 else 1 - right)
    offset_y = slack_y * (rng.random() if slack_y < 0 else 1 - bottom)
    placement = Placement(scale_x, scale_y, offset_x, offset_y)
    if rng.random() < augment.flip_probability:
        centred = offset_x + width * scale_x  # mirrored in place: the image stays where it is
        placement = placement._replace(scale_x=-scale_x, offset_x=centred)
    placement = snapped(placement, height, width, size=(space_y, space_x))
    return place(sample, placement, size=(space_y, space_x), min_visible=augment.min_visible)


def _join_labels(quarters: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
    image_fields = {
        name: np.all([quarter[name] for quarter in quarters], axis=0) for name in WHOLE_FIELDS if name in quarters[0]
    }
    quarter_fields = [
        {name: value for name, value in quarter.items() if name not in WHOLE_FIELDS} for quarter in quarters
    ]
    return shape_of(quarter_fields[0]).join(quarter_fields, corners) | image_fields
