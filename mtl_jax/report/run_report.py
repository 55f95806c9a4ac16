"""`report.html`: scores, forgetting and costs of a run, on one page made from the files of its work directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.evaluation import contract_table
from mtl_jax.evaluation.contract import relative_drop_percent, task_histories
from mtl_jax.report import (
    balance_section,
    calibration_section,
    html_page,
    looked_section,
    sharing_section,
    verdict_section,
    versions_section,
)
from mtl_jax.report.pictures import Looked
from mtl_jax.report.svg_figures import Span, curves_by, panel_svg
from mtl_jax.tasks import title
from mtl_jax.workdir import metrics_log
from mtl_jax.workdir.files import read_json, replace_text

FILE_NAME = "report.html"
RUN_FIELDS = ("command", "device", "seed", "versions")  # of config.json, shown apart from the configuration
FORGETTING = (
    ("forgetting", "forgetting"),
    ("backward_transfer", "backward transfer"),
    ("forward_transfer", "forward transfer"),
    ("intransigence", "intransigence"),
)
WHOLE_NETWORK = "whole network"

Events = Sequence[Mapping[str, Any]]


def write(workdir: Path, *, pictures_by_task: Mapping[str, Looked]) -> Path:
    """Writes a work directory's report from its config.json, metrics.jsonl and contract.json.

    Args:
        workdir: of a training, finished or not: a section whose file is missing says so.
        pictures_by_task: by task, what was seen of its predictions on validation images; may be empty.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: the work directory is missing, or one of its files is damaged.
    """
    if not workdir.is_dir():
        raise UserError(f"expected a work directory at {workdir}, found none; train one with scripts/train.py")
    config = read_json(workdir / "config.json")
    contract = read_json(workdir / "contract.json")
    log = workdir / metrics_log.FILE_NAME
    events = metrics_log.read(log) if log.is_file() else []
    path = workdir / FILE_NAME
    replace_text(path, html(workdir.name, config, events, contract, pictures_by_task))
    return path


def html(
    name: str,
    config: Mapping[str, Any] | None,
    events: Events,
    contract: Mapping[str, Any] | None,
    pictures_by_task: Mapping[str, Looked],
) -> str:
    """The page.

    Args:
        name: of the run.
        config: the tree of `config.json`.
        events: the finite and null values of `metrics.jsonl`.
        contract: the tree of `contract.json`.
        pictures_by_task: by task, what was seen of its predictions on validation images.
    """
    finite = [event for event in events if event["value"] is not None]
    spans = stage_spans(events)
    optimised = [event for event in finite if not balance_section.is_about_balance(event)]
    sections = [
        _title(name, contract),
        verdict_section.section(contract),
        looked_section.predictions(pictures_by_task),
        _contract(contract),
        _matrix(contract),
        versions_section.section(contract),
        calibration_section.section(contract),
        looked_section.by_class(pictures_by_task),
        sharing_section.section(contract),
        _curves(
            "Validation",
            _validation_panels(finite, spans, contract),
            "Dotted: the baseline. Dashed: the worst value that the contract allows.",
        ),
        balance_section.section(finite, spans),
        _curves("Training loss", _loss_panels(optimised, spans), _lost_values(events)),
        _curves("Optimisation and speed", _other_panels(optimised, spans), ""),
        _run(config),
    ]
    return html_page.page(f"{name}: report", "\n".join(sections))


def stage_spans(events: Events) -> list[Span]:
    """The steps that each stage covers, in the order of the stages' first events."""
    steps: dict[str, list[int]] = {}
    for event in events:
        steps.setdefault(event["stage"], []).append(event["step"])
    return [Span(stage, min(numbers), max(numbers)) for stage, numbers in steps.items()]


def _title(name: str, contract: Mapping[str, Any] | None) -> str:
    verdict, colour = "no contract yet", "none"
    if contract is not None:
        verdict, colour = ("PASSED", "good") if contract["passed"] else ("BROKEN", "bad")
        verdict = "not kept" if "refused" in contract else f"contract {verdict}"
    return f'<h1>{escape(name)} <span class="badge {colour}">{verdict}</span></h1>'


