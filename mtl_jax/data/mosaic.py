"""Composes four samples into one, so that a detector sees more and smaller objects per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.data.sources.base import PIXEL_FIELDS, WHOLE_FIELDS, Fields, Sample
from mtl_jax.data.transforms import Augment, change_colours, place, random_scales
from mtl_jax.data.warp import Placement, fit
from mtl_jax.errors import UserError

_CENTRE = (0.25, 0.75)  # where the four images meet, as a fraction of the output


def mosaic(samples: Sequence[Sample], rng: np.random.Generator, *, size: tuple[int, int], augment: Augment) -> Sample:
    """Composes four samples around a random point; each is scaled, cropped and flipped by itself.

    Several classes of a whole image are united: true where true of any of the four, else unknown where unknown of any,
    even where the crop shows nothing of the object.

    Args:
        samples: four, each with the same labels; they are not changed.
        rng: source of chance.
        size: of the output, (height, width) px.
        augment: how much may change.

    Raises:
        UserError: a label is the one answer for a whole image, such as a class.

    References:
        Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020.
    """
    single = [name for name, fields in samples[0]["labels"].items() if not _can_be_joined(fields)]
    if single:
        raise UserError(f"augment: a mosaic has no single {', '.join(single)}: set mosaic_probability=0 for it")
    middle_y, middle_x = (round(side * rng.uniform(*_CENTRE)) for side in size)
    quarters = [
        _quarter(sample, rng, bottom=bottom, right=right, middle=(middle_y, middle_x), size=size, augment=augment)
        for sample, (bottom, right) in zip(samples, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]
    corners = [(0, 0), (0, middle_x), (middle_y, 0), (middle_y, middle_x)]
    labels = {name: _joined([part["labels"][name] for part in quarters], corners) for name in samples[0]["labels"]}
    image = change_colours(_tiled([part["image"] for part in quarters]), rng, augment=augment)
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
    return place(sample, placement, size=(space_y, space_x), min_visible=augment.min_visible)


def _tiled(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)])


def _can_be_joined(fields: Fields) -> bool:
    return bool({*PIXEL_FIELDS, "boxes_xyxy"} & set(fields)) or np.ndim(fields.get("label", 0)) == 1


def _joined(parts: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
    maps = {name: _tiled([part[name] for part in parts]) for name in PIXEL_FIELDS if name in parts[0]}
    whole = {name: np.all([part[name] for part in parts], axis=0) for name in WHOLE_FIELDS if name in parts[0]}
    if maps:
        return maps | whole
    if "boxes_xyxy" not in parts[0]:
        labels = np.stack([part["label"] for part in parts])
        return {"label": np.where((labels == 1).any(axis=0), np.float32(1), labels.max(axis=0))}  # of NaN, NaN
    shifted = [
        {**part, "boxes_xyxy": part["boxes_xyxy"] + np.array([[left, top, left, top]], np.float32)}
        for part, (top, left) in zip(parts, corners, strict=True)
    ]
    return {
        field: np.concatenate([part[field] for part in shifted]) for field in shifted[0] if field not in whole
    } | whole
