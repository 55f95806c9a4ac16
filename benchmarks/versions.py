"""Time per image of several versions of a network, with decoding, in turns: what an extension costs.

python -m benchmarks.versions runs/mine runs/mine-2
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from mtl_jax.evaluation import evaluate
from mtl_jax.runtime import compilation
from mtl_jax.workdir import trained


def seconds_of(folders: Sequence[Path], *, image_size: int, repeats: int) -> dict[Path, list[float]]:
    """Times the versions on one image of noise, all tasks with decoding, each once per turn in a random order.

    Args:
        folders: work directories, or checkpoints.
        image_size: of the image, px.
        repeats: turns.

    Returns:
        Folder -> seconds of each turn.
    """
    generator = np.random.default_rng(0)
    image = jax.device_put(generator.uniform(0, 1, (1, image_size, image_size, 3)).astype(np.float32))
    runs = {folder: _predictor(folder, image) for folder in folders}
    seconds: dict[Path, list[float]] = {folder: [] for folder in folders}
    for _ in range(repeats):
        for number in generator.permutation(len(folders)).tolist():
            start = time.perf_counter()
            runs[folders[number]]()
            seconds[folders[number]].append(time.perf_counter() - start)
    return seconds


def _predictor(folder: Path, image: jax.Array) -> Callable[[], None]:
    network = trained.load(folder)
    names, variables = tuple(network.setup.tasks), jax.device_put(network.variables)
    predict = evaluate.make_predict(network.setup.model, network.setup.tasks)

    def run() -> None:
        jax.block_until_ready(predict(variables, image, names=names))

    run()  # compiles
    return run


def main(arguments: Sequence[str]) -> None:
    """Prints the median of every version, and its ratio to the first one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="work directories, the oldest version first")
    parser.add_argument("--image_size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=150)
    options = parser.parse_args(arguments)
    compilation.enable_cache()
    seconds = seconds_of(options.folders, image_size=options.image_size, repeats=options.repeats)
    medians = {folder: statistics.median(times) for folder, times in seconds.items()}
    for folder, median in medians.items():
        print(
            f"{folder}: {1e3 * median:.2f} ms (min {1e3 * min(seconds[folder]):.2f}), "
            f"{median / medians[options.folders[0]]:.3f} times the first"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
