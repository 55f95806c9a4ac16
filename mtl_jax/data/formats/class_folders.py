"""Class folders: a folder of images for each class, with or without split folders."""

from __future__ import annotations

from pathlib import Path

from mtl_jax.data.formats.entries import SPLIT_WORDS, Annotations, Entry
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset
from mtl_jax.data.formats.writing import Out, by_split
from mtl_jax.data.sources.image_folder import readable


def is_class_folders(place: Place) -> bool:
    """Returns whether images are in two or more folders other than splits."""
    return not place.is_file and len({name for image in place.below_images if (name := _class(image, place))}) > 1


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads classes from folder names; images outside class folders are dropped."""
    del kind
    classes = {image: _class(image, place) for image in place.below_images}
    folders = tuple(sorted({name for name in classes.values() if name}))
    names = dict(zip(folders, readable(place.root, folders), strict=True))
    entries = [
        Entry(image, str(image.parent), split=place.split_of(image), class_name=names[name])
        for image, name in classes.items()
        if name
    ]
    annotations = Annotations(entries, tag_names=tuple(names.values()))
    annotations.counts["images outside the class folders, left out"] = len(classes) - len(entries)
    return annotations


def _class(image: Path, place: Place) -> str:
    """Returns the outermost folder that is no split."""
    return next(
        (folder for folder in image.relative_to(place.root).parts[:-1] if folder.lower() not in SPLIT_WORDS), ""
    )


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}/{class}; images without class are dropped."""
    for split, records in by_split(dataset):
        for record in records:
            if record.class_name is None:
                out.counts["images without class left out"] += 1
            else:
                out.put_image(record, f"{split or '.'}/{out.folder_name(record.class_name)}")
