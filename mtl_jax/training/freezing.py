"""Which parameters a stage leaves as they are, and when: patterns with epochs, such as "backbone@:5"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mtl_jax.errors import UserError


class Rule(NamedTuple):
    """Parameters at or below a pattern stay as they are in the epochs from `start` to `stop`."""

    pattern: str
    start: float
    stop: float  # infinite: to the end


def parse(text: str, *, where: str) -> Rule:
    """Reads "pattern", "pattern@start:stop", "pattern@start:" or "pattern@:stop", in epochs.

    Args:
        text: to read.
        where: the setting, for the error.

    Raises:
        UserError: the epochs cannot be read, or none lies between them.
    """
    pattern, at, epochs = text.partition("@")
    start, colon, stop = epochs.partition(":")
    try:
        rule = Rule(pattern, float(start or 0), float(stop or math.inf))
    except ValueError:
        rule = None
    if rule is None or not pattern or bool(at) != bool(colon) or not 0 <= rule.start < rule.stop:
        raise UserError(
            f'{where} has {text!r}; expected a pattern such as "backbone", or with epochs "backbone@:5", '
            '"backbone@5:", "backbone@2:5"'
        )
    return rule


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
    found: dict[int, tuple[str, ...]] = {}
    for edge in edges:
        frozen = tuple(pattern for first, last, pattern in spans if first <= edge < last)
        if not found or frozen != found[max(found)]:
            found[edge] = frozen
    return found
