"""The contract of a run: every task learns something, none loses more than a stated share of it, within budgets.

Judging is pure. What cannot be judged (no baseline, not evaluated, not measured) cannot pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from mtl_jax.evaluation.baselines import Baseline
from mtl_jax.evaluation.contract_table import as_markdown, as_text, figure, table
from mtl_jax.evaluation.learning import judge as judge_learning
from mtl_jax.workdir.files import without_nan

__all__ = [
    "Baseline",
    "as_markdown",
    "as_text",
    "backward_transfer",
    "build",
    "delta_m_percent",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "relative_drop_percent",
    "table",
    "task_histories",
]

# In percent points: 0.40 -> 0.38 is a drop of exactly 5 %, though binary fractions make it 5.000000000000004.
ROUNDING_PERCENT = 1e-9


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
    before, after = _finite_or_none(baseline), _finite_or_none(final)
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
        task: [_finite_or_none(stage["metrics"].get(task, {}).get(metric)) for stage in stages]
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
        _finite_or_none(reference),
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
    score_before, start = _finite_or_none(before), _finite_or_none(untrained)
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


def build(
    stages: Sequence[Mapping[str, Any]],
    judged: Mapping[str, tuple[str, bool]],
    budgets: Mapping[str, Mapping[str, Any]],
    *,
    max_drop_percent: SupportsFloat,
    baselines: Mapping[str, Baseline] | None = None,
    added: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Judges a run.

    Args:
        stages: in the order they were trained: {"name": …, "metrics": {task: {metric: value}}}; also "before" the
            stage, likewise, and "constant", of the tasks that the stage teaches, which say what there is to beat.
        judged: by task, the metric that counts and whether higher is better.
        budgets: by name, {"value": … or None, "limit": … or None, and more to keep, as "image_size"}. Without
            a limit it passes; with one but no finite value it was not measured, which breaks the contract.
        max_drop_percent: the largest allowed relative drop; a drop of exactly so much passes.
        baselines: compare these tasks with a value from elsewhere; the others are compared with their metric
            right after the first stage in which they appear.
        added: task -> stage -> the classes that it has added, whose figures stages have under "added", by `addition`.
            They are judged by themselves, and stand in the task's entry under "added"; what the entry says of the
            task is of the classes that were there first.

    Returns:
        The tree of `contract.json`, free of NaN.
    """
    limit = float(max_drop_percent)
    histories = task_histories(stages, judged)
    tasks = {}
    for task, (metric, higher) in judged.items():
        baseline = (baselines or {}).get(task) or _own_baseline(task, metric, stages)
        final = histories[task][-1] if stages else None
        learning = judge_learning(task, metric, stages, higher_is_better=higher)
        tasks[task] = _judge_task(metric, higher, baseline, final, limit, learning)
        if additions := (added or {}).get(task):
            tasks[task]["added"] = _judge_added(task, additions, metric, higher, stages, limit)
            tasks[task]["passed"] &= all(entry["passed"] for entry in tasks[task]["added"].values())
    checked = {name: _judge_budget(budget) for name, budget in budgets.items()}
    signs = {task: higher for task, (_, higher) in judged.items()}
    tree = {
        "passed": all(entry["passed"] for entry in (*tasks.values(), *checked.values())),
        "max_drop_percent": limit,
        "tasks": tasks,
        "budgets": checked,
        "stages": [dict(stage) for stage in stages],
        "forgetting": _over_tasks(
            {task: forgetting(row, higher_is_better=signs[task]) for task, row in histories.items()}
        ),
        "backward_transfer": _over_tasks(
            {task: backward_transfer(row, higher_is_better=signs[task]) for task, row in histories.items()}
        ),
        # Against networks of their own: where every task's baseline comes from another run.
        "delta_m_percent": delta_m_percent(
            [entry["drop_percent"] if task in (baselines or {}) else None for task, entry in tasks.items()]
        ),
        # Of the tasks whose baseline comes from a run of their own.
        "intransigence": _over_tasks(
            {
                task: intransigence(
                    row,
                    reference=baselines[task].value if baselines and task in baselines else None,
                    higher_is_better=signs[task],
                )
                for task, row in histories.items()
            }
        ),
        "forward_transfer": _over_tasks(
            {
                task: forward_transfer(*_before_and_untrained(task, metric, stages), higher_is_better=higher)
                for task, (metric, higher) in judged.items()
            }
        ),
    }
    return without_nan(tree)


