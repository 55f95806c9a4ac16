"""Assembles a dataset from a format's entries: finds images, converts objects to upright pixels and cleans them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mtl_jax.data import orientation
from mtl_jax.data.formats.cleaning import Cleaner, scale_of
from mtl_jax.data.formats.entries import SPLIT_ORDER, Annotations, Entry
from mtl_jax.data.formats.place import Finder, Place
from mtl_jax.data.formats.records import BACKGROUND, Dataset, Record, Shape
from mtl_jax.data.images import read_header
from mtl_jax.data.orientation import Header
from mtl_jax.data.sources.base import Reading, counted
from mtl_jax.errors import UserError

# Words in the names of counts that are reported as warnings: labels were dropped or changed.
REPORTED_WORDS = (
    *("dropped", "left out", "not read", "without image", "without the image", "another order", "contradiction"),
    *("called object", "clipped", "without annotation"),
)


class _Located(NamedTuple):
    """An entry with its image."""

    entry: Entry
    image: Path
    header: Header


def assemble(
    name: str, place: Place, annotations: Annotations, *, kind: str | None = None, annotated_on: str = "auto"
) -> Dataset:
    """Assembles a dataset.

    Args:
        name: name of the format.
        place: location of the labels.
        annotations: output of the format's reader.
        kind: requested kind of label; with "masks", objects without an outline fill their box.
        annotated_on: one of `orientation.ANNOTATED_ON`.

    Raises:
        UserError: images are missing, one has another size than its labels, or the EXIF convention is ambiguous.
    """
    located = _merge(_locate(place, annotations), annotations)
    _complete_tags([item.entry for item in located], annotations)
    convention = orientation.judge(
        ((str(item.image), item.header, _annotated_size(item)) for item in located if item.header.is_turned),
        annotated_on=orientation.check(annotated_on),
        noun="labels",
        location=place.path,
    )
    annotations.counts["images turned"] = convention.turned
    annotations.notes += convention.notes
    scale, note = scale_of([item.entry for item in located])
    annotations.notes += [f"{place.path}: {note}"] if note else []
    cleaner = Cleaner(len(located))
    names = _names(place, [item.image for item in located])
    records = []
    for number, item in enumerate(located):
        stored = _is_stored(item, convention)
        shapes = None
        if item.entry.shapes is not None:
            pixel_shapes = scale(
                item.entry, (item.header.width, item.header.height) if stored else item.header.upright_size
            )
            shapes = cleaner.clean(number, pixel_shapes, item.header, stored=stored, location=item.entry.location)
        records.append(_record(place, item, names[number], shapes, stored))
    counts = {"images": len(records), **annotations.counts, **cleaner.counts()}
    annotations.notes += [*_loss_notes(place, counts), *_box_fill_warnings(place, records, kind)]
    return Dataset(
        format=name,
        path=place.path,
        records=tuple(sorted(records, key=lambda record: (record.image.name, record.name))),
        classes=_classes(annotations, records, kind),
        splits=tuple(split for split in SPLIT_ORDER if any(record.split == split for record in records)),
        reading=Reading(
            {noun: count for noun, count in counts.items() if count}, (*annotations.notes, *cleaner.notes(place.path))
        ),
    )


def _loss_notes(place: Place, counts: Mapping[str, int]) -> Iterator[str]:
    losses = [
        counted(count, name) for name, count in counts.items() if count and any(word in name for word in REPORTED_WORDS)
    ]
    if losses:
        yield f"{place.path}: {', '.join(losses)}."


def _box_fill_warnings(place: Place, records: Sequence[Record], kind: str | None) -> Iterator[str]:
    shapes = [shape for record in records for shape in record.shapes or ()]
    boxes = sum(not shape.polygons and shape.runs is None for shape in shapes)
    if boxes and (kind == "masks" or boxes < len(shapes)):
        yield f"{place.path}: {boxes} of {counted(len(shapes), 'objects')} have no outline: in masks they fill a box."


def _locate(place: Place, annotations: Annotations) -> list[_Located]:
    finder = Finder(place)
    located, missing = [], []
    for entry in annotations.entries:
        image = _image(entry, finder, place)
        if image is None:
            missing.append(entry)
        else:
            located.append(_Located(entry, image, read_header(image)))
    if not located:
        first = f" (first: {missing[0].image}, named by {missing[0].location})" if missing else ""
        raise UserError(
            f"{place.path}: expected the images of these labels, found none of {len(missing)}{first}; put them there, "
            "or name their folder (images)"
        )
    if missing:
        annotations.counts["images missing"] = len(missing)
        annotations.notes.append(
            f"{place.path}: {counted(len(missing), 'images')} of {len(annotations.entries)} missing and left out "
            f"(first: {missing[0].image}, named by {missing[0].location})."
        )
    if finder.by_name_alone:
        annotations.counts["images found by their name alone"] = finder.by_name_alone
    return located


def _complete_tags(entries: Sequence[Entry], annotations: Annotations) -> None:
    """Marks unlisted tags as false where the format implies it; a single tag per image becomes its class."""
    tagged = [entry for entry in entries if entry.tags is not None]
    names = {tag for entry in tagged for tag in entry.tags or ()} | set(annotations.tag_names or () if tagged else ())
    if annotations.tags_are_complete:
        for entry in tagged:
            entry.tags = {name: (entry.tags or {}).get(name, False) for name in sorted(names)}
    if tagged and all(sum((entry.tags or {}).values()) == 1 for entry in tagged):
        for entry in tagged:
            entry.class_name = entry.class_name or next(tag for tag, is_true in (entry.tags or {}).items() if is_true)


def _image(entry: Entry, finder: Finder, place: Place) -> Path | None:
    if isinstance(entry.image, Path):
        return entry.image
    near = entry.near or place.root
    image = finder.find(entry.image, near)
    return image or (finder.find(entry.other_name, near) if entry.other_name else None)


def _merge(located: Sequence[_Located], annotations: Annotations) -> list[_Located]:
    """Merges the labels of entries with the same image."""
    by_image: dict[Path, _Located] = {}
    repeated: list[_Located] = []
    for item in located:
        first = by_image.setdefault(item.image, item)
        if first is not item:
            repeated.append(item)
            by_image[item.image] = first._replace(entry=_merge_pair(first.entry, item.entry, annotations))
    if repeated:
        annotations.counts["image entries merged"] = len(repeated)
        annotations.notes.append(
            f"{counted(len(repeated), 'images')} named more than once (first: {repeated[0].entry.image}, in "
            f"{repeated[0].entry.location}): each is one image with all its labels; look whether two exports were "
            "joined."
        )
    return list(by_image.values())


def _merge_pair(first: Entry, second: Entry, annotations: Annotations) -> Entry:
    """Merges two entries; contradictions are counted, and the first entry wins."""
    if first.size and second.size and first.size != second.size:
        raise UserError(
            f"{second.location}: expected one size of {first.image}, found {first.size[0]} x {first.size[1]} and "
            f"{second.size[0]} x {second.size[1]} px; correct the file"
        )
    changes = {}
    for field in ("mask", "class_name", "value", "depth", "tags", "size"):
        value, other_value = getattr(first, field), getattr(second, field)
        if value is None:
            changes[field] = other_value
        elif field == "tags" and other_value is not None:
            changes[field] = {
                **other_value,
                **{tag: is_true or other_value.get(tag, False) for tag, is_true in value.items()},
            }
        elif other_value is not None and other_value != value and field in ("class_name", "value"):
            annotations.counts["labels in contradiction"] += 1
    if second.shapes is not None:
        changes["shapes"] = [*(first.shapes or []), *second.shapes]
    return dataclasses.replace(first, split=first.split or second.split, **changes)


def _annotated_size(item: _Located) -> tuple[int, int] | None:
    maps = item.entry.depth or item.entry.mask
    if item.entry.size is None and maps is not None:
        header = read_header(maps.file)
        return header.width, header.height
    return item.entry.size


def _is_stored(item: _Located, convention: orientation.Convention) -> bool:
    """Returns whether labels refer to the stored pixels, before the EXIF orientation is applied.

    Raises:
        UserError: the labels have another size than the image, or the convention is ambiguous.
    """
    entry, header = item.entry, item.header
    size = _annotated_size(item) if header.is_turned else entry.size
    if size is not None and size not in (header.upright_size, (header.width, header.height)):
        width, height = header.upright_size
        raise UserError(
            f"{entry.location}: expected labels of {item.image} for its {width} x {height} px, found {size[0]} x "
            f"{size[1]}; use the image that was labelled"
        )
    if not header.is_turned or not (entry.shapes or entry.mask or entry.depth):
        return False
    by_size = None if size is None else orientation.is_stored(header, size)
    return convention.decided(item.image, "labels") if by_size is None else by_size


def _record(place: Place, item: _Located, name: str, shapes: tuple[Shape, ...] | None, stored: bool) -> Record:
    entry = item.entry
    tags, class_name = entry.tags, entry.class_name
    return Record(
        image=item.image,
        name=name,
        size=item.header.upright_size,
        split=entry.split or place.listed_split_of(item.image) or place.split_of(item.image),
        shapes=shapes,
        mask=entry.mask,
        class_name=class_name,
        tags=tags,
        value=entry.value,
        depth=entry.depth,
        stored=stored,
    )


def _names(place: Place, images: Sequence[Path]) -> list[str]:
    """Returns file names, or paths relative to the dataset if two images have the same name."""
    if max(Counter(image.name for image in images).values()) == 1:
        return [image.name for image in images]
    return [
        image.relative_to(root).as_posix() if root is not None else image.as_posix()
        for image in images
        for root in [next((root for root in (place.root, place.images_root) if root in image.parents), None)]
    ]


def _classes(annotations: Annotations, records: Sequence[Record], kind: str | None) -> dict[str, tuple[str, ...]]:
    """Returns class names by label; sorted if the format defines no order."""
    objects = _table(annotations.names, (shape.label for record in records for shape in record.shapes or ()))
    tags = _table(annotations.tag_names, (tag for record in records for tag in record.tags or ()))
    classes = _table(annotations.tag_names, (record.class_name for record in records if record.class_name is not None))
    has_outlines = any(shape.polygons or shape.runs for record in records for shape in record.shapes or ())
    label_kinds = {
        "detection": any(record.shapes is not None for record in records),
        "mask": any(record.mask is not None for record in records),
        "classification": any(record.class_name is not None for record in records),
        "multi_label": any(record.tags is not None for record in records),
    }
    classes_by_label: dict[str, tuple[str, ...]] = {}
    if label_kinds["detection"]:
        classes_by_label["detection"] = objects
    if label_kinds["mask"]:
        classes_by_label["segmentation"] = tuple(annotations.mask_names)
    elif label_kinds["detection"] and (has_outlines or kind == "masks"):
        classes_by_label["segmentation"] = (BACKGROUND, *objects)
    if label_kinds["classification"]:
        classes_by_label["classification"] = classes
    if label_kinds["multi_label"] or label_kinds["detection"]:
        classes_by_label["multi_label"] = tags if label_kinds["multi_label"] else objects
    if any(record.value is not None for record in records):
        classes_by_label["value"] = ()
    if any(record.depth is not None for record in records):
        classes_by_label["depth"] = ()
    return classes_by_label


def _table(names: Sequence[str] | None, labels: Iterator[str]) -> tuple[str, ...]:
    label_set = set(labels)
    table = tuple(dict.fromkeys(names)) if names is not None else ()
    return (*table, *sorted(label_set - set(table)))
