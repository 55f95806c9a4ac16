"""A detector with classes added later, compared with one trained on all: `configs/new_classes.py` over seeds.

python -m benchmarks.new_classes --out runs/new_classes --seeds 0 1 2 --data_root data
python -m benchmarks.new_classes --out runs/new_classes --folds 5 --seeds 0 1 --data_root data

The mini set has 18 validation images of the new classes. With `--folds`, every one of its 300 images is judged once for
each seed, by networks that were trained on the other folds; `--networks more together` leaves some out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import benchmarks
import mtl_jax
from mtl_jax import experiment
from mtl_jax.config import load_page
from mtl_jax.evaluation import evaluate
from mtl_jax.extend import extend
from mtl_jax.models import multi_task
from mtl_jax.runtime import compilation
from mtl_jax.workdir import trained

PAGE = benchmarks.ROOT / "configs" / "new_classes.py"
FOLDER = "mini-coco-det"
SPLITS = ("train", "val")
# Of networks that got classes later: the variant of the page, and arguments of `extend`.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "more": ("more", {}),
    "more_alone": ("more", {"per_class": 0}),
    "more_moving": ("moving", {"keep": "5%"}),
}
NETWORKS = (*MORE, "together")  # that are compared with the first one


def write_folds(out: Path, data_root: Path, count: int) -> list[Path]:
    """Divides all images of the dataset by chance, always in the same way.

    Args:
        out: folder of the runs.
        data_root: folder of the datasets.
        count: of folds.

    Returns:
        A folder of datasets for each fold, whose validation images are the fold, and whose training images the others.
    """
    files = [data_root / FOLDER / "annotations" / f"instances_{split}.json" for split in SPLITS]
    contents = [json.loads(file.read_text()) for file in files]
    images = {
        image["id"]: (image, data_root / FOLDER / split / image["file_name"])
        for split, content in zip(SPLITS, contents, strict=True)
        for image in content["images"]
    }
    order = np.random.default_rng(0).permutation(sorted(images)).tolist()
    benchmarks.link_weights(out / "folds", data_root)
    roots = []
    for fold in range(count):
        root = out / "folds" / str(fold)
        judged = set(order[fold::count])
        for split in SPLITS:
            (root / FOLDER / split).mkdir(parents=True, exist_ok=True)
            chosen = {number for number in order if (number in judged) == (split == "val")}
            for number in chosen:
                benchmarks.link(root / FOLDER / split / images[number][1].name, images[number][1])
            boxes = [box for content in contents for box in content["annotations"] if box["image_id"] in chosen]
            entries = [images[number][0] for number in sorted(chosen)]
            content = {**contents[0], "images": entries, "annotations": boxes}
            (root / FOLDER / "annotations").mkdir(exist_ok=True)
            (root / FOLDER / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for path in data_root.iterdir():
            if path.name != FOLDER:
                benchmarks.link(root / path.name, path)
        roots.append(root)
    return roots


def train(out: Path, seed: int, data_root: Path, networks: Sequence[str] = NETWORKS) -> dict[str, Path]:
    """Trains the networks of a seed, or what is left of them.

    Args:
        out: folder of the runs.
        seed: of all of them, and part of their folders' names.
        data_root: folder of the datasets.
        networks: some of `NETWORKS`; the first is trained always.

    Returns:
        Name -> work directory: "more" has exemplars of old classes, "more_alone" none; in "more_moving" shared
        parameters may change.
    """
    data_folder = str(data_root.absolute())
    folders = {name: out / f"{name}{seed}" for name in ("first", *networks)}
    for name, folder in folders.items():
        if name in MORE:  # the seed is that of the first run
            variant, arguments = MORE[name]
            extend(folders["first"], folder, f"{PAGE}:{variant}", settings={"data_root": data_folder}, **arguments)
        else:
            mtl_jax.train(f"{PAGE}:{name}", str(folder), settings={"data_root": data_folder, "seed": seed})
    return folders


def measure(folders: dict[str, Path], data_root: Path) -> dict[str, dict[str, float]]:
    """Measures old and new classes apart, of every network on the same validation images: all that show any class.

    Args:
        folders: name -> work directory.
        data_root: folder of the datasets.

    Returns:
        Name -> figures: "old" and "new", mean average precision ("new_50" and "new_75" at one IoU), and what the
        network costs.
    """
    page_config = load_page(PAGE).get_config("together")
    judge = experiment.build(page_config.to_dict(), data_root=data_root)
    new = np.arange(len(judge.tasks["det"].classes)) >= len(judge.tasks["det"].classes) - load_page(PAGE).NEW
    groups = {"old": ~new, "new": new}
    measured = {}
    for name, folder in folders.items():
        network = trained.load(folder, data_root=data_root)
        predict = evaluate.make_predict(network.setup.model, _with_equal_limits(network.setup.tasks))
        metrics = {group: judge.tasks["det"].new_metric() for group in groups}
        for batch in experiment.eval_batches(judge, "coco"):
            predictions = jax.device_get(predict(network.variables, batch.image, names=("det",)))["det"]
            for index, (target, geometry) in enumerate(zip(batch.targets, batch.geometries, strict=True)):
                for group, labelled in groups.items():
                    known_target = {**target["det"], "labelled": labelled}
                    metrics[group].update(evaluate.example(predictions, index), known_target, geometry)
        params = sum(multi_task.parameter_count(network.variables["params"]).values())
        gflops = evaluate.gigaflops(network.setup.model, network.variables, ("det",), image_size=judge.image_size)
        computed = {group: metric.compute() for group, metric in metrics.items()}
        figures = {group: values["map_50_95"] for group, values in computed.items()}
        figures |= {f"new_{iou}": computed["new"][f"map_{iou}"] for iou in (50, 75)}
        measured[name] = {**figures, "params": params, "gigaflops": gflops or float("nan")}
    return measured


def _with_equal_limits(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks of which a detector whose classes came at once looks at as many boxes as one that got some later."""
    detector = tasks["det"]
    if not detector.additions:
        limits = {name: 2 * getattr(detector, name) for name in ("candidates", "max_detections")}
        detector = dataclasses.replace(detector, **limits)
    return {**tasks, "det": detector}


