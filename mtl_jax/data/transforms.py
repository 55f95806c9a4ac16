"""Random changes of a sample, image and labels together: scale, crop, flip, colour."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8

from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.sources.base import Sample
from mtl_jax.data.warp import Placement, fit, mirror, snapped, warp
from mtl_jax.errors import UserError

_SHARES = (
    *("crop_area_min", "flip_probability", "mosaic_probability", "min_visible"),
    *("brightness", "contrast", "saturation"),
)
_GREY = np.array([0.299, 0.587, 0.114])  # shares of red, green and blue in brightness (ITU-R BT.601)
_CROP_ATTEMPTS = 10  # to find a crop of the drawn area and aspect inside the image


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of a training sample; every default is "off".

    Scales are relative to the largest that fits the whole image into the output, or with `crop` to the least at which
    the image fills it.
    """

    scale_min: float = 1.0
    scale_max: float = 1.0
    aspect: float = 1.0  # largest stretch of one side against the other; 1.33 is usual for classification
    random_position: bool = False  # of the crop, or of the image in its padding; centred otherwise
    crop_area_min: float = 0.0  # 0 is off; else a crop of at least this share of the image fills the output
    flip_probability: float = 0.0  # left-right
    brightness: float = 0.0  # strengths: a factor from [1 - strength, 1 + strength]
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # of the whole colour circle, at most 0.5
    mosaic_probability: float = 0.0  # of composing four images into one
    crop: bool = False  # the image fills the output, instead of lying whole between grey bars
    min_visible: float = 0.2  # share of a box's area that must be left inside a crop for the box to stay

    @property
    def moves(self) -> bool:
        """Whether images are scaled, stretched or moved at random."""
        return self.scale_min < self.scale_max or self.aspect > 1 or self.random_position or self.crop_area_min > 0

    def __post_init__(self) -> None:
        """Refuses impossible values.

        Raises:
            UserError: names the setting.
        """
        if not 0 < self.scale_min <= self.scale_max:
            raise UserError(
                f"augment.scale_min: expected more than 0 and at most scale_max, {self.scale_max}, "
                f"found {self.scale_min}"
            )
        if self.aspect < 1:
            raise UserError(f"augment.aspect: expected at least 1, found {self.aspect}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}: expected at least 0 and at most 1, found {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"augment.hue: expected at least 0 and at most 0.5, found {self.hue}")


def apply(sample: Sample, rng: np.random.Generator, *, size: tuple[int, int], augment: Augment) -> Sample:
    """Scales, crops, flips and recolours one sample, in this order.

    Args:
        sample: is not changed.
        rng: source of chance.
        size: of the output, (height, width) px.
        augment: how much may change.
    """
    height, width = sample["image"].shape[:2]
    placement = random_placement(height, width, rng, size=size, augment=augment)
    placed_sample = place(sample, placement, size=size, min_visible=augment.min_visible)
    placed_sample["image"] = change_colours(placed_sample["image"], rng, augment=augment)
    return placed_sample


def random_placement(
    height: int, width: int, rng: np.random.Generator, *, size: tuple[int, int], augment: Augment
) -> Placement:
    """Draws scale, crop and flip.

    Args:
        height: of the image, px.
        width: of the image, px.
        rng: source of chance.
        size: of the output, (height, width) px.
        augment: how much may change.
    """
    if augment.crop_area_min > 0:
        placement = _random_crop(height, width, rng, size, augment)
    else:
        base = fit(height, width, size=size, crop=augment.crop)
        scale_x, scale_y = random_scales(rng, base.scale_x, augment)
        share_x, share_y = rng.random(2) if augment.random_position else (0.5, 0.5)
        offset_x = (size[1] - width * scale_x) * share_x
        placement = Placement(scale_x, scale_y, offset_x, (size[0] - height * scale_y) * share_y)
    if rng.random() < augment.flip_probability:
        placement = mirror(placement, size[1])
    return snapped(placement, height, width, size=size) if augment.moves else placement


def random_scales(rng: np.random.Generator, fitting: float, augment: Augment) -> tuple[float, float]:
    """Draws the scales of x and y; `fitting` is the scale at which the whole image fits the output."""
    scale = fitting * rng.uniform(augment.scale_min, augment.scale_max)
    stretching = np.sqrt(_random_aspect(rng, augment))
    return scale * stretching, scale / stretching


def place(sample: Sample, placement: Placement, *, size: tuple[int, int], min_visible: float = 0.0) -> Sample:
    """Moves image, mask, depth map and boxes; pads the image with grey, the mask with void and the depth with NaN.

    Depth stays as labelled, in metres, whatever the scale.

    Labels of a whole image stay as they are, even where what they name is cropped away.

    Args:
        sample: is not changed.
        placement: where it goes.
        size: of the output, (height, width) px.
        min_visible: boxes with a smaller share of their area left inside the output are dropped.
    """
    labels = {
        name: shape_of(fields).place(fields, placement, size, min_visible) for name, fields in sample["labels"].items()
    }
    return {"image": warp(sample["image"], placement, size=size), "labels": labels, "id": sample["id"]}


def change_colours(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator, *, augment: Augment
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws and applies brightness, contrast, saturation and hue."""
    brightness, contrast, saturation = 1.0, 1.0, 1.0
    if augment.brightness > 0 or augment.contrast > 0:
        brightness, contrast = _factor(rng, augment.brightness), _factor(rng, augment.contrast)
    if augment.saturation > 0:
        saturation = _factor(rng, augment.saturation)
    if (brightness, contrast, saturation) != (1.0, 1.0, 1.0):  # all at once, so that none cuts levels off for the next
        colours = saturation * np.eye(3) + (1 - saturation) * _GREY
        shift = np.full((3, 1), 127.5 * (1 - contrast))
        image = cv2.transform(image, np.hstack([brightness * contrast * colours, shift]).astype(np.float32))
    if augment.hue > 0:
        turn = round(256 * rng.uniform(-augment.hue, augment.hue)) % 256
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(turn)  # wraps around, as hue does
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def _random_aspect(rng: np.random.Generator, augment: Augment) -> float:
    limit = np.log(augment.aspect)
    return float(np.exp(rng.uniform(-limit, limit)))


def _random_crop(
    height: int, width: int, rng: np.random.Generator, size: tuple[int, int], augment: Augment
) -> Placement:
    """A crop of random area and aspect that fills the output; if none fits, the largest of its aspect."""
    output_aspect = size[1] / size[0]
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(augment.crop_area_min, 1.0)
        aspect = output_aspect * _random_aspect(rng, augment)
        crop_width, crop_height = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            break
    else:
        crop_width = min(width, height * output_aspect)
        crop_height = crop_width / output_aspect
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    scale_x, scale_y = size[1] / crop_width, size[0] / crop_height
    return Placement(float(scale_x), float(scale_y), float(-left * scale_x), float(-top * scale_y))


def _factor(rng: np.random.Generator, strength: float) -> float:
    return float(rng.uniform(1 - strength, 1 + strength))
