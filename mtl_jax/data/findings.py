"""Findings of a survey: the figures of a split, its faults, and one line about it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mtl_jax.data.facts import SampleFacts
from mtl_jax.data.label_shapes import SHAPES, shape_named
from mtl_jax.data.sources.base import counted
from mtl_jax.data.survey import Survey

NAMED = 20  # broken files in one message; the others are counted
EXAMPLES = 5  # of images that are alike or of one colour
FEW_NAMES = 6  # classes in one sentence


def figures(survey: Survey, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Returns all figures of a split, as JSON has them.

    Args:
        survey: of the split.
        classes: label name -> names of its classes, for the labels that are used.
    """
    samples = survey.samples
    copies = duplicates(samples)
    return {
        "images": survey.images,
        "looked_at": survey.looked_at,
        "digest": survey.digest(tuple(classes)),
        "grey_bits": survey.grey_bits,
        "width_px": _range([sample.width for sample in samples]),
        "height_px": _range([sample.height for sample in samples]),
        "labels": {label: label_figures(survey, label, names) for label, names in classes.items()},
        "read": dict(survey.reading.counts),
        "notes": list(survey.reading.notes),
        "stored_twice": {"images": len(copies), "examples": [list(pair) for pair in copies[:EXAMPLES]]},
        "one_colour": _examples([sample.id for sample in samples if sample.one_colour]),
    }