def share(rows: Sequence[Mapping[str, Mapping[str, float]]], name: str, *, draws: int = 20_000) -> tuple[float, ...]:
    """Returns a network's mean average precision of new classes as a share of that of the network of all classes.

    Args:
        rows: figures of `measure`, of each fold or seed, with those of "together".
        name: of the network.
        draws: of the bootstrap, which draws rows with replacement (Efron, "Bootstrap methods", 1979).

    Returns:
        The share of the means, and the limits of its 95 % interval.
    """
    values = np.array([[row[name]["new"], row["together"]["new"]] for row in rows])
    drawn = values[np.random.default_rng(0).integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(values[:, 0].mean() / values[:, 1].mean()), float(low), float(high)


def main(arguments: Sequence[str]) -> None:
    """Trains, measures, and writes new_classes.json into the folder of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/new_classes"))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0, 1 and 2, and with --folds 0")
    parser.add_argument("--folds", type=int, default=0, help="judge all images, in so many folds")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="to compare with the first")
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    options = parser.parse_args(arguments)
    compilation.enable_cache()
    out, data_root = options.out, options.data_root
    if options.folds:
        roots = list(enumerate(write_folds(out, data_root, options.folds)))
        seeds = options.seeds or [0]
        cases = [(10 * seed + fold, out / "folds", root) for seed in seeds for fold, root in roots]
    else:
        cases = [(seed, out, data_root) for seed in options.seeds or [0, 1, 2]]
    rows: dict[int, Any] = {}
    for seed, folder, root in cases:
        rows[seed] = measure(train(folder, seed, root, options.networks), root)
        (folder / "new_classes.json").write_text(json.dumps(rows, indent=1) + "\n")
        for name, figures in rows[seed].items():
            print(seed, name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    if "together" in options.networks:
        for name in [name for name in options.networks if name != "together"]:
            percent, low, high = (round(100 * value) for value in share(list(rows.values()), name))
            print(f"{name}: new classes reach {percent} % of the mAP of all at once (95 % interval: {low} to {high} %)")


if __name__ == "__main__":
    main(sys.argv[1:])
