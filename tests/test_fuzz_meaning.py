"""Whatever way a dataset is written, training sees what was meant, or something is said; `make fuzz` tries more."""

import dataclasses
import functools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from fuzzing import cases
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.data import partial
from mtl_jax.errors import UserError
from mtl_jax.workdir import data_record

SPLITS = ("train", "val")
NAMES = ("blue", "green", "red")  # sorted, as the folders of classes are
SOURCES = {
    "segmentation": ("voc_segmentation", {"folder": "set"}),
    "detection": ("coco_detection", {"folder": "set"}),
    "classification": ("image_folder", {"folder": "set"}),
}
NUMBERS = st.integers(0, 2**32 - 1)


@functools.cache
def parts(kind, count):
    """A run of one task with so many classes; its network is never used."""
    config = config_lib.base()
    source, options = SOURCES[kind]
    options = options | ({"classes": NAMES[:count]} if kind == "segmentation" else {})
    config.tasks.task = {"kind": kind, "classes": NAMES[:count]}
    config.streams.stream = config_lib.stream(source, {"task": kind}, options=options)
    config.stages.stage = config_lib.stage(("stream",))
    config.order = ("stage",)
    return experiment.build(config.to_dict(), data_root=Path())


def check(root, kind, count, meant, alike):
    """Compares what training sees with what was meant: image and label by id, for both splits.

    Args:
        root: of the dataset.
        kind: its label.
        count: of classes.
        meant: split -> id -> (image, label).
        alike: (label of a sample, label that was meant) -> whether they are the same.

    Returns:
        "refused", "told" or "seen as meant"; anything else fails the test.
    """
    run = dataclasses.replace(parts(kind, count), data_root=root)
    try:
        record = data_record.examine(run)
    except UserError:
        return _verdict("refused")
    for split in SPLITS:
        source = experiment.source(run, "stream", training=split == "train")
        samples = [source[index] for index in range(len(source))]
        classes = experiment.classes_of(run, "stream", source)["task"]
        matches = len(samples) == len(meant[split]) and all(
            np.array_equal(sample["image"], image)
            and alike(partial.in_task_terms(sample["labels"][kind], classes), label)
            for sample, (image, label) in zip(samples, _in_order(samples, meant[split]), strict=True)
        )
        if not matches:
            assert record.warnings, f"{split}: training sees something else than was meant, and nothing is said"
            return _verdict("told")
    return _verdict("seen as meant")


def _verdict(word):
    event(word)
    return word


def _in_order(samples, meant):
    """Pairs by pixels, as ids may be spelt in several ways."""
    by_pixels = {image.tobytes(): (image, label) for image, label in meant.values()}
    nothing = (np.zeros(0), None)
    return [by_pixels.get(sample["image"].tobytes(), nothing) for sample in samples]


def noise(numbers, width, height):
    return np.frombuffer(numbers.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, format="PNG", **options)


