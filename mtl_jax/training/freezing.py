"""Frozen parameters of a stage, and when: patterns with epochs, such as {"backbone": (0, 5)}."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Rule(NamedTuple):
    """Parameters at or below a pattern stay as they are in the epochs from `start` to `stop`."""

    pattern: str
    start: float
    stop: float  # infinite: to the end


def rules(freeze: Mapping[str, tuple[float, float]]) -> list[Rule]:
    """Returns what a stage's setting says, each pattern with its epochs.

    Args:
        freeze: pattern -> epochs from and to.
    """
    return [Rule(pattern, *epochs) for pattern, epochs in freeze.items()]


def phases(rules: Sequence[Rule], *, steps_per_epoch: int, total_steps: int) -> dict[int, tuple[str, ...]]:
    """Returns {step: the patterns that are frozen from this step until the next one named}, beginning with step 0.

    Args:
        rules: of one stage.
        steps_per_epoch: of the stage.
        total_steps: of the stage; what would begin later is left out.

    References:
        Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018 (gradual unfreezing).
        Brock et al., "FreezeOut: Accelerate Training by Progressively Freezing Layers", 2017.
    """

    def step(epoch: float) -> int:
        return total_steps if math.isinf(epoch) else min(round(epoch * steps_per_epoch), total_steps)

    spans = [(step(rule.start), step(rule.stop), rule.pattern) for rule in rules]
    edges = sorted({0, *(edge for span in spans for edge in span[:2] if edge < total_steps)})
    patterns_by_step: dict[int, tuple[str, ...]] = {}
    for edge in edges:
        frozen = tuple(pattern for first, last, pattern in spans if first <= edge < last)
        if not patterns_by_step or frozen != patterns_by_step[max(patterns_by_step)]:
            patterns_by_step[edge] = frozen
    return patterns_by_step
