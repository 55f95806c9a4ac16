"""Several runs side by side: the figures are theirs, and what is missing is said."""

import csv
import io
import itertools
import json
import re

import pytest

from mtl_jax.report import comparison, comparison_figures, comparison_page
from mtl_jax.report.balance_section import Conflict


def result(variant, seed, miou, *, drop=1.0, passed=True, latency=30.0, step_ms=12.0, conflicts=None):
    stages = [
        {"name": "seg", "metrics": {"seg": {"miou": miou / (1 - drop / 100)}}},
        {"name": "cls", "metrics": {"seg": {"miou": miou}, "cls": {"top1": 0.9}}},
    ]
    task = {"metric": "miou", "higher_is_better": True, "final": miou, "drop_percent": drop}
    another = {"metric": "top1", "higher_is_better": True, "final": 0.9, "drop_percent": 0.0}
    budgets = {name: {"value": value} for name, value in (("params", 1000), ("latency_ms", latency))}
    contract = {
        "passed": passed,
        "max_drop_percent": 5.0,
        "tasks": {"seg": task, "cls": another},
        "budgets": budgets,
        "stages": stages,
    }
    history = {"cls/train/cls/loss": {"step": [1, 10], "value": [2.0, 1.0]}}
    return comparison.Result(variant, seed, contract, step_ms, conflicts or {}, history)


RESULTS = [
    result("none", 0, 0.2, drop=50.0, passed=False),
    result("none", 1, 0.3, drop=40.0, passed=False),
    result("lwf", 0, 0.4),
]


def test_the_table_has_mean_and_sample_deviation_over_seeds():
    heads, rows = comparison.table(RESULTS)
    none, lwf = (dict(zip(heads, row, strict=True)) for row in rows)
    assert none["variant"] == "none"
    assert none["seeds"] == "2"
    assert none["seg mIoU"] == "0.25 ± 0.071"
    assert none["seg drop, %"] == "45.00 ± 7.07"
    assert none["contract kept"] == "0 of 2"
    assert lwf["seg mIoU"] == "0.4"
    assert lwf["contract kept"] == "1 of 1"
    assert lwf["peak memory, MB"] == "-"


def test_a_missing_figure_is_counted_and_not_averaged():
    broken = result("none", 2, 0.2)
    broken.contract["tasks"]["seg"]["final"] = None
    heads, rows = comparison.table([*RESULTS[:2], broken])
    assert rows[0][heads.index("seg mIoU")] == "0.25 ± 0.071 (2 of 3)"


def test_the_csv_has_a_line_for_every_run_in_full_precision():
    lines = list(csv.DictReader(io.StringIO(comparison.as_csv([result("a,b", 3, 1 / 3)]))))
    assert lines[0]["variant"] == "a,b"
    assert lines[0]["seed"] == "3"
    assert float(lines[0]["seg_miou"]) == 1 / 3
    assert lines[0]["step_ms"] == "12.0"
    assert lines[0]["peak_memory_mb"] == ""


def test_delta_m_is_shown_where_a_run_has_it():
    assert "delta_m, %" not in comparison.table(RESULTS)[0]
    gained = result("lwf", 0, 0.4)
    gained.contract["delta_m_percent"] = -1.25
    heads, rows = comparison.table([*RESULTS[:2], gained])
    assert [row[heads.index("delta_m, %")] for row in rows] == ["-", "-1.25"]


def test_conflicts_are_averaged_over_the_runs_that_logged_them():
    pair = ("seg", "cls")
    some = [
        result("sum", seed, 0.2, conflicts={pair: Conflict(share, -0.1, -0.2, 10)})
        for seed, share in enumerate((0.2, 0.4))
    ]
    heads, rows = comparison_page.conflict_table({"sum": some, "none": [RESULTS[0]]})
    assert heads == ["variant", "seg and cls"]
    assert rows == [["sum", "30 %, mean cosine -0.100"]]
    assert "Conflicts" in comparison_page.as_html("runs", [*some, RESULTS[0]])
    assert "Conflicts" not in comparison_page.as_html("runs", RESULTS)


def test_the_matrix_is_the_mean_over_seeds():
    tasks, rows = comparison.matrix(RESULTS[:2])
    assert tasks == ["seg", "cls"]
    assert rows[0] == ("seg", [pytest.approx((0.4 + 0.5) / 2), None])
    assert rows[1] == ("cls", [pytest.approx(0.25), pytest.approx(0.9)])


def test_the_heatmaps_hold_every_variant_s_figures_and_are_red_where_the_contract_breaks():
    svg = comparison_page.heatmaps_svg(RESULTS)
    assert svg.startswith("<?xml")
    red, green = comparison_page.heatmaps_svg([RESULTS[0]]), comparison_page.heatmaps_svg([RESULTS[2]])
    assert red.count("fill: #") >= 4
    fills = [set(re.findall(r"fill: (#\w{6})", text)) for text in (red, green)]
    reddish = [{c for c in fill if int(c[1:3], 16) > int(c[3:5], 16) + 40} for fill in fills]
    assert reddish[0]
    assert not reddish[1]


def test_the_pages_name_every_variant_and_escape_it():
    odd = result("<b>|x", 0, 0.4)
    page = comparison_page.as_html("runs", [*RESULTS, odd])
    assert "<b>|x" not in page
    assert page.count("&lt;b&gt;|x") >= 3
    assert page.count("<svg") == 8  # a spread for each of two tasks, and each against the three costs that are known
    assert "<b>\\|x" in comparison.as_markdown([odd])


def test_an_unfinished_run_has_no_result(tmp_path):
    assert comparison.read("none", 0, tmp_path) is None


def test_the_history_holds_losses_weights_norms_and_validation_figures_by_name():
    def event(name, value, step, split="train", task="det"):
        return {"stage": "both", "split": split, "task": task, "name": name, "value": value, "step": step}

    events = [event("coco/loss", 3.0, 1), event("coco/loss", 2.0, 10), event("task_weight", 0.5, 10)]
    events += [event("gradient_norm", 1.5, 10, task=None), event("map", 0.2, 10, split="val"), event("box", 1.0, 10)]
    returned = comparison.history(events)
    assert returned["both/train/det/coco/loss"] == {"step": [1, 10], "value": [3.0, 2.0]}
    assert set(returned) == {
        "both/train/det/coco/loss", "both/train/det/task_weight", "both/train/all/gradient_norm", "both/val/det/map",
    }  # fmt: skip
    tree = json.loads(comparison.as_history(RESULTS))
    assert {variant: list(seeds) for variant, seeds in tree.items()} == {"none": ["0", "1"], "lwf": ["0"]}
    assert tree["lwf"]["0"]["cls/train/cls/loss"]["value"] == [2.0, 1.0]


def test_a_dozen_variants_look_different_each():
    returned = [tuple(look.values()) for look in itertools.islice(comparison_figures.looks(), 12)]
    assert len(set(returned)) == 12


def test_the_tradeoffs_stand_alone_with_every_variant_and_axis():
    svg = comparison_page.tradeoffs_svg(RESULTS)
    assert svg.startswith("<?xml")
    assert svg == comparison_page.tradeoffs_svg(RESULTS)
    for text in ("seg mIoU", "largest drop, %", "latency, ms", "parameters", *comparison.by_variant(RESULTS)):
        assert f"<!-- {text} -->" in svg
