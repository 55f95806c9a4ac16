"""Forgetting and transfer: what the stages of a run did to each task, from its figures after every stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat


def relative_drop_percent(
    baseline: SupportsFloat | None, final: SupportsFloat | None, higher_is_better: bool
) -> float | None:
    """How much of the baseline was lost, in percent: positive is worse, negative is a gain.

    Args:
        baseline: the task's metric when it had just been learnt.
        final: the same metric at the end.
        higher_is_better: False for errors, whose relative rise is returned.

    Returns:
        100 * (baseline - final) / baseline, or None where that says nothing: the baseline is not above zero,
        or one of the two is missing or not finite.
    """
    before, after = finite_or_none(baseline), finite_or_none(final)
    if before is None or after is None or before <= 0:
        return None
    drop = 100.0 * (before - after) / before
    if not math.isfinite(drop):  # a baseline so near zero that the quotient overflows
        return None
    return drop if higher_is_better else 0.0 - drop  # 0.0 - 0.0 is 0.0, where -0.0 would be printed as such


def task_histories(
    stages: Sequence[Mapping[str, Any]], judged: Mapping[str, tuple[str, bool]]
) -> dict[str, list[float | None]]:
    """The stage x task matrix, by task: its judged metric after each stage, None where not evaluated."""
    return {
        task: [finite_or_none(stage["metrics"].get(task, {}).get(metric)) for stage in stages]
        for task, (metric, _) in judged.items()
    }


def forgetting(history: Sequence[float | None], *, higher_is_better: bool) -> float | None:
    """How far one task ended below its best earlier value, in units of its metric; negative if above.

    Args:
        history: the task's metric after each stage, None where it was not evaluated.
        higher_is_better: False for errors.

    Returns:
        The forgetting, or None for a task that no earlier stage evaluated or the last one did not.

    References:
        Chaudhry, Dokania, Ajanthan, Torr, "Riemannian Walk for Incremental Learning", 2018.
    """
    past_values = [value for value in history[:-1] if value is not None]
    if not past_values or history[-1] is None:
        return None
    return max(past_values) - history[-1] if higher_is_better else history[-1] - min(past_values)


def backward_transfer(history: Sequence[float | None], *, higher_is_better: bool) -> float | None:
    """How much the later stages changed one task since its own, in units of its metric; positive is a gain.

    Args:
        history: the task's metric after each stage, None where it was not evaluated.
        higher_is_better: False for errors.

    Returns:
        The transfer, or None for a task that no earlier stage evaluated or the last one did not.

    References:
        Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017.
    """
    past_values = [value for value in history[:-1] if value is not None]
    if not past_values or history[-1] is None:
        return None
    return history[-1] - past_values[0] if higher_is_better else past_values[0] - history[-1]


def intransigence(
    history: Sequence[float | None], *, reference: SupportsFloat | None, higher_is_better: bool
) -> float | None:
    """How far one task, right after its own stage, stayed below a network trained for it alone, in units of its metric.

    Args:
        history: the task's metric after each stage, None where it was not evaluated.
        reference: the metric of the separately trained network.
        higher_is_better: False for errors.

    Returns:
        The intransigence, negative where the sequence was the better teacher; None where either figure is missing.

    References:
        Chaudhry, Dokania, Ajanthan, Torr, "Riemannian Walk for Incremental Learning", 2018.
    """
    own_value, reference_value = (
        next((value for value in history if value is not None), None),
        finite_or_none(reference),
    )
    if own_value is None or reference_value is None:
        return None
    return reference_value - own_value if higher_is_better else own_value - reference_value


def forward_transfer(
    before: SupportsFloat | None, untrained: SupportsFloat | None, *, higher_is_better: bool
) -> float | None:
    """How much the stages before its own helped one task, in units of its metric; positive is a gain.

    Args:
        before: the task's metric right before its own stage.
        untrained: that of the network before the first stage.
        higher_is_better: False for errors.

    Returns:
        The transfer; None where either figure is missing.

    References:
        Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017.
    """
    score_before, start = finite_or_none(before), finite_or_none(untrained)
    if score_before is None or start is None:
        return None
    return score_before - start if higher_is_better else start - score_before


def delta_m_percent(drops: Sequence[float | None]) -> float | None:
    """How much better than networks of their own the tasks do on average, in percent; negative is worse.

    Args:
        drops: relative drop of each task against its own network, percent; None where unknown.

    Returns:
        The mean gain, or None where a drop is unknown or there is none.

    References:
        Maninis, Radosavovic, Kokkinos, "Attentive Single-Tasking of Multiple Tasks", 2019.
    """
    finite_values = [drop for drop in drops if drop is not None]
    return 0.0 - sum(finite_values) / len(finite_values) if finite_values and len(finite_values) == len(drops) else None


def finite_or_none(value: SupportsFloat | None) -> float | None:
    """Returns a number; None of what is missing or not finite."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