def _contract(contract: Mapping[str, Any] | None) -> str:
    if contract is None:
        return html_page.section(
            "Contract", html_page.paragraph("No contract.json yet: it is written after the last stage.")
        )
    columns = (*contract_table.TASK_COLUMNS[:-1], "compared with", contract_table.TASK_COLUMNS[-1])
    origins = [entry["baseline_from"] or "-" for entry in contract_table.task_entries(contract).values()]
    rows = [
        (*row[:-1], origin, row[-1]) for row, origin in zip(contract_table.task_rows(contract), origins, strict=True)
    ]
    body = html_page.table(columns, rows, numbers=contract_table.TASK_NUMBERS)
    if contract["budgets"]:
        body += html_page.table(
            contract_table.BUDGET_COLUMNS,
            contract_table.budget_rows(contract),
            numbers=contract_table.BUDGET_NUMBERS,
        )
    body += "".join(map(html_page.paragraph, contract_table.reasons(contract)))
    limit_text = f"{contract['max_drop_percent']:g} %"
    lead = (
        f"No task may lose more than {limit_text} of its metric, relative to its baseline. Right after its own stage "
        "it has to beat the untrained network and the best constant output clearly."
    )
    for task, entry in contract["tasks"].items():
        if unmeasured := entry.get("streams_not_measured"):
            lead += f" {task} is measured on stream {entry['stream']}, not on {', '.join(unmeasured)}."
    gain = contract.get("delta_m_percent")
    if gain is not None:
        lead += f" Against {contract_table.compared_with(contract)}, delta_m is {gain:+.2f} %."
    return html_page.section("Contract", body, lead=lead)


def _matrix(contract: Mapping[str, Any] | None) -> str:
    heading = "Every task after every stage"
    if contract is None or not contract["stages"] or not contract["tasks"]:
        return html_page.section(heading, html_page.paragraph("No stage has been evaluated yet."))
    tasks = contract["tasks"]
    histories = task_histories(
        contract["stages"],
        {task: (entry["metric"], entry["higher_is_better"]) for task, entry in tasks.items()},
    )
    head = "".join(
        f"<th>{escape(task)}<br><small>{escape(title(entry['metric']))}</small></th>" for task, entry in tasks.items()
    )
    rows = []
    for index, stage in enumerate(contract["stages"]):
        cells = (
            heat_cell(
                histories[task][index],
                entry,
                contract["max_drop_percent"],
                is_baseline=not any(task in past_stage["metrics"] for past_stage in contract["stages"][:index])
                and entry["baseline_from"] == f"stage {stage['name']}",
            )
            for task, entry in tasks.items()
        )
        rows.append(f"<tr><th>after {escape(stage['name'])}</th>{''.join(cells)}</tr>")
    grid = (
        f'<div class="wide"><table class="heat"><thead><tr><th></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>\n"
    )
    lead = "Small print: the change since the baseline. Red: more was lost than the contract allows."
    return html_page.section(heading, grid + _forgetting(contract), lead=lead)


def heat_cell(value: float | None, entry: Mapping[str, Any], max_drop_percent: float, *, is_baseline: bool) -> str:
    """One cell of the matrix: the value, its relative change for the better (+) or worse (-), a colour."""
    if value is None:
        return '<td class="none">·</td>'
    drop = relative_drop_percent(entry["baseline"], value, entry["higher_is_better"])
    if drop is None:
        return f"<td>{contract_table.figure(value)}</td>"
    # Green up to the allowed drop, stronger for a gain; red beyond it, strongest at four times that drop.
    scale = max(max_drop_percent, 1e-9)
    broken = drop > max_drop_percent + 1e-9
    strength = min(1.0, drop / (4 * scale)) if broken else min(1.0, max(0.0, -drop) / (4 * scale))
    colour = "214, 60, 60" if broken else "40, 160, 105"
    change = "baseline" if is_baseline else f"{0.0 if abs(drop) < 0.05 else -drop:+.1f} %"
    return (
        f'<td style="background: rgba({colour}, {0.14 + 0.36 * strength:.2f})">{contract_table.figure(value)}'
        f"<small>{change}</small></td>"
    )


