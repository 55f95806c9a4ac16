"""Dense labels, one value for each pixel: masks and depth maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, Integer, Shaped

from mtl_jax.data.label_shapes.colours import OPACITY, colour
from mtl_jax.data.label_shapes.shape import Facts, Label, LabelShape, Names, span
from mtl_jax.data.sources.base import VOID, Fields, missing
from mtl_jax.data.warp import Placement, warp_nearest

BACKGROUND = "background"


class PixelLabel(LabelShape):
    """A value for every pixel."""

    noun = "pixels"
    can_join = True
    field: ClassVar[str]

    def place(self, fields: Fields, placement: Placement, size: tuple[int, int], min_visible: float) -> Fields:
        """Looks the nearest pixel up, which mixes none with another; what lies outside the image is missing."""
        del min_visible
        pixels = fields[self.field]
        warped = warp_nearest(pixels, placement, size=size, missing=missing(pixels))
        return {**fields, self.field: warped}

    def join(self, quarters: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
        """Lays the four maps side by side."""
        del corners
        return {self.field: tiled([quarter[self.field] for quarter in quarters])}

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether no pixel has a value."""
        del names
        return not facts["pixels"]

    def summary(self, figures: Mapping[str, Any]) -> str:
        """Returns the share of the pixels that have a value."""
        share = 100 * figures["labelled"] / max(1, figures["labelled"] + figures["unlabelled"])
        return f"{share:.3g} % of pixels labelled"


class Mask(PixelLabel):
    """The class of every pixel: {"mask": u8[h, w], u16 of more than 255 classes, or i32 with -1 for void}."""

    field = "mask"
    shows = "mask"
    empty = "masks without anything but background"

    def stack(self, labels: Sequence[Fields], max_boxes: int) -> Fields:
        """Returns the masks of a batch in one type."""
        stacked = super().stack(labels, max_boxes)
        return {**stacked, "mask": np.stack([fields["mask"] for fields in labels], dtype=np.int32, casting="safe")}

    def renumbered(
        self, fields: Fields, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
    ) -> Fields:
        """Renumbers pixels; void ones, and those of a class that counts as unlabelled, are void."""
        mask = fields["mask"]
        fits = mask.dtype.kind == "u" and len(labelled) <= missing(mask)
        dtype = mask.dtype if fits else np.dtype(np.int32)
        void = missing(np.zeros(0, dtype))
        table = np.append(np.where(labelled[numbers], numbers, void), void).astype(dtype)
        is_known = (mask >= 0) & (mask < len(numbers))
        return {**fields, "mask": table[np.where(is_known, mask, len(numbers))]}

    def with_void(self, fields: Fields, value: int | None) -> Fields:
        """Marks void pixels; a mask with signs has -1 where augmentation moved it away."""
        mask, void = fields["mask"], missing(fields["mask"])
        target_value = value if value is not None else void if void >= 0 else VOID
        return {
            **fields,
            "mask": mask if target_value == void else np.where(mask == void, np.int32(target_value), mask),
        }

    def outline(self, fields: Label, names: Names, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels of every class but the background, where that is the first."""
        del size
        mask, has_background = fields["mask"], tuple(names[:1]) == (BACKGROUND,)
        return (mask != missing(mask)) & ((mask != 0) | (not has_background))

    def restrict(self, fields: Fields, region: Bool[np.ndarray, "height width"]) -> Fields:
        """Makes all other pixels void."""
        mask = fields["mask"]
        return {**fields, "mask": np.where(region, mask, missing(mask)).astype(mask.dtype)}

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the classes of the pixels that are not void."""
        mask = fields["mask"]
        void = missing(mask) if mask.dtype.kind == "u" else VOID
        return {value for value in np.unique(mask).tolist() if value >= 0} - {void}

    def draw(self, picture: np.ndarray, fields: Label, scale: float) -> np.ndarray:
        """Lays the colours of all classes but the first over the picture."""
        del scale
        mask: Any = cv2.resize(fields["mask"], picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        palette = np.array([colour(value) for value in range(int(mask.max()) + 1)], np.uint8)
        is_object = (mask != missing(fields["mask"])) & (mask > 0)
        mixed = cv2.addWeighted(picture, 1 - OPACITY, palette[mask], OPACITY, 0)
        return np.where(is_object[..., None], mixed, picture)

    def observe(self, fields: Label) -> Facts:
        """Returns the pixels of each value."""
        values, counts = _value_counts(fields["mask"])
        return {"pixels": {str(value): count for value, count in zip(values, counts, strict=True)}}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the images and pixels of each class."""
        pixels: Counter[int] = Counter()
        images: Counter[int] = Counter()
        for image_facts in facts:
            for value, count in image_facts["pixels"].items():
                pixels[int(value)] += count
                images[int(value)] += 1
        labelled = sum(pixels[value] for value in range(len(names)))  # `base.missing` is beyond
        return {
            "labelled": labelled,
            "unlabelled": sum(pixels.values()) - labelled,
            "classes": {name: {"images": images[i], "pixels": pixels[i]} for i, name in enumerate(names)},
        }

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether no pixel is of a class but the background."""
        background = {"0"} if tuple(names[:1]) == (BACKGROUND,) else set()
        class_values = {str(value) for value in range(len(names))}
        return not (set(facts["pixels"]) & class_values) - background


class DepthMap(PixelLabel):
    """The distance of every pixel: {"depth": f32[h, w]} in metres, NaN where missing; whatever the scale."""

    field = "depth"
    shows = "depth map"
    unit = " m"
    empty = "depth maps without a depth"

    def caption(self, fields: Label, names: Names) -> str:
        """Returns what the picture shows."""
        del fields, names
        return "depth"

    def draw(self, picture: np.ndarray, fields: Label, scale: float) -> np.ndarray:
        """Replaces the picture by shades, the brighter the nearer."""
        del scale
        depth = cv2.resize(fields["depth"], picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        is_finite = np.isfinite(depth)
        if not is_finite.any():
            return picture
        shade = np.where(is_finite, 255 * (1 - depth / max(float(depth[is_finite].max()), 1e-6)), 0).astype(np.uint8)
        return np.where(is_finite[..., None], np.repeat(shade[..., None], 3, axis=-1), picture)

    def observe(self, fields: Label) -> Facts:
        """Returns the pixels that have a depth, and its range."""
        depth = fields["depth"]
        finite_values = depth[np.isfinite(depth)]
        low, high = (float(finite_values.min()), float(finite_values.max())) if finite_values.size else (None, None)
        return {
            "pixels": int(finite_values.size),
            "missing": int(depth.size - finite_values.size),
            "min": low,
            "max": high,
        }

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the range over all images."""
        del names
        measured_images = [image_facts for image_facts in facts if image_facts["pixels"]]
        return {
            "labelled": sum(image_facts["pixels"] for image_facts in facts),
            "unlabelled": sum(image_facts["missing"] for image_facts in facts),
        } | span(
            [image_facts["min"] for image_facts in measured_images],
            [image_facts["max"] for image_facts in measured_images],
        )


def tiled(quarters: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, "..."]:
    """Lays four arrays side by side: upper left, upper right, lower left, lower right."""
    return np.concatenate([np.concatenate(quarters[:2], axis=1), np.concatenate(quarters[2:], axis=1)])


def _value_counts(mask: np.ndarray) -> tuple[list[int], list[int]]:
    if mask.size and mask.dtype.itemsize > 1 and (mask.min() < 0 or mask.max() > np.iinfo(np.uint16).max):
        values, counts = np.unique(mask, return_counts=True)
    else:
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    return values.tolist(), counts.tolist()
