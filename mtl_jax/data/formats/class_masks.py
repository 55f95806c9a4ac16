"""Binary masks, one file for each class: {class}/{image}.png, {image}_{class}.png or {image}/{class}.png."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax.data.files import is_image, walk
from mtl_jax.data.formats.entries import SPLIT_WORDS, Annotations, Entry
from mtl_jax.data.formats.mask_files import ClassMasks
from mtl_jax.data.formats.pairs import MAP_WORDS, groups_of, is_binary, sample
from mtl_jax.data.formats.pixels import mask_of
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import BACKGROUND, Dataset
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split
from mtl_jax.data.images import read_image
from mtl_jax.data.sources.base import missing

ClassFiles = dict[Path, dict[str, Path]]  # image -> class -> file


def is_class_masks(place: Place) -> bool:
    """Returns whether several binary masks belong to one image."""
    return not place.is_file and bool(_masks_by_image(place))


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Assigns mask files to images; pixels without a class are background."""
    del kind
    masks_by_image = _masks_by_image(place)
    names = (BACKGROUND, *sorted({name for class_files in masks_by_image.values() for name in class_files}))
    entries = [
        Entry(
            image,
            str(next(iter(class_files.values()))),
            split=place.split_of(image) or place.split_of(next(iter(class_files.values()))),
            mask=ClassMasks(tuple((file, names.index(name)) for name, file in sorted(class_files.items())), len(names)),
        )
        for image, class_files in sorted(masks_by_image.items())
    ]
    return Annotations(entries, mask_names=names)


def _masks_by_image(place: Place) -> ClassFiles:
    files = place.below_images
    groups = [group for group in groups_of(files) if any(is_binary(file) for _, file in sample(group.files))]
    binary = [file for group in groups for _, file in group.files if is_binary(file)]
    mixed = {file.parent for group in groups for _, file in group.files} & {
        file.parent for file in set(files) - set(binary)
    }
    images = set(files) - set(binary)
    if binary and not images:  # a folder of masks next to the folder of images
        images = {path for path in walk(place.images_root or place.root.parent) if is_image(path)} - set(files)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in sorted(images):
        by_stem[image.stem].append(image)
    masks_by_image: ClassFiles = defaultdict(dict)
    for file in binary:
        for image, name in _owner(file, by_stem, place, named_by_folder=file.parent not in mixed):
            masks_by_image[image].setdefault(name, file)
    names = {name for class_files in masks_by_image.values() for name in class_files}
    has_classes = len(names) > 1 or (len(names) == 1 and not _is_general(next(iter(names))))
    return dict(masks_by_image) if has_classes else {}


def _owner(
    file: Path, by_stem: dict[str, list[Path]], place: Place, *, named_by_folder: bool
) -> Iterator[tuple[Path, str]]:
    """Yields image and class of a mask file; a folder with masks only may name either of them."""
    if named_by_folder and file.parent.name in by_stem:
        yield _nearest(by_stem[file.parent.name], file, place), file.stem
    elif file.stem in by_stem:
        if named_by_folder and not _is_general(file.parent.name):
            yield _nearest(by_stem[file.stem], file, place), file.parent.name
    else:
        for position in (i for i, letter in enumerate(file.stem) if letter in "_-. "):
            name = file.stem[position + 1 :].strip("_-. ")
            if file.stem[:position] in by_stem and name and not _is_general(name):
                yield _nearest(by_stem[file.stem[:position]], file, place), name
                return


def _nearest(images: Sequence[Path], file: Path, place: Place) -> Path:
    """Returns the image of a mask; prefers one of the same split among images of equal name."""
    same_split = [image for image in images if place.split_of(image) == place.split_of(file)]
    return (same_split or images)[0]


def _is_general(name: str) -> bool:
    """Returns whether a name means masks in general, or a split."""
    return name.lower() in SPLIT_WORDS or any(word in name.lower() for word in MAP_WORDS)


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}/images and {split}/masks/{class}; unlabelled pixels become background."""
    names = dataset.classes["segmentation"]
    for split, records in by_split(dataset):
        folder = split or NO_SPLIT if dataset.splits else "."
        for record in records:
            mask = mask_of(record, {name: value for value, name in enumerate(names)}, read_image(record.image))
            if mask is None:
                out.counts["images without mask left out"] += 1
                continue
            image = out.put_image(record, f"{folder}/images")
            out.counts["images with unlabelled pixels, now background"] += bool((mask == missing(mask)).any())
            for value, name in enumerate(names):
                if name != BACKGROUND:
                    file = out.file(f"{folder}/masks/{out.folder_name(name)}/{image.stem}.png")
                    Image.fromarray(np.where(mask == value, 255, 0).astype(np.uint8)).save(file)
