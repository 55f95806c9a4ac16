"""Calibrates trained weights: fits temperatures and thresholds, and evaluates them on validation images.

mtl-jax calibrate --weights runs/seq
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax.cli import flags


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("calibrate", __doc__)
    parser.add_argument("--weights", required=True, type=Path, help="a work directory, or one stage's checkpoint in it")
    parser.add_argument("--data_root", "--dataroot", default="", help="folder of datasets; as the run by default")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Writes calibration.json into the checkpoint and prints its metrics; returns 0, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    from mtl_jax.errors import UserError
    from mtl_jax.evaluation import calibrate
    from mtl_jax.runtime import compilation
    from mtl_jax.tasks import calibration
    from mtl_jax.workdir import files, trained

    compilation.enable_cache()
    root = Path(options.data_root).expanduser() if options.data_root else None
    network = trained.load(options.weights, data_root=root)
    setup, tasks = network.setup, network.setup.tasks
    predict = calibrate.make_scores(setup.model, tasks)
    if not setup.held_out_percent:
        print(
            "warning: this run held no training images out: thresholds are chosen on images that it was trained on, of "
            "which it is surer than of others, and temperatures stay 1; train with --config.held_out_percent=10"
        )
    observed = calibrate.observe(predict, setup, network.variables, network.names, held_out=True, stages=network.stages)
    if not observed:
        raise UserError(f"{network.path}: expected a task with scores, found {', '.join(network.names)}; nothing to do")
    calibrations = calibrate.choose(tasks, observed, unseen=bool(setup.held_out_percent))
    metrics = calibrate.observe(predict, setup, network.variables, calibrations, held_out=False)
    try:
        files.write_json(network.path / trained.CALIBRATION, calibration.to_tree(calibrations))
    except OSError as error:
        return flags.fail(f"{error.filename} cannot be written ({error.strerror}); copy the run to a place that can")
    _print_table(calibrate.judge(tasks, metrics, calibrations))
    print(f"-> {network.path / trained.CALIBRATION}: predict, serve and export follow it")
    return 0


def _print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mtl_jax.report import calibration_section

    table = Table(*calibration_section.COLUMNS)
    for row in calibration_section.rows(figures):
        table.add_row(*row)
    Console().print(table)