def addition(task: str, stage: str) -> str:
    """Returns how figures of the classes that a stage has added to a task are called."""
    return f"{task}/{stage}"


def _judge_added(
    task: str,
    additions: Mapping[str, Sequence[str]],
    metric: str,
    higher_is_better: bool,
    stages: Sequence[Mapping[str, Any]],
    limit: float,
) -> dict[str, Any]:
    """The entries of classes that came later, each like one of a task that was first learnt in their stage."""
    keys = {"metrics": "added", "before": "added_before", "constant": "added_constant"}
    addition_stages = [
        {"name": stage["name"], **{key: stage.get(stage_key, {}) for key, stage_key in keys.items()}}
        for stage in stages
    ]
    by_addition = {}
    for stage, classes in additions.items():
        name = addition(task, stage)
        if not any(name in stage_metrics["metrics"] for stage_metrics in addition_stages):
            continue  # a stage that is still to come
        final = task_histories(addition_stages, {name: (metric, higher_is_better)})[name][-1]
        learning = judge_learning(name, metric, addition_stages, higher_is_better=higher_is_better)
        baseline = _own_baseline(name, metric, addition_stages)
        judged = _judge_task(metric, higher_is_better, baseline, final, limit, learning)
        by_addition[stage] = {"classes": list(classes), **judged}
    return by_addition


def _before_and_untrained(
    task: str, metric: str, stages: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None]:
    """A task's metric before its own stage and before the first; none for the first stage's own tasks."""
    own_stage = next((index for index, stage in enumerate(stages) if task in stage["metrics"]), 0)
    if own_stage == 0:
        return None, None
    before, untrained = (stages[index].get("before", {}).get(task, {}).get(metric) for index in (own_stage, 0))
    return before, untrained


def _own_baseline(task: str, metric: str, stages: Sequence[Mapping[str, Any]]) -> Baseline | None:
    for stage in stages:
        if task in stage["metrics"]:
            value = stage["metrics"][task].get(metric)
            return Baseline(math.nan if value is None else float(value), f"stage {stage['name']}")
    return None


def _judge_task(
    metric: str,
    higher_is_better: bool,
    baseline: Baseline | None,
    final: float | None,
    limit: float,
    learning: Mapping[str, Any],
) -> dict[str, Any]:
    before = _finite_or_none(baseline.value) if baseline else None
    drop = relative_drop_percent(before, final, higher_is_better)
    entry: dict[str, Any] = {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "baseline": before,
        "baseline_from": baseline.source if baseline else None,
        "final": final,
        "drop_percent": drop,
        **{name: learning[name] for name in ("untrained", "constant", "to_beat", "learnt")},
        "passed": drop is not None and drop <= limit + ROUNDING_PERCENT and learning["learnt"] is not False,
    }
    if learning["learnt"] is False:
        entry["reason"] = learning["not_learnt_because"]
    elif drop is None:
        entry["reason"] = _why_not_judged(baseline, before, final)
    return entry


def _why_not_judged(baseline: Baseline | None, before: float | None, final: float | None) -> str:
    if baseline is None:
        return "never evaluated"
    if before is None:
        return "the baseline is missing or not a finite number"
    if final is None:
        return "no finite value after the last stage"
    return f"a relative drop needs a baseline above 0, not {figure(before)}"


def _judge_budget(budget: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"value": None, "limit": None} | dict(budget)
    limit = entry["limit"]
    if limit is None:
        return entry | {"passed": True}
    value = _finite_or_none(entry["value"])
    if value is None:
        return entry | {"passed": False, "reason": "not measured"}
    return entry | {"passed": value <= float(limit)}


def _over_tasks(values: Mapping[str, float | None]) -> dict[str, Any]:
    finite_values = [value for value in values.values() if value is not None]
    return {"tasks": dict(values), "mean": sum(finite_values) / len(finite_values) if finite_values else None}


def _finite_or_none(value: SupportsFloat | None) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
