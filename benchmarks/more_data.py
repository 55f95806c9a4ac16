"""More boxes for a finished run: the flagship at a quarter of the pixels, first with half of the images with boxes.

python -m benchmarks.more_data --out runs/more_data --seeds 0 1 2 --data_root data

Refined by the command for labels, once with the others' outputs kept exactly and once within 5 %; compared with a run
that has all images from the start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks
import mtl_jax
from mtl_jax.cli import extend as extend_command
from mtl_jax.config import load_page
from mtl_jax.runtime import compilation
from mtl_jax.workdir.files import contract_of_run

COCO = "mini-coco-det"
FIRST, MORE = "first", "more"
MINUTES = {"exact": "2", "5%": "4"}  # by --keep


def divide(out: Path, data_root: Path, seed: int) -> Path:
    """Divides the training images of COCO into two halves; both have its validation images.

    Args:
        out: folder of the runs.
        data_root: folder of the datasets.
        seed: decides which images are in which half.

    Returns:
        A folder of datasets: the halves "first" and "more", and links to all others.
    """
    root = out / f"data_{seed}"
    root.mkdir(parents=True, exist_ok=True)
    for dataset in data_root.iterdir():
        benchmarks.link(root / dataset.name, dataset)
    annotations = data_root / COCO / "annotations"
    coco = json.loads((annotations / "instances_train.json").read_text())
    chosen = np.random.default_rng(seed).permutation([image["id"] for image in coco["images"]])
    half = len(chosen) // 2
    for name, part in ((FIRST, {*chosen[:half].tolist()}), (MORE, {*chosen[half:].tolist()})):
        (root / name / "annotations").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            benchmarks.link(root / name / split, data_root / COCO / split)
        benchmarks.link(root / name / "annotations" / "instances_val.json", annotations / "instances_val.json")
        images = [image for image in coco["images"] if image["id"] in part]
        boxes = [box for box in coco["annotations"] if box["image_id"] in part]
        text = json.dumps({**coco, "images": images, "annotations": boxes})
        (root / name / "annotations" / "instances_train.json").write_text(text)
    benchmarks.link_weights(out, data_root)
    return root


def run(folder: Path, data_root: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Trains with half of the images, refines with the others in both ways, and trains with all.

    Args:
        folder: of the runs.
        data_root: folder of the datasets, as `divide` returns it.
        seed: of all runs.

    Returns:
        Way -> task -> figure of its metric, and whether the version was kept.
    """
    contracts = {}
    for name, images in ((FIRST, FIRST), ("together", COCO)):
        config = load_page(benchmarks.ROOT / "configs" / "seq.py").get_config("shared-small")
        config.streams.coco.options.folder = images
        settings = {"seed": seed, "data_root": str(data_root.absolute())}
        contracts[name] = mtl_jax.train(config, str(folder / name), settings=settings)
    for keep, minutes in MINUTES.items():
        workdir = folder / f"keep_{keep.strip('%')}"
        flags = ["--from", str(folder / FIRST), "--workdir", str(workdir), "--keep", keep, "--minutes", minutes]
        extend_command.main([*flags, "--task", "det", "--refine", f"boxes={data_root / MORE}"])
        contracts[keep] = contract_of_run(str(workdir))
    return {
        way: {**{task: entry["final"] for task, entry in tree["tasks"].items()}, "kept": "refused" not in tree}
        for way, tree in contracts.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Trains, measures, and writes more_data.json into the folder of the runs."""
    options = benchmarks.flags_of_runs(__doc__, out="runs/more_data").parse_args(arguments)
    compilation.enable_cache()
    measured: dict[int, Any] = {}
    for seed in options.seeds:
        measured[seed] = run(options.out / str(seed), divide(options.out, options.data_root, seed), seed)
        (options.out / "more_data.json").write_text(json.dumps(measured, indent=1) + "\n")
        for way, figures in measured[seed].items():
            print(seed, way, figures, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
