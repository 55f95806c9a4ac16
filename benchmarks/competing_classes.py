"""Classes that a classifier or a segmenter gets later, where all compete in one softmax, with and without exemplars.

python -m benchmarks.competing_classes --out runs/competing --seeds 0 1 2 --data_root data

Imagenette's ten classes as seven and three, and PASCAL VOC's twenty as fifteen and five, on the features of ImageNet;
ten handwritten digits as five and five, on features that the first five trained alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks
import mtl_jax
from mtl_jax.config import load_page, stage, stream
from mtl_jax.data.pixel_labels import decode_mask, write_png
from mtl_jax.data.sources.base import VOID
from mtl_jax.data.sources.voc import VOC_CLASSES
from mtl_jax.extend import extend
from mtl_jax.runtime import compilation
from mtl_jax.tasks.mean_iou import BACKGROUND

VOC = "mini-voc-seg"
IMAGENETTE, NAMES = "imagenette-160", "wnid_to_name.json"
DIGITS = tuple("0123456789")
TASK, LATER = "classes", "later"  # names of the task, and of the stage that adds classes
VOC_PARTS = {"first": VOC_CLASSES[1:16], LATER: VOC_CLASSES[16:], "together": VOC_CLASSES[1:]}
NOT_ADJUSTED = {"logit_adjustment": {"prior": 0.0}}
# How old classes are kept: arguments of `extend`, and settings of its stage.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"per_class": 0}, {}),
    "exemplars": ({}, {}),
    "two of weight 1, not adjusted": ({}, {"keep": {"replay": {"batch_size": 2, "weight": 1.0}, **NOT_ADJUSTED}}),
    "--keep 5%": ({"keep": "5%"}, {"backbone_rate": 0.05}),
    "none, not adjusted": ({"per_class": 0}, {"keep": NOT_ADJUSTED}),
    "exemplars, not adjusted": ({}, {"keep": NOT_ADJUSTED}),
}


def link_imagenette(out: Path, data_root: Path) -> Path:
    """Divides the classes of Imagenette by folders of links to theirs.

    Args:
        out: folder of the runs.
        data_root: folder of the datasets.

    Returns:
        A folder of datasets: "first" of seven classes, "later" of three, "together" of all.
    """
    root = out / "imagenette"
    names = sorted(path.name for path in (data_root / IMAGENETTE / "train").iterdir())
    for part, chosen in {"first": names[:7], "later": names[7:], "together": names}.items():
        for split in ("train", "val"):
            (root / part / split).mkdir(parents=True, exist_ok=True)
            for name in chosen:
                benchmarks.link(root / part / split / name, data_root / IMAGENETTE / split / name)
    benchmarks.link(root / NAMES, data_root / IMAGENETTE / NAMES)
    benchmarks.link_weights(out, data_root)
    return root


def imagenette_page(root: Path, part: str) -> Any:
    """Returns the configuration of the classifier of `configs/seq.py`, alone, of a part of the classes.

    Args:
        root: folder of the parts.
        part: "first", "later" or "together".
    """
    names = json.loads((root / NAMES).read_text())
    classes = tuple(names[path.name] for path in sorted((root / part / "train").iterdir()))
    return _seq_page("cls", part, {"classes": classes}, {"folder": part})


def divide_voc(out: Path, data_root: Path) -> Path:
    """Divides the classes of PASCAL VOC: in the masks of a part, classes of the others are background.

    Args:
        out: folder of the runs.
        data_root: folder of the datasets.

    Returns:
        A folder of datasets: "first" of fifteen classes, "later" of five, "together" of all.
    """
    root = out / "voc"
    for part, classes in VOC_PARTS.items():
        values = np.zeros(VOID + 1, np.uint8)  # of the part, by those of the dataset
        values[[VOC_CLASSES.index(name) for name in classes]] = np.arange(1, len(classes) + 1)
        values[VOID] = VOID
        masks = root / part / "SegmentationClass"
        masks.mkdir(parents=True, exist_ok=True)
        for path in (data_root / VOC / masks.name).iterdir():
            write_png(masks / path.name, values[decode_mask(path, class_count=len(VOC_CLASSES))])
        for name in ("JPEGImages", "ImageSets"):
            benchmarks.link(root / part / name, data_root / VOC / name)
    benchmarks.link_weights(out, data_root)
    return root


def voc_page(part: str) -> Any:
    """Returns the configuration of the segmenter of `configs/seq.py`, alone, of a part of the classes.

    Args:
        part: "first", "later" or "together".
    """
    shown = VOC_PARTS[part]
    classes = (BACKGROUND, *shown)
    task = {"classes": shown if part == LATER else classes, "class_weights": (0.3, *(1.0 for _ in shown))}
    return _seq_page("seg", part, task, {"folder": part, "classes": classes, "images_with": shown})


def _seq_page(task: str, part: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """One task of `configs/seq.py` and its dataset, with other classes."""
    page = load_page(benchmarks.ROOT / "configs" / "seq.py")
    config = page.get_config(f"alone_{task}-small")
    data = config.streams[page.STREAM[task]]
    data.options, data.labels = dict(options), {TASK: next(iter(data.labels.values()))}
    section = {**config.tasks[task], **settings}
    if part == LATER:
        section.pop("class_weights", None)  # the old run has those of its classes
    config.tasks = {TASK: section}
    config.contract.baseline_from = {TASK: ""}
    config.streams = {part: data}
    if part == LATER:
        config.stages = {part: stage((part,), epochs=page.EPOCHS[task], **page.RATES)}
    else:
        config.stages = {part: {**config.stages[task], "streams": (part,)}}
    config.order = (part,)
    return config


def digits_page(kind: str, part: str) -> Any:
    """Returns the configuration of a small network of the digits' classes or masks, as in `configs/grow.py`.

    Args:
        kind: "classification" or "segmentation".
        part: "first", "later" or "together".
    """
    page = load_page(benchmarks.ROOT / "configs" / "grow.py")
    config, digits = page.get_config("first"), {"first": DIGITS[:5], LATER: DIGITS[5:], "together": DIGITS}[part]
    config.tasks = {TASK: {"kind": kind, "classes": digits}}
    if kind == "segmentation" and part != LATER:
        weights = (0.2, *(1.0 for _ in digits))
        config.tasks = {
            TASK: {
                "kind": kind,
                "classes": ("background", *digits),
                "class_weights": weights,
                "loss_stride": 2,
            }
        }
    options = {"labels": (kind,), "size": 64, "length": 200 * len(digits), "digits": digits}
    settings = {"batch_size": 32, "eval_batch_size": 50, "augment": page.AUGMENT}
    config.streams = {part: stream("digits", {TASK: kind}, options=options, val_options={"length": 200}, **settings)}
    config.stages = {part: stage((part,), epochs=12.0, learning_rate=1.5e-2)}
    config.order = (part,)
    return config


def run(folder: Path, page: Any, seed: int, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Trains the first classes, then the later ones in each way, and all from the start, or what is left of it.

    Args:
        folder: of the runs.
        page: part -> configuration.
        seed: of all of them.
        settings: values by dotted name.

    Returns:
        Way -> figures of the task's metric: "before" and "after", of the first classes among all that there are then,
        and "new", of the later ones; "together" is of all.
    """
    first = mtl_jax.train(page("first"), str(folder / "first"), settings={**settings, "seed": seed})
    before, rows = first["tasks"][TASK]["final"], {}
    for number, (way, (arguments, changes)) in enumerate(WAYS.items()):
        config = page(LATER)
        config.stages[LATER].update(changes)
        contract = extend(folder / "first", folder / f"later_{number}", config, settings=settings, **arguments)
        entry = contract["tasks"][TASK]
        rows[way] = {
            "before": before,
            "after": entry["final"],
            "drop_percent": entry["drop_percent"],
            "new": entry["added"][LATER]["final"],
        }
    together = mtl_jax.train(page("together"), str(folder / "together"), settings={**settings, "seed": seed})
    rows["together"] = {"after": together["tasks"][TASK]["final"]}
    return rows


def main(arguments: Sequence[str]) -> None:
    """Trains, measures, and writes competing_classes.json into the folder of the runs."""
    options = benchmarks.flags_of_runs(__doc__, out="runs/competing").parse_args(arguments)
    compilation.enable_cache()
    imagenette, voc = (divide(options.out, options.data_root) for divide in (link_imagenette, divide_voc))
    cases = {
        "imagenette": (partial(imagenette_page, imagenette), {"data_root": str(imagenette.absolute())}),
        "voc": (voc_page, {"data_root": str(voc.absolute())}),
        "digits": (partial(digits_page, "classification"), {}),
        "masks of digits": (partial(digits_page, "segmentation"), {}),
    }
    measured: dict[str, dict[int, Any]] = {}
    for case, (page, settings) in cases.items():
        for seed in options.seeds:
            rows = run(options.out / f"{case.replace(' ', '_')}_{seed}", page, seed, settings)
            measured.setdefault(case, {})[seed] = rows
            (options.out / "competing_classes.json").write_text(json.dumps(measured, indent=1) + "\n")
            for way, figures in rows.items():
                print(case, seed, way, {key: round(value, 3) for key, value in figures.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
