"""Baselines of the contract: figures of the tasks' own stages, or of runs that trained them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mtl_jax.errors import UserError
from mtl_jax.workdir import files


class Baseline(NamedTuple):
    """Baseline of a task: its metric, and the place of its measurement (for people to read)."""

    value: float
    source: str


def baselines(runs: Mapping[str, str]) -> dict[str, Baseline]:
    """Reads the baselines of tasks that separate runs give.

    Args:
        runs: task -> the work directory of a finished run, e.g. one that trained the task alone; "" for none.

    Returns:
        Task -> the final figure of its metric in that run.

    Raises:
        UserError: a run is not finished or has no such task.
    """
    by_task = {}
    for task, folder in runs.items():
        if not folder:
            continue
        judged = files.contract_of_run(folder).get("tasks")
        if not isinstance(judged, dict):
            judged = {}
        if task not in judged:
            raise UserError(
                f"contract.baseline_from.{task}: expected a finished run with that task in {folder}, found "
                f"{', '.join(judged) or 'no contract.json'}; name another run, or leave it out"
            )
        value = judged[task]["final"]
        by_task[task] = Baseline(float("nan") if value is None else value, f"run {folder}")
    return by_task
