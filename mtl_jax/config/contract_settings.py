"""Settings of the contract that a run is judged by: `config.contract`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from mtl_jax.config.section import Section, setting


@dataclasses.dataclass(frozen=True)
class ContractSettings(Section):
    """Limits of the contract, for tasks and budgets."""

    max_drop_percent: float = setting(5.0, "relative, per task", unit="%", least=0.0, most=math.inf)
    max_train_seconds: float = setting(7200.0, "of all stages", unit="s", least=0.0, most=math.inf)
    max_latency_ms: float = setting(
        150.0, "one image, all tasks, decoding included", unit="ms", least=0.0, most=math.inf
    )
    latency_image_size: int = setting(512, "that the latency is measured at", unit="px", least=1, most=16384)
    baseline_from: Mapping[str, str] = setting(
        {}, 'task -> work directory of a run whose final figure is the baseline; "" for the task\'s own stage'
    )
