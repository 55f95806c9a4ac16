"""Evaluates trained weights: `mtl-jax eval --weights runs/seq --tasks all --data_root data --json out.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_jax.cli import flags


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("eval", __doc__)
    flags.add_weights(parser)
    parser.add_argument("--data_root", "--dataroot", default="", help="folder of datasets; default: as in the run")
    flags.add_switch(parser, "flip", "also run every mirrored image, and average both")
    parser.add_argument("--json", type=Path, help="also write the metrics to this file")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints mAP, mIoU, top-1, parameters and latency; returns 0, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    # Imported after the flags, so that --help does not wait for JAX.
    from mtl_jax.evaluation import evaluate_checkpoint
    from mtl_jax.runtime import compilation

    compilation.enable_cache()
    if options.json:
        options.json = options.json.expanduser()
        evaluate_checkpoint.require_writable(options.json)
    settings = {"tasks": options.tasks, "data_root": options.data_root, "flip": options.flip}
    metrics = evaluate_checkpoint.run(options.weights, **settings)
    evaluate_checkpoint.show(metrics)
    if options.json:
        evaluate_checkpoint.write(metrics, options.json)
    return 0