def _forgetting(contract: Mapping[str, Any]) -> str:
    """The figures of continual learning, where the run has them."""
    columns = ("in units of the metric", *contract["tasks"], "mean")
    rows = []
    for key, label in FORGETTING:
        forgetting = contract.get(key)
        if forgetting and forgetting["mean"] is not None:
            values = [*(forgetting["tasks"].get(task) for task in contract["tasks"]), forgetting["mean"]]
            rows.append((label, *(contract_table.figure(value) for value in values)))
    return html_page.table(columns, rows, numbers=range(1, len(columns))) if rows else ""


def _curves(title: str, figures: Sequence[str], lead: str) -> str:
    if not figures:
        return html_page.section(title, html_page.paragraph("Nothing was logged yet."))
    return html_page.section(title, html_page.panels(figures), lead=lead)


def _by_task(events: Events) -> dict[str, list[Mapping[str, Any]]]:
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        tasks.setdefault(event["task"] or WHOLE_NETWORK, []).append(event)
    return tasks


def _validation_panels(events: Events, spans: Sequence[Span], contract: Mapping[str, Any] | None) -> list[str]:
    """One panel for each task: the judged metric where a contract names it, else every figure of the task."""
    figures = []
    judged = contract["tasks"] if contract else {}
    for task, task_events in _by_task([event for event in events if event["split"] != "train"]).items():
        entry = judged.get(task)
        main = [event for event in task_events if entry and event["name"] == entry["metric"]]
        if contract is None or entry is None or not main:
            figures.append(panel_svg(task, curves_by(task_events, lambda event: title(event["name"])), spans))
            continue
        baseline = entry["baseline"]
        share = contract["max_drop_percent"] / 100
        sign = -1 if entry["higher_is_better"] else 1
        floor = None if baseline is None else baseline * (1 + sign * share)
        curves = curves_by(main, lambda event: title(event["name"]))
        figures.append(panel_svg(f"{task}: {title(entry['metric'])}", curves, spans, baseline=baseline, floor=floor))
    return figures


def _is_loss(event: Mapping[str, Any]) -> bool:
    """Whatever concerns a single task in training, and the losses and penalties of the whole network."""
    return bool(event["task"]) or any(word in event["name"] for word in ("loss", "penalty"))


def _loss_panels(events: Events, spans: Sequence[Span]) -> list[str]:
    losses = [event for event in events if event["split"] == "train" and _is_loss(event)]
    return [
        panel_svg(task, curves_by(task_events, lambda event: event["name"]), spans, log_scale=True)
        for task, task_events in sorted(_by_task(losses).items(), key=lambda item: item[0] != WHOLE_NETWORK)
    ]


def _other_panels(events: Events, spans: Sequence[Span]) -> list[str]:
    other_events = [event for event in events if event["split"] == "train" and not _is_loss(event)]
    return [panel_svg(curve.name, [curve], spans) for curve in curves_by(other_events, lambda event: event["name"])]


def _lost_values(events: Events) -> str:
    losses = [event for event in events if event["split"] == "train" and _is_loss(event)]
    lost_events = [event for event in losses if event["value"] is None]
    if not lost_events:
        return ""
    first = lost_events[0]
    count = f"{len(lost_events)} of {len(losses)} logged losses"
    return f"Left out as not finite: {count}, first {first['name']} at step {first['step']}."


def _run(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return html_page.section("The run", html_page.paragraph("No config.json was found."))
    versions = config.get("versions")
    pairs = [(key, _text(config[key])) for key in RUN_FIELDS[:-1] if key in config]
    if isinstance(versions, Mapping):
        pairs.append(("versions", ", ".join(f"{package} {version}" for package, version in versions.items())))
    settings = config.get("config", {key: value for key, value in config.items() if key not in RUN_FIELDS})
    listing = f"<pre>{escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>\n"
    return html_page.section(
        "The run", html_page.definitions(pairs) + html_page.folded("The resolved configuration", listing)
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(word) for word in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