# Each changes how masks are written, not what they mean: (values, classes) -> what the file holds.
MASKS = {
    "as they are": lambda mask, count: mask,
    "0 and 255": lambda mask, count: np.where(mask == 1, 255, mask).astype(np.uint8),
    "spread over all greys": lambda mask, count: (mask * (255 // (count - 1))).astype(np.uint8),
    "counted from 1": lambda mask, count: mask + 1,
    "16 bit": lambda mask, count: mask.astype(np.uint16),
    "colours": lambda mask, count: np.stack([mask * 100] * 3, axis=-1),
    "turned": lambda mask, count: np.ascontiguousarray(mask.T),
    "a value that is no class": lambda mask, count: np.where(np.arange(mask.size).reshape(mask.shape) == 0, 77, mask),
}
LISTS = {
    "as they are": lambda names: "\n".join(names),
    "with ends of Windows": lambda names: "\r\n".join(names) + "\r\n",
    "with spaces and empty lines": lambda names: "\n\n".join(f" {name}  " for name in names),
    "with suffixes": lambda names: "\n".join(f"{name}.png" for name in names),
    "twice": lambda names: "\n".join([*names, *names]),
    "with a name that is not there": lambda names: "\n".join([*names, "nowhere"]),
}
AS_THEY_ARE = "as they are"
ONE_WAY = st.sampled_from(
    [*((written, AS_THEY_ARE) for written in MASKS), *((AS_THEY_ARE, listed) for listed in LISTS)]
)
STEMS = ("{}", "photo {} of a cat", "a.b.{}", "été {}")


def alone(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder with nothing next to it, where images of masks are looked for: not the folders of all other cases."""
    folder = factory.mktemp(name) / "alone"
    folder.mkdir()
    return folder


@cases(8)
@given(ONE_WAY, st.sampled_from(STEMS), st.integers(0, 9), NUMBERS)
def test_masks(tmp_path_factory, scheme, stem, mixed, seed):
    written, listed = scheme
    root, numbers = alone(tmp_path_factory, "masks"), random.Random(seed)
    count = numbers.choice((2, 3))
    meant = {split: {} for split in SPLITS}
    for number in range(6):
        width, height = numbers.randint(4, 9), numbers.randint(4, 9)
        mask = np.array([numbers.randrange(count) for _ in range(width * height)], np.uint8).reshape(height, width)
        mask.flat[:count] = range(count)
        name, image = stem.format(number), noise(numbers, width, height)
        save(root / f"set/JPEGImages/{name}.png", image)
        save(root / f"set/SegmentationClass/{name}.png", MASKS[written](mask, count))
        meant[SPLITS[number % 2]][name] = (image, mask)
    for split in SPLITS:
        names = [*meant[split], *(list(meant[SPLITS[0]])[:1] if mixed == 9 and split == "val" else [])]
        file = root / f"set/ImageSets/Segmentation/{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LISTS[listed](names), newline="")
    verdict = check(root, "segmentation", count, meant, lambda result, mask: np.array_equal(result["mask"], mask))
    if scheme == (AS_THEY_ARE, AS_THEY_ARE) and mixed != 9:
        assert verdict == "seen as meant"


BOXES = {
    "as they are": lambda box, size: box,
    "corners": lambda box, size: (box[0], box[1], box[0] + box[2], box[1] + box[3]),
    "shares": lambda box, size: (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]),
    "percent": lambda box, size: tuple(100 * side / size[i % 2] for i, side in enumerate(box)),
    "negative sizes": lambda box, size: (box[0] + box[2], box[1] + box[3], -box[2], -box[3]),
}


def _gaps(tree):
    for category in tree["categories"]:
        category["id"] = 7 * category["id"] + 3
    for annotation in tree["annotations"]:
        annotation["category_id"] = 7 * annotation["category_id"] + 3


def _reversed(tree):
    tree["annotations"].reverse()
    tree["images"].reverse()


def _two_ids(tree):
    first = tree["images"][0]
    tree["images"].append({**first, "id": 1000})
    of_first = [annotation for annotation in tree["annotations"] if annotation["image_id"] == first["id"]]
    of_first[-1]["image_id"] = 1000


def _other_order(tree):
    """The same categories under other numbers."""
    last = len(tree["categories"]) - 1
    for category in tree["categories"]:
        category["id"] = last - category["id"]
    for annotation in tree["annotations"]:
        annotation["category_id"] = last - annotation["category_id"]


def _bare(tree):
    for annotation in tree["annotations"]:
        del annotation["area"], annotation["iscrowd"]


def _empty_box(tree):
    tree["annotations"].append({"id": 999, "image_id": 0, "category_id": 0, "bbox": [1, 1, 0, 5], "iscrowd": 0})


def _all_crowds(tree):
    for annotation in tree["annotations"]:
        annotation["iscrowd"] = 1


def _sides_exchanged(tree):
    for image in tree["images"]:
        image["width"], image["height"] = image["height"], image["width"]


SPELLINGS = (lambda tree: None, _gaps, _reversed, _two_ids, _bare, _empty_box)  # of the same
FILES = (*SPELLINGS, _other_order, _all_crowds, _sides_exchanged)


def _annotations(meant, write):
    """The boxes of a split as COCO has them."""
    tree = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)]}
    for number, (name, (image, boxes)) in enumerate(meant.items()):
        height, width = image.shape[:2]
        tree["images"].append({"id": number, "file_name": f"{name}.png", "width": width, "height": height})
        tree["annotations"] += [
            {
                "id": 100 * number + place,
                "image_id": number,
                "category_id": label,
                "iscrowd": 0,
                "area": box[2] * box[3],
            }
            | {"bbox": list(write(box, (width, height)))}
            for place, (label, box) in enumerate(boxes)
        ]
    return tree


def _same_boxes(result, boxes):
    corners = [(label, x, y, x + width, y + height) for label, (x, y, width, height) in boxes]
    observed = [
        (label, *box) for label, box in zip(result["label"].tolist(), result["boxes_xyxy"].tolist(), strict=True)
    ]
    alike = len(observed) == len(corners) and np.allclose(sorted(observed), sorted(corners), atol=0.5)
    return alike and not result["crowd"].any()


@cases(8)
@given(st.sampled_from(sorted(BOXES)), st.sampled_from(FILES), st.sampled_from(STEMS), NUMBERS)
def test_boxes(tmp_path_factory, written, change, stem, seed):
    root, numbers, meant = alone(tmp_path_factory, "boxes"), random.Random(seed), {split: {} for split in SPLITS}
    for split in SPLITS:
        for number in range(3):
            width, height = numbers.randint(20, 29), numbers.randint(30, 39)
            # One in the lower right, so that corners taken for sizes lead out of the image.
            boxes = [(number, (width - 9, height - 9, numbers.randint(3, 8), numbers.randint(3, 8)))]
            boxes += [(label, (numbers.randint(2, 9), label, 6, numbers.randint(5, 9))) for label in range(len(NAMES))]
            image = noise(numbers, width, height)
            save(root / f"set/{split}/{stem.format(number)}.png", image)
            meant[split][stem.format(number)] = (image, boxes)
        tree = _annotations(meant[split], BOXES[written])
        change(tree)
        file = root / f"set/annotations/instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(tree))
    verdict = check(root, "detection", len(NAMES), meant, _same_boxes)
    if written == AS_THEY_ARE and change in SPELLINGS:
        assert verdict == "seen as meant"


PLACES = ("{name}.png", "{name}.PNG", "deep/er/{name}.png", "{name}.tiff", "{name}", ".{name}.png")


@cases(8)
@given(st.sampled_from(PLACES), st.sampled_from(STEMS), st.sampled_from(("", "both classes", "both splits")), NUMBERS)
def test_class_folders(tmp_path_factory, place, stem, there_twice, seed):
    root, numbers, meant = alone(tmp_path_factory, "classes"), random.Random(seed), {split: {} for split in SPLITS}
    for split in SPLITS:
        for label, name in enumerate(NAMES):
            for number in range(2):
                image, stem_of_it = noise(numbers, 6, 5), stem.format(number)
                save(root / "set" / split / name / place.format(name=stem_of_it), image)
                (root / "set" / split / name / "Thumbs.db").write_bytes(b"of a system")
                meant[split][f"{name} {number}"] = (image, label)
    if there_twice:
        image, _ = meant["train"][f"{NAMES[0]} 0"]
        save(root / "set" / ("train" if there_twice == "both classes" else "val") / NAMES[1] / "again.png", image)
    verdict = check(root, "classification", len(NAMES), meant, lambda result, label: result["label"] == label)
    if "{name}." in place and place[0] != "." and not there_twice:
        assert verdict == "seen as meant"
