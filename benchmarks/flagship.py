"""The parts of `configs/seq.py`, for measurements on its real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import benchmarks
from mtl_jax import experiment
from mtl_jax.config import load_page
from mtl_jax.errors import UserError

PAGE = benchmarks.ROOT / "configs" / "seq.py"


def build(data_root: Path, variant: str = "shared", **model_changes: Any) -> experiment.Experiment:
    """Returns the experiment of a variant of the flagship's page, with some settings of its network changed.

    Raises:
        UserError: its configuration page is not there: the package was installed without the repository.
    """
    if not PAGE.is_file():
        raise UserError(f"the flagship's page {PAGE} is missing; run the benchmark from a clone of the repository")
    config = load_page(PAGE).get_config(variant)
    config.model.update(model_changes)
    return experiment.build(config, data_root=data_root)
