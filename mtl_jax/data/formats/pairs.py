"""Finds images and the maps (masks, depths) that belong to them: files of one name, in two folders or in one."""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.data.files import is_image, walk
from mtl_jax.data.formats.place import Place
from mtl_jax.data.images import FORMATS, LOSSY, MAX_PIXELS
from mtl_jax.data.masks import distinct

SAMPLED = 3  # files of a folder, to recognise what they are
FEW = 64  # colours or levels: a photograph has more, a mask seldom
MAP_WORDS = ("mask", "label", "seg", "gt", "annot", "depth", "truth", "disparity")
IMAGE_WORDS = ("image", "img", "photo", "rgb", "picture", "jpeg")
MARKED = re.compile(r"(.+?)[_\-. ]+(masks?|labels?|seg|segmentation|gt|depth|labelids|groundtruth|l)", re.IGNORECASE)


Named = tuple[str, Path]  # name without mark and suffix, file


class Look(NamedTuple):
    """Content of a few files of a group."""

    grey: bool  # numbers: greyscale or palette
    has_few_values: bool  # colours or levels
    binary: bool  # two values at most, one of them 0
    lossy: bool


class Group(NamedTuple):
    """Image files of one folder whose names end alike."""

    folder: Path
    has_mask_suffix: bool  # as "photo_mask.png" is
    suffix: str
    files: tuple[Named, ...]

    @property
    def names(self) -> set[str]:
        """Names of its files."""
        return {name for name, _ in self.files}


class Pair(NamedTuple):
    """An image and its map."""

    image: Path
    map: Path


def pairs_of(place: Place, *, depth: bool) -> list[Pair]:
    """Returns each image with its mask, or with its depth.

    Args:
        place: of the dataset; where its path holds maps alone, images are looked for next to it.
        depth: maps of many levels are looked for, instead of masks of few values.
    """
    groups = groups_of(place.below_images)
    pairs = _matched(groups, groups, depth)
    if not pairs and not place.is_file:
        around = walk(place.images_root or place.root.parent)
        neighbours = groups_of(path for path in around if is_image(path) and place.root not in path.parents)
        pairs = _matched(neighbours, groups, depth)
    return pairs


def groups_of(files: Iterable[Path]) -> list[Group]:
    """Returns the groups of some image files."""
    groups: dict[tuple[Path, bool, str], list[tuple[str, Path]]] = defaultdict(list)
    for file in files:
        mark = MARKED.fullmatch(file.stem)
        groups[file.parent, mark is not None, file.suffix.lower()].append((mark[1] if mark else file.stem, file))
    return [Group(*key, tuple(of_group)) for key, of_group in groups.items()]


def _matched(images: Sequence[Group], maps: Sequence[Group], depth: bool) -> list[Pair]:
    pairs: dict[Path, Path] = {}
    for group in maps:
        fitting = [candidate for candidate in images if candidate is not group and candidate.names & group.names]
        fitting = [candidate for candidate in fitting if _is_map_of(group, candidate, depth)]
        if not fitting:
            continue
        best = max(
            fitting,
            key=lambda candidate: (_nearness(candidate.folder, group.folder), len(candidate.names & group.names)),
        )
        by_name = dict(best.files)
        pairs |= {by_name[name]: file for name, file in group.files if name in by_name}
    return [Pair(image, file) for image, file in sorted(pairs.items())]


def _nearness(first: Path, second: Path) -> int:
    return len(os.path.commonpath([first, second]))


def _is_map_of(group: Group, images: Group, depth: bool) -> bool:
    """Whether the files of one group are the maps of those of the other, and not the other way round."""
    map_look, image_look = look_at(group.files), look_at(images.files)
    if map_look.lossy or (not map_look.has_few_values if not depth else map_look.has_few_values or not map_look.grey):
        return False
    by_name = (_role(group) - _role(images)) or 0
    return by_name > 0 or (
        by_name == 0 and (map_look.grey, map_look.has_few_values) > (image_look.grey, image_look.has_few_values)
    )


def _role(group: Group) -> int:
    """Meaning of a name: 1 for maps, -1 for images."""
    if group.has_mask_suffix:
        return 1
    for folder_name in reversed(group.folder.parts[-2:]):
        if any(word in folder_name.lower() for word in MAP_WORDS):
            return 1
        if any(word in folder_name.lower() for word in IMAGE_WORDS):
            return -1
    return 0


def look_at(files: Sequence[Named]) -> Look:
    """Looks at the first files of a group; those that cannot be read say nothing."""
    looks = [look for _, file in sample(files) if (look := _look_once(file, file.stat().st_mtime_ns)) is not None]
    if not looks:
        return Look(False, False, False, True)
    return Look(
        grey=all(look.grey for look in looks),
        has_few_values=all(look.has_few_values for look in looks),
        binary=all(look.binary for look in looks),
        lossy=any(look.lossy for look in looks),
    )


def sample(files: Sequence[Named]) -> Sequence[Named]:
    """Returns a few files, evenly spread."""
    return files[:: max(1, len(files) // SAMPLED)][:SAMPLED]


@functools.lru_cache(maxsize=10_000)
def _look_once(file: Path, changed_ns: int) -> Look | None:
    del changed_ns
    return _look(file)


def _look(file: Path) -> Look | None:
    try:
        with Image.open(file, formats=FORMATS) as image:
            grey = image.mode in ("1", "L", "P", "I", "I;16")
            if image.format in LOSSY:  # which no map is
                return Look(grey, has_few_values=False, binary=False, lossy=True)
            if image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(image if grey else image.convert("RGB"))
    except Exception:  # is reported when the file is read
        return None
    values = pixels.astype(np.int64) if pixels.ndim == 2 else pixels.astype(np.int64) @ (65536, 256, 1)
    distinct_values = distinct(values)
    return Look(
        grey,
        len(distinct_values) <= FEW,
        len(distinct_values) <= 2 and (distinct_values[0] == 0 or len(distinct_values) == 1),
        lossy=False,
    )


def is_binary(file: Path) -> bool:
    """Whether a file holds two values, of which one is 0, or one alone."""
    look = look_at((("", file),))
    return look.binary and look.grey and not look.lossy
