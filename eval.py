"""Measures trained weights: `python eval.py --weights runs/seq --tasks all --data_root data --json out.json`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtl_jax.errors import UserError, print_any_name
from mtl_jax.runtime import allocator


def main(arguments: list[str]) -> int:
    """Prints mAP, mIoU, top-1, parameters and latency; returns 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="a work directory, or one stage's checkpoint in it")
    parser.add_argument("--tasks", default="all", help="all, or names separated by commas")
    parser.add_argument("--data_root", "--dataroot", default="", help="folder of datasets; else the run's own")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    print_any_name()
    # Imported after the flags: --help should not wait for JAX.
    from mtl_jax.evaluation import evaluate_checkpoint
    from mtl_jax.runtime import compilation
    from mtl_jax.workdir.checkpoints import CheckpointError

    compilation.enable_cache()
    try:
        if options.json:
            options.json = options.json.expanduser()
            evaluate_checkpoint.require_writable(options.json)
        figures = evaluate_checkpoint.run(options.weights, tasks=options.tasks, data_root=options.data_root)
        evaluate_checkpoint.show(figures)
        if options.json:
            evaluate_checkpoint.write(figures, options.json)
    except (UserError, CheckpointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv[1:]))
