"""The report's summary in words: what was learnt, what was kept, compared with what, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mtl_jax.evaluation import contract_table
from mtl_jax.evaluation.contract_table import figure
from mtl_jax.tasks import title


def section(contract: Mapping[str, Any] | None) -> str:
    """Returns the sentences as a list; nothing without a contract.

    Args:
        contract: the tree of `contract.json`.
    """
    if not contract or not contract["tasks"]:
        return ""
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(contract))
    return f'<ul class="verdict">\n{items}\n</ul>\n'


def sentences(contract: Mapping[str, Any]) -> list[str]:
    """Returns sentences on every task and its later classes, and on the cost; before them why a version is not kept."""
    stages = [stage["name"] for stage in contract["stages"]]
    tasks = [
        f"{task}: {_learnt(entry)}{_retention(entry, last=f'stage {stages[-1]}' if stages else '')}"
        for task, entry in contract_table.task_entries(contract).items()
    ]
    cost = _cost(contract["budgets"])
    lead = []
    if "refused" in contract:
        lead = [f"This version was {contract['refused']}. Figures and predictions are of the rejected version."]
    return [*lead, *tasks, *([cost] if cost else [])]


def _learnt(entry: Mapping[str, Any]) -> str:
    if entry["final"] is None:
        return "not measured."
    final_text = f"{title(entry['metric'])} {figure(entry['final'])}"
    if entry.get("to_beat") is None:
        return f"{final_text}."
    verdict = "learnt" if entry.get("learnt") else "not learnt"
    return f"{verdict}; {final_text} (to beat: {figure(entry['to_beat'])})."


def _retention(entry: Mapping[str, Any], *, last: str) -> str:
    drop, origin = entry["drop_percent"], entry["baseline_from"]
    if drop is None or not origin:
        return ""
    if origin == last:
        return " Learnt in the last stage, so nothing could be lost since."
    against = f"since {origin}" if origin.startswith("stage ") else f"against {origin}"
    change = "Lost" if drop > 0 else "Gained"
    if abs(drop) < 0.005:
        return f" Lost nothing {against} ({figure(entry['baseline'])})."
    return f" {change} {abs(drop):.1f} % {against} ({figure(entry['baseline'])})."


def _cost(budgets: Mapping[str, Any]) -> str:
    phrases = []
    if params := _value(budgets, "params"):
        shared = _value(budgets, "shared_percent")
        of_which = f", {shared:.1f} % of which serve two tasks or more" if shared else ""
        phrases.append(f"{params:,} parameters{of_which}")
    if latency := _value(budgets, "latency_ms"):
        phrases.append(f"{latency:.1f} ms for an image of {budgets['latency_ms']['image_size']} px")
    if seconds := _value(budgets, "train_seconds"):
        phrases.append(f"{seconds / 60:.1f} minutes of training")
    return f"Cost: {'; '.join(phrases)}." if phrases else ""


def _value(budgets: Mapping[str, Any], name: str) -> Any:
    return (budgets.get(name) or {}).get("value")
