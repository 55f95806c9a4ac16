"""The contract of a run: every task learns something, none loses more than a stated share of it, within budgets.

Judging is pure. What cannot be judged (no baseline, not evaluated, not measured) cannot pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from mtl_jax.evaluation.baselines import Baseline
from mtl_jax.evaluation.contract_table import addition, as_markdown, as_text, figure, table
from mtl_jax.evaluation.learning import judge as judge_learning
from mtl_jax.evaluation.transfer import (
    backward_transfer,
    delta_m_percent,
    finite_or_none,
    forgetting,
    forward_transfer,
    intransigence,
    relative_drop_percent,
    task_histories,
)
from mtl_jax.workdir.files import without_nan

__all__ = [
    "Baseline",
    "addition",
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
        stages: in the order of training: {"name": …, "metrics": {task: {metric: value}}}; optionally "before", the
            metrics before the stage, and "constant", those of constant outputs, as references for its new tasks.
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
    entries = [judgement for task in tasks.values() for judgement in (task, *task.get("added", {}).values())]
    checked = {name: _judge_budget(budget) for name, budget in budgets.items()}
    tree = {
        "passed": all(entry["passed"] for entry in (*entries, *checked.values())),
        "max_drop_percent": limit,
        "tasks": tasks,
        "budgets": checked,
        "stages": [dict(stage) for stage in stages],
        **_transfer(stages, judged, histories, tasks, baselines or {}),
    }
    return without_nan(tree)


def _transfer(
    stages: Sequence[Mapping[str, Any]],
    judged: Mapping[str, tuple[str, bool]],
    histories: Mapping[str, Sequence[float | None]],
    tasks: Mapping[str, Mapping[str, Any]],
    baselines: Mapping[str, Baseline],
) -> dict[str, Any]:
    """What stages gave to each other's tasks and took from them, over all tasks."""
    signs = {task: higher for task, (_, higher) in judged.items()}
    return {
        "forgetting": _over_tasks(
            {task: forgetting(row, higher_is_better=signs[task]) for task, row in histories.items()}
        ),
        "backward_transfer": _over_tasks(
            {task: backward_transfer(row, higher_is_better=signs[task]) for task, row in histories.items()}
        ),
        # Against networks of their own: where every task's baseline comes from another run.
        "delta_m_percent": delta_m_percent(
            [entry["drop_percent"] if task in baselines else None for task, entry in tasks.items()]
        ),
        # Of the tasks whose baseline comes from a run of their own.
        "intransigence": _over_tasks(
            {
                task: intransigence(
                    row,
                    reference=baselines[task].value if task in baselines else None,
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
    before = finite_or_none(baseline.value) if baseline else None
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
    value = finite_or_none(entry["value"])
    if value is None:
        return entry | {"passed": False, "reason": "not measured"}
    return entry | {"passed": value <= float(limit)}


def _over_tasks(values: Mapping[str, float | None]) -> dict[str, Any]:
    finite_values = [value for value in values.values() if value is not None]
    return {"tasks": dict(values), "mean": sum(finite_values) / len(finite_values) if finite_values else None}