def label_figures(survey: Survey, label: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns what all labels of one name hold together."""
    facts = [sample.labels[label] for sample in survey.samples]
    if not facts:
        return {"kind": "", "labelled": 0, "unlabelled": 0}
    kind = facts[0]["kind"]
    return {"kind": kind, **SHAPES[kind].total(facts, names)}


def duplicates(samples: Sequence[SampleFacts]) -> list[tuple[str, str]]:
    """Returns the ids of each image that equals an earlier one, and of that one."""
    first: dict[str, str] = {}
    pairs = []
    for sample in samples:
        original = first.setdefault(sample.pixels, sample.id)
        if original is not sample.id and not sample.one_colour:
            pairs.append((sample.id, original))
    return pairs


def unlike_labels(samples: Sequence[SampleFacts], label: str) -> list[tuple[str, str]]:
    """Returns the ids of images that equal an earlier one and are labelled otherwise, and of that one."""
    digests = {sample.id: sample.labels[label]["digest"] for sample in samples}
    return [(copy, original) for copy, original in duplicates(samples) if digests[copy] != digests[original]]


def _range(values: Sequence[int]) -> dict[str, Any]:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else {}


def _examples(ids: Sequence[str]) -> dict[str, Any]:
    return {"images": len(ids), "examples": list(ids[:EXAMPLES])}


def never_shown(figures: Mapping[str, Any]) -> list[str]:
    """Returns the classes of a label that no image shows."""
    return [name for name, count in figures.get("classes", {}).items() if not count["images"]]


def broken(errors: Sequence[str]) -> str:
    """Returns one message about all that cannot be read: what is wrong with several files is said once.

    Args:
        errors: messages that begin with the file that they are about.
    """
    if len(errors) == 1:
        return errors[0]
    files, shown_count, groups_text = [error.partition(": ") for error in errors], 0, []
    folder = _common_folder([file for file, _, _ in files])
    groups: dict[str, list[str]] = {}
    for file, _, reason in files:
        groups.setdefault(reason, []).append(file.removeprefix(folder))
    for reason, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        if shown_count < NAMED:
            groups_text.append(f"{', '.join(names[: NAMED - shown_count])}: {reason}")
            shown_count += len(names[: NAMED - shown_count])
    remainder = f"; and {len(errors) - shown_count} more" if len(errors) > shown_count else ""
    location = f" in {folder}" if folder else ""
    return (
        f"expected files that can be read, found {len(errors)} problems{location}: {'; '.join(groups_text)}{remainder}"
    )


def _common_folder(files: Sequence[str]) -> str:
    if not all(file.startswith(os.sep) for file in files):
        return ""
    return os.path.join(os.path.commonpath([os.path.dirname(file) for file in files]), "")


def abbreviated(names: Sequence[str]) -> str:
    """Returns the first of some names, and how many more there are."""
    remainder = f" and {len(names) - FEW_NAMES} more" if len(names) > FEW_NAMES else ""
    return ", ".join(map(str, names[:FEW_NAMES])) + remainder


def line(figures: Mapping[str, Any]) -> str:
    """Returns what a reader of a log wants to know of a split, in one line."""
    images = counted(figures["images"], "images")
    if figures["looked_at"] < figures["images"]:
        images += f" ({figures['looked_at']} looked at)"
    width, height = figures["width_px"], figures["height_px"]
    phrases = [images]
    if width:
        sizes = [f"{width[statistic]:g} x {height[statistic]:g}" for statistic in ("min", "median", "max")]
        phrases = [f"{images} of {sizes[1]} px" + (f" ({sizes[0]} to {sizes[2]})" if sizes[0] != sizes[2] else "")]
    phrases += [f"{label}: {label_line(of_label)}" for label, of_label in figures["labels"].items()]
    phrases += [counted(count, noun) for noun, count in figures["read"].items() if noun not in _MENTIONED_NOUNS]
    return "; ".join(phrases)


# Counts of a source that the line has by itself.
_MENTIONED_NOUNS = ("images", "boxes", "crowds among them", "images without boxes")


def label_line(figures: Mapping[str, Any]) -> str:
    """Returns what all labels of one name hold together, in a few words."""
    shape = shape_named(figures["kind"])
    classes = figures.get("classes", {})
    text = shape.summary(figures)
    if "min" in figures:
        text += f", from {figures['min']:.4g} to {figures['max']:.4g}{shape.unit}"
    if classes:
        image_counts = {
            name: class_figures["images"] for name, class_figures in classes.items() if class_figures["images"]
        }
        text += f", {len(image_counts)} of {len(classes)} classes"
        if image_counts:
            fewest = min(image_counts, key=lambda name: image_counts[name])
            text += f", fewest {fewest} ({counted(image_counts[fewest], 'images')})"
    return text


def nothing_to_learn(figures: Mapping[str, Any], *, task: str, label: str, location: str) -> str:
    """Returns what to say where no training image has a label of a task; else nothing."""
    of_label = figures["labels"][label]
    if of_label["labelled"]:
        return ""
    return (
        f"{location}: expected labels to learn task {task} from, found none in the {figures['looked_at']} training "
        f"images ({label_line(of_label)}): check the labels, or take the task out of the stream's labels"
    )


def classes_never_shown(training: Sequence[Mapping[str, Any]], *, task: str) -> str:
    """Returns what to say where no training image of any stream shows a class of a task; else nothing.

    Args:
        training: figures of the task's label in every stream that labels it.
        task: its name.
    """
    missing = [name for name in never_shown(training[0]) if all(_is_missing(name, of_stream) for of_stream in training)]
    if not missing:
        return ""
    shows = shape_named(training[0]["kind"]).shows
    return (
        f"task {task}: no training {shows} shows {len(missing)} of {len(training[0]['classes'])} classes "
        f"({abbreviated(missing)}), which cannot be learnt: check the labels and the list of classes"
    )


def _is_missing(name: str, figures: Mapping[str, Any]) -> bool:
    return name not in figures["classes"] or name in never_shown(figures)


def hardly_measured(figures: Mapping[str, Any], *, task: str, label: str, location: str) -> str:
    """Returns what to say where validation images cannot show how well a task, or a class of it, is learnt."""
    of_label = figures["labels"][label]
    classes = of_label.get("classes", {})
    missing = never_shown(of_label)
    present_classes = [name for name in classes if name not in missing]
    shows = shape_named(of_label["kind"]).shows
    if not of_label["labelled"]:
        problem = f"none of the {figures['looked_at']} validation images has a label: the task cannot be measured"
    elif of_label["kind"] == "mask" and len(present_classes) == 1:
        problem = f"no validation mask shows anything but {present_classes[0]}: its figure says nothing"
    elif missing:
        problem = (
            f"no validation {shows} shows {len(missing)} of {len(classes)} classes ({abbreviated(missing)}): "
            "not measured"
        )
    else:
        return ""
    return f"{location}: task {task}: {problem}; choose other validation images"


def odd_images(survey: Survey, labels: Sequence[str], *, location: str) -> list[str]:
    """Returns what to say of images that are stored twice or show nothing."""
    warnings = []
    copies = duplicates(survey.samples)
    if copies:
        otherwise = next((pair for label in labels for pair in unlike_labels(survey.samples, label)), None)
        pair, note = (otherwise, " with other labels") if otherwise else (copies[0], "")
        warnings.append(
            f"{location}: {counted(len(copies), 'images stored')} more than once, such as {pair[0]} and "
            f"{pair[1]}{note}: they count twice; remove copies"
        )
    one_colour = [sample.id for sample in survey.samples if sample.one_colour]
    if one_colour:
        warnings.append(
            f"{location}: {counted(len(one_colour), 'images')} of a single colour ({abbreviated(one_colour)}): look "
            "whether that is right"
        )
    return warnings
