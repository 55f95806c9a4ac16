"""Whether a task has learnt anything: its metric against the untrained network and the best constant output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from mtl_jax.evaluation.contract_table import figure

# What there is to beat is the better of the two figures, and beyond it this share of its distance to the nearer end of
# its range (0 to 1 of a score, 0 of an error) and so many standard errors (one chance in fifty); at most perfection.
MARGIN = 0.05
STANDARD_ERRORS = 2.0


def to_beat(
    untrained: SupportsFloat | None,
    constant: SupportsFloat | None,
    *,
    standard_error: SupportsFloat | None,
    higher_is_better: bool,
) -> float | None:
    """Returns the least score, or the largest error, that shows that a task has learnt something.

    Args:
        untrained: the task's metric before its own stage; one that is missing or not finite is left out.
        constant: metric of the best constant output; ignored if missing or not finite.
        standard_error: of the constant output's figure.
        higher_is_better: False for errors.

    Returns:
        The figure, or None where neither is known.
    """
    finite_values = [float(value) for value in (untrained, constant) if value is not None and math.isfinite(value)]
    if not finite_values:
        return None
    noise = float(standard_error) if standard_error is not None and math.isfinite(standard_error) else 0.0
    best = max(finite_values) if higher_is_better else min(finite_values)
    share = min(best, 1 - best) if higher_is_better else best
    margin = MARGIN * max(share, 0.0) + STANDARD_ERRORS * noise
    return min(best + margin, max(best, 1.0)) if higher_is_better else max(best - margin, 0.0)


def judge(task: str, metric: str, stages: Sequence[Mapping[str, Any]], *, higher_is_better: bool) -> dict[str, Any]:
    """Judges whether a task has learnt something in its own stage, the first that measured it.

    Args:
        task: its name.
        metric: the figure that counts.
        stages: as in `contract.json`; "before" and "constant" of the task's own stage say what there is to beat.
        higher_is_better: False for errors.

    Returns:
        "untrained", "constant", "to_beat" and "learnt", None where unknown, as in runs of earlier versions; also
        "not_learnt_because" where "learnt" is False.
    """
    own_stage: Mapping[str, Any] = next((stage for stage in stages if task in stage["metrics"]), {})
    score = own_stage.get("metrics", {}).get(task, {}).get(metric)
    untrained = own_stage.get("before", {}).get(task, {}).get(metric)
    constant = own_stage.get("constant", {}).get(task, {})
    verdict = {"untrained": untrained, "constant": constant.get("figure"), "to_beat": None, "learnt": None}
    if constant.get("count") == 0:
        return verdict | {"learnt": False, "not_learnt_because": f"the validation data has no {constant['counted']}"}
    least = to_beat(
        untrained,
        constant.get("figure"),
        standard_error=constant.get("standard_error"),
        higher_is_better=higher_is_better,
    )
    if least is None:
        return verdict
    perfect = 1.0 if higher_is_better else 0.0
    value = math.nan if score is None else float(score)
    beats = value >= least if higher_is_better else value <= least
    is_learnt = bool(beats and constant.get("figure") != perfect)
    verdict |= {"to_beat": least, "learnt": is_learnt}
    return verdict if is_learnt else verdict | {"not_learnt_because": _reason(verdict, score, perfect)}


def _reason(verdict: Mapping[str, Any], score: float | None, perfect: float) -> str:
    if verdict["constant"] == perfect:
        return "the same output for every validation image is perfect, so that they cannot show learning"
    return (
        f"learnt nothing: {figure(score)} after its own stage, expected {figure(verdict['to_beat'])} (untrained "
        f"{figure(verdict['untrained'])}, a constant output {figure(verdict['constant'])})"
    )
