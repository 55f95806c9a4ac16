"""Pairs of images and maps (masks, depths) with matching names, in two folders or in one."""

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

SAMPLED = 3  # files of a folder, for the detection of their type
MAX_MASK_VALUES = 64  # colours or levels; photographs have more, masks seldom do
MAP_WORDS = ("mask", "label", "seg", "gt", "annot", "depth", "truth", "disparity")
IMAGE_WORDS = ("image", "img", "photo", "rgb", "picture", "jpeg")
MARKED = re.compile(r"(.+?)[_\-. ]+(masks?|labels?|seg|segmentation|gt|depth|labelids|groundtruth|l)", re.IGNORECASE)


Named = tuple[str, Path]  # name without mask mark and suffix, file


class Look(NamedTuple):
    """Properties of the sampled files of a group."""

    grey: bool  # greyscale or palette
    has_few_values: bool  # colours or levels
    binary: bool  # at most two values, one of them 0
    lossy: bool


class Group(NamedTuple):
    """Image files of a folder with the same kind of name suffix."""

    folder: Path
    has_mask_suffix: bool  # such as "photo_mask.png"
    suffix: str
    files: tuple[Named, ...]

    @property
    def names(self) -> set[str]:
        """Names of the files."""
        return {name for name, _ in self.files}


class Pair(NamedTuple):
    """An image and its map."""

    image: Path
    map: Path


def pairs_of(place: Place, *, depth: bool) -> list[Pair]:
    """Returns images paired with their masks or depth maps.

    Args:
        place: location of the dataset; if it has maps only, images are searched next to it.
        depth: whether to search for depth maps of many levels instead of masks.
    """
    groups = groups_of(place.below_images)
    pairs = _match_groups(groups, groups, depth)
    if not pairs and not place.is_file:
        around = walk(place.images_root or place.root.parent)
        neighbours = groups_of(path for path in around if is_image(path) and place.root not in path.parents)
        pairs = _match_groups(neighbours, groups, depth)
    return pairs


def groups_of(files: Iterable[Path]) -> list[Group]:
    """Groups image files by folder and name suffix."""
    groups: dict[tuple[Path, bool, str], list[tuple[str, Path]]] = defaultdict(list)
    for file in files:
        mark = MARKED.fullmatch(file.stem)
        groups[file.parent, mark is not None, file.suffix.lower()].append((mark[1] if mark else file.stem, file))
    return [Group(*key, tuple(members)) for key, members in groups.items()]


def _match_groups(images: Sequence[Group], maps: Sequence[Group], depth: bool) -> list[Pair]:
    pairs: dict[Path, Path] = {}
    for group in maps:
        candidates = [candidate for candidate in images if candidate is not group and candidate.names & group.names]
        candidates = [candidate for candidate in candidates if _is_map_of(group, candidate, depth)]
        if not candidates:
            continue
        best = max(
            candidates,
            key=lambda candidate: (_nearness(candidate.folder, group.folder), len(candidate.names & group.names)),
        )
        by_name = dict(best.files)
        pairs |= {by_name[name]: file for name, file in group.files if name in by_name}
    return [Pair(image, file) for image, file in sorted(pairs.items())]


def _nearness(first: Path, second: Path) -> int:
    return len(os.path.commonpath([first, second]))


def _is_map_of(group: Group, images: Group, depth: bool) -> bool:
    """Returns whether a group has the maps of another group of images."""
    map_look, image_look = look_at(group.files), look_at(images.files)
    if map_look.lossy or (not map_look.has_few_values if not depth else map_look.has_few_values or not map_look.grey):
        return False
    by_name = (_role(group) - _role(images)) or 0
    return by_name > 0 or (
        by_name == 0 and (map_look.grey, map_look.has_few_values) > (image_look.grey, image_look.has_few_values)
    )


def _role(group: Group) -> int:
    """Returns the role that names suggest: 1 for maps, -1 for images, 0 if unclear."""
    if group.has_mask_suffix:
        return 1
    for folder_name in reversed(group.folder.parts[-2:]):
        if any(word in folder_name.lower() for word in MAP_WORDS):
            return 1
        if any(word in folder_name.lower() for word in IMAGE_WORDS):
            return -1
    return 0


def look_at(files: Sequence[Named]) -> Look:
    """Inspects sampled files of a group; unreadable files are ignored."""
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
    """Returns a few evenly spaced files."""
    return files[:: max(1, len(files) // SAMPLED)][:SAMPLED]


@functools.lru_cache(maxsize=10_000)
def _look_once(file: Path, changed_ns: int) -> Look | None:
    del changed_ns
    return _look(file)


def _look(file: Path) -> Look | None:
    try:
        with Image.open(file, formats=FORMATS) as image:
            grey = image.mode in ("1", "L", "P", "I", "I;16")
            if image.format in LOSSY:  # maps are never lossy
                return Look(grey, has_few_values=False, binary=False, lossy=True)
            if image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(image if grey else image.convert("RGB"))
    except Exception:  # reported when the file is read later
        return None
    values = pixels.astype(np.int64) if pixels.ndim == 2 else pixels.astype(np.int64) @ (65536, 256, 1)
    distinct_values = distinct(values)
    return Look(
        grey,
        len(distinct_values) <= MAX_MASK_VALUES,
        len(distinct_values) <= 2 and (distinct_values[0] == 0 or len(distinct_values) == 1),
        lossy=False,
    )


def is_binary(file: Path) -> bool:
    """Returns whether a file is a binary mask: one value, or 0 and another one."""
    look = look_at((("", file),))
    return look.binary and look.grey and not look.lossy
