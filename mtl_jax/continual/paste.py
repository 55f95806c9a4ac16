"""Pasted replay: objects of exemplars are copied onto new images, where nothing else has a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, UInt8

from mtl_jax.continual.method import (
    Feed,
    Memory,
    Method,
    StageView,
    Starting,
    refuse_without_exemplars,
    setting,
)
from mtl_jax.data import transforms
from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.sources.base import Sample, Source
from mtl_jax.data.warp import Placement, warp_nearest

SCENES = 16  # that an exemplar is replayed in: new images, and itself


@dataclasses.dataclass(frozen=True)
class Paste(Method):
    """Of a share of the replayed samples, the objects alone are laid onto the stage's own images."""

    share: float = setting(
        0.5, "of the replayed samples, whose objects alone come onto the stage's images; 0 is off", most=1.0
    )

    def refuse(self, stage: StageView, starting: Starting) -> None:
        refuse_without_exemplars(f"{stage.location}.keep.paste.share", self.share, starting.tasks)

    def feeds(self, stage: StageView, memory: Memory, feeds: list[Feed]) -> list[Feed]:
        del memory

        def pasted(feed: Feed) -> Feed:
            scenes = stage.source(stage.streams[0])
            return feed._replace(source=PastedReplay(feed.source, scenes, share=self.share, seed=stage.seed))

        return [pasted(feed) for feed in feeds] if self.share else feeds


class PastedReplay:
    """Exemplars, some of them on new images: a source like the exemplars'.

    References:
        Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", 2021 (there
        between labelled images).
    """

    def __init__(self, exemplars: Source, scenes: Source, *, share: float, seed: int) -> None:
        """Keeps the sources.

        Args:
            exemplars: of an old stream.
            scenes: new images; their labels are not read.
            share: of the samples that are laid onto new images.
            seed: of the choice of images and places; a sample depends on it and on its index alone.
        """
        self._exemplars, self._scenes, self._share, self._seed = exemplars, scenes, share, seed
        self.class_names = exemplars.class_names
        self.labelled_classes = getattr(exemplars, "labelled_classes", {})

    def __len__(self) -> int:
        return SCENES * len(self._exemplars)

    def __getitem__(self, index: int) -> Sample:
        exemplar = self._exemplars[index % len(self._exemplars)]
        generator = np.random.default_rng([self._seed, index])
        if generator.random() >= self._share:
            return exemplar
        scene = self._scenes[int(generator.integers(len(self._scenes)))]["image"]
        return paste(exemplar, scene, self.class_names, generator=generator)


def paste(
    sample: Sample,
    scene: UInt8[np.ndarray, "height width 3"],
    class_names: Mapping[str, tuple[str, ...]],
    *,
    generator: np.random.Generator,
) -> Sample:
    """Lays the objects of a sample onto an image, at a random place, as large as they are or as there is room.

    Args:
        sample: with masks or boxes; one whose labels outline no object comes back as it is.
        scene: the image.
        class_names: by label; masks whose first class is "background" outline the others.
        generator: of the place.

    Returns:
        The image with the objects. Masks are void but for them, and all else in it is a crowd to boxes: what the
        image shows around them is not labelled.
    """
    outlined = _objects(sample, class_names)
    if outlined is None or not outlined.any():
        return sample
    (height, width), (rows, columns) = scene.shape[:2], outlined.shape
    scale = min(1.0, height / rows, width / columns)
    left, top = np.floor(generator.uniform(0, [width - columns * scale + 1, height - rows * scale + 1])).tolist()
    placement = Placement(scale, scale, left, top)
    placed = transforms.place(sample, placement, size=(height, width))
    region = warp_nearest(outlined.astype(np.uint8), placement, size=(height, width), missing=0).astype(bool)
    labels = {name: shape_of(fields).restrict(fields, region) for name, fields in placed["labels"].items()}
    return {"image": np.where(region[..., None], placed["image"], scene), "labels": labels, "id": sample["id"]}


def _objects(sample: Sample, class_names: Mapping[str, tuple[str, ...]]) -> Bool[np.ndarray, "height width"] | None:
    """The pixels of what the labels outline; None where a label is of the image as a whole."""
    size = sample["image"].shape[:2]
    outlined = [shape_of(fields).outline(fields, class_names[name], size) for name, fields in sample["labels"].items()]
    outlines = [outline for outline in outlined if outline is not None]
    return np.any(outlines, axis=0) if outlines and len(outlines) == len(outlined) else None
