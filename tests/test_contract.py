import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.evaluation import contract
from mtl_jax.evaluation.contract import Baseline
from mtl_jax.report import run_report, versions_section
from mtl_jax.workdir import files

JUDGED = {"seg": ("miou", True), "det": ("map_50_95", True), "cls": ("top1", True)}
STAGES = [
    {"name": "seg", "metrics": {"seg": {"miou": 0.40, "pixel_accuracy": 0.8}}},
    {"name": "det", "metrics": {"seg": {"miou": 0.42}, "det": {"map_50_95": 0.20}}},
    {"name": "cls", "metrics": {"seg": {"miou": 0.39}, "det": {"map_50_95": 0.21}, "cls": {"top1": 0.9}}},
]
BUDGETS = {
    "params": {"value": 3_000_000, "limit": 8_000_000},
    "latency_ms": {"value": 20.5, "limit": 150.0, "image_size": 512},
}


def build(stages=STAGES, judged=JUDGED, budgets=BUDGETS, **options):
    return contract.build(stages, judged, budgets, **{"max_drop_percent": 5.0} | options)


def two_stages(before, after):
    return [{"name": "seg", "metrics": {"seg": {"miou": before}}}, {"name": "det", "metrics": after}]


def judge(before, after, *, higher=True, **options):
    stages = two_stages(before, {"seg": {"miou": after}})
    return build(stages, {"seg": ("miou", higher)}, {}, **options)["tasks"]["seg"]


def test_the_drop_is_relative_to_the_baseline():
    assert contract.relative_drop_percent(0.5, 0.4, True) == pytest.approx(20.0)
    assert contract.relative_drop_percent(0.5, 0.6, True) == pytest.approx(-20.0)
    assert contract.relative_drop_percent(2.0, 2.5, higher_is_better=False) == pytest.approx(25.0)
    assert contract.relative_drop_percent(2.0, 1.5, higher_is_better=False) == pytest.approx(-25.0)


@pytest.mark.parametrize("baseline", [0.0, -0.0, -0.2, math.nan, math.inf, None])
def test_a_baseline_that_is_not_above_zero_gives_no_drop(baseline):
    assert contract.relative_drop_percent(baseline, 0.3, True) is None


@pytest.mark.parametrize("final", [math.nan, -math.inf, None])
def test_a_final_value_that_is_not_finite_gives_no_drop(final):
    assert contract.relative_drop_percent(0.3, final, True) is None


@given(st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_an_error_rises_where_a_score_drops(baseline, final):
    drop = contract.relative_drop_percent(baseline, final, True)
    rise = contract.relative_drop_percent(baseline, final, False)
    assert drop is not None
    assert rise == -drop


@given(st.floats(allow_nan=True), st.floats(allow_nan=True), st.booleans())
def test_any_pair_of_floats_gives_a_finite_drop_or_none(baseline, final, higher):
    drop = contract.relative_drop_percent(baseline, final, higher)
    assert drop is None or math.isfinite(drop)


def test_no_change_is_a_drop_of_plain_zero():
    assert str(contract.relative_drop_percent(1.0, 1.0, False)) == "0.0"


def test_a_kept_contract_has_the_documented_keys():
    tree = build()
    assert tree["passed"] is True
    assert tree["max_drop_percent"] == 5.0
    assert tree["tasks"]["seg"] == {
        "metric": "miou",
        "higher_is_better": True,
        "baseline": 0.40,
        "baseline_from": "stage seg",
        "final": 0.39,
        "drop_percent": pytest.approx(2.5),
        "untrained": None,
        "constant": None,
        "to_beat": None,
        "learnt": None,
        "passed": True,
    }
    assert tree["tasks"]["cls"]["baseline_from"] == "stage cls"
    assert tree["tasks"]["cls"]["drop_percent"] == 0.0
    assert tree["budgets"]["params"] == {"value": 3_000_000, "limit": 8_000_000, "passed": True}
    assert tree["budgets"]["latency_ms"]["image_size"] == 512
    assert tree["stages"] == STAGES


@pytest.mark.parametrize("baseline", [0.1, 0.2, 0.3, 0.4, 0.7, 1.0, 37.3])
def test_a_drop_of_exactly_the_limit_passes(baseline):
    assert judge(baseline, baseline * 0.95)["passed"]
    assert judge(baseline, baseline * 1.05, higher=False)["passed"]
    assert not judge(baseline, baseline * 0.9499)["passed"]
    assert not judge(baseline, baseline * 1.0501, higher=False)["passed"]


@pytest.mark.parametrize("higher", [True, False])
def test_with_a_limit_of_zero_what_stays_equal_passes_and_what_loses_anything_does_not(higher):
    worse = 0.3999 if higher else 0.4001
    assert judge(0.4, 0.4, higher=higher, max_drop_percent=0.0)["passed"]
    assert not judge(0.4, worse, higher=higher, max_drop_percent=0.0)["passed"]


@pytest.mark.parametrize("final", [math.nan, math.inf, None])
def test_an_error_that_is_not_finite_at_the_end_cannot_pass(final):
    entry = judge(8.0, final, higher=False)
    assert (entry["final"], entry["drop_percent"], entry["passed"]) == (None, None, False)


def test_one_broken_task_breaks_the_contract():
    tree = build(max_drop_percent=2.0)
    assert [task for task, entry in tree["tasks"].items() if not entry["passed"]] == ["seg"]
    assert tree["passed"] is False


def test_a_gain_passes_with_a_negative_drop():
    assert judge(0.4, 0.5)["drop_percent"] == pytest.approx(-25.0)
    assert judge(0.4, 0.5)["passed"]


@pytest.mark.parametrize("before", [0.0, math.nan, -1.0])
def test_a_task_whose_baseline_says_nothing_cannot_pass_and_says_why(before):
    entry = judge(before, 0.9)
    assert entry["drop_percent"] is None
    assert entry["passed"] is False
    assert "baseline" in entry["reason"]


def test_a_task_not_evaluated_in_the_last_stage_cannot_pass():
    entry = build(two_stages(0.4, {"det": {"map_50_95": 0.1}}), {"seg": ("miou", True)}, {})["tasks"]["seg"]
    assert (entry["baseline"], entry["final"], entry["passed"]) == (0.4, None, False)
    assert entry["reason"] == "no finite value after the last stage"


@pytest.mark.parametrize("stages", [[], two_stages(0.4, {})])
def test_a_task_never_evaluated_cannot_pass(stages):
    entry = build(stages, {"depth": ("rmse", False)}, {})["tasks"]["depth"]
    assert (entry["baseline"], entry["baseline_from"], entry["final"]) == (None, None, None)
    assert (entry["passed"], entry["reason"]) == (False, "never evaluated")


def test_a_task_without_the_judged_metric_in_its_own_stage_has_no_baseline():
    stages = [{"name": "seg", "metrics": {"seg": {"loss": 1.0}}}, *STAGES[1:]]
    entry = build(stages)["tasks"]["seg"]
    assert (entry["baseline"], entry["baseline_from"], entry["passed"]) == (None, "stage seg", False)


def test_a_given_baseline_replaces_that_of_the_task_s_own_stage_and_is_named():
    entry = build(baselines={"seg": Baseline(0.5, "runs/seg_alone")})["tasks"]["seg"]
    assert (entry["baseline"], entry["baseline_from"]) == (0.5, "runs/seg_alone")
    assert entry["drop_percent"] == pytest.approx(22.0)
    assert build(baselines={"seg": Baseline(0.5, "x")})["tasks"]["det"]["baseline_from"] == "stage det"


@pytest.mark.parametrize(
    ("value", "limit", "passed"),
    [
        (8, 8, True),
        (9, 8, False),
        (None, 8, False),
        (math.nan, 8, False),
        (9, None, True),
        (None, None, True),
    ],
)
def test_a_budget_passes_up_to_its_limit_and_never_unmeasured(value, limit, passed):
    tree = build(budgets={"params": {"value": value, "limit": limit}})
    assert tree["budgets"]["params"]["passed"] is passed
    assert tree["passed"] is passed


def test_a_budget_that_was_not_measured_says_so():
    assert build(budgets={"latency_ms": {"limit": 1.0}})["budgets"]["latency_ms"]["reason"] == "not measured"


def test_forgetting_counts_from_the_best_earlier_value():
    assert contract.forgetting([0.4, 0.5, 0.3], higher_is_better=True) == pytest.approx(0.2)
    assert contract.forgetting([None, 2.0, 1.0, 3.0], higher_is_better=False) == pytest.approx(2.0)
    assert contract.forgetting([0.4, 0.5], higher_is_better=True) == pytest.approx(-0.1)


def test_backward_transfer_counts_from_the_own_stage():
    assert contract.backward_transfer([0.4, 0.5, 0.3], higher_is_better=True) == pytest.approx(-0.1)
    assert contract.backward_transfer([None, 2.0, 1.0, 3.0], higher_is_better=False) == pytest.approx(-1.0)


@pytest.mark.parametrize("history", [[], [0.4], [None, 0.4], [0.4, None]])
def test_a_task_without_both_an_earlier_and_a_last_value_has_no_forgetting(history):
    assert contract.forgetting(history, higher_is_better=True) is None
    assert contract.backward_transfer(history, higher_is_better=True) is None


def test_the_contract_holds_forgetting_and_backward_transfer_by_task_and_their_mean():
    tree = build()
    assert tree["forgetting"]["tasks"] == {
        "seg": pytest.approx(0.03),
        "det": pytest.approx(-0.01),
        "cls": None,
    }
    assert tree["forgetting"]["mean"] == pytest.approx(0.01)
    assert tree["backward_transfer"]["mean"] == pytest.approx(0.0)
    assert build(STAGES[:1])["forgetting"]["mean"] is None


def test_written_json_is_strict_and_complete(tmp_path):
    path = tmp_path / "contract.json"
    tree = {"nan": math.nan, "array": jnp.array([1.0, jnp.inf]), "number": np.float32(0.5), "path": tmp_path}
    files.write_json(path, tree | {"tuple": (1, "ü")})
    expected = {"nan": None, "array": [1.0, None], "number": 0.5, "path": str(tmp_path), "tuple": [1, "ü"]}
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "contract.json"
    files.write_json(path, {"passed": True})
    with pytest.raises(TypeError):
        files.write_json(path, {"passed": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"passed": True}


def test_nan_in_a_stage_becomes_null():
    tree = build(two_stages(0.4, {"seg": {"miou": math.nan}}))
    assert tree["stages"][1]["metrics"]["seg"]["miou"] is None
    json.dumps(tree, allow_nan=False)


def test_the_text_is_aligned_and_tells_all():
    assert contract.as_text(build(max_drop_percent=2.0)) == "\n".join(
        [
            "contract BROKEN: no task may lose more than 2 %",
            "",
            "task  metric     to beat  baseline  final     drop  verdict",
            "seg   mIoU             -       0.4   0.39   2.50 %  BROKEN",
            "det   mAP 50-95        -       0.2   0.21  -5.00 %  passed",
            "cls   Top-1            -       0.9    0.9   0.00 %  passed",
            "",
            "budget                 measured      limit  verdict",
            "params                3,000,000  8,000,000  passed",
            "latency_ms at 512 px       20.5        150  passed",
            "",
        ]
    )


def test_a_reason_is_shown_below_the_table_so_that_no_column_is_as_wide():
    tree = build([], {"seg": ("miou", False)}, {})
    assert "mIoU (lower is better)" in contract.as_text(tree)
    assert "not measured\n\nseg: never evaluated\n" in contract.as_text(tree)
    assert "\n- seg: never evaluated\n" in contract.as_markdown(tree)


def test_in_a_terminal_of_80_columns_no_row_takes_more_than_two_lines():
    from rich.console import Console

    before = {name: {metric: 0.4} for name, (metric, _) in JUDGED.items()}
    stages = [stage | {"before": before, "constant": {}} for stage in two_stages(0.4, {"seg": {"miou": 0.01}})]
    tree = build(stages)
    assert "learnt nothing: 0.4 after its own stage" in tree["tasks"]["seg"]["reason"]
    console = Console(file=io.StringIO(), width=80)
    console.print(contract.table(tree))
    lines = console.file.getvalue().splitlines()
    head, budgets = (next(i for i, line in enumerate(lines) if word in line) for word in ("to beat", "measured"))
    assert budgets - head <= 2 + 2 * len(JUDGED) + 2
    assert any(line.startswith("seg: learnt nothing: 0.4 after its own stage") for line in lines)


def test_every_line_of_a_markdown_table_is_as_long_as_the_others_and_pipes_are_escaped():
    tree = build(judged=JUDGED | {"a|b": ("miou", True)})
    lines = [line for line in contract.as_markdown(tree).splitlines() if line.startswith("|")]
    assert lines[1].startswith("|------")
    assert lines[1].count(":|") == 4
    assert "a\\|b" in lines[5]
    assert {len(line) for line in lines[:6]} == {len(lines[0])}
    assert {len(line) for line in lines[6:]} == {len(lines[6])}


def test_the_terminal_s_table_holds_the_same_words_and_takes_no_markup_from_names():
    from rich.console import Console

    tree = build(judged=JUDGED | {"[red]x": ("miou", True)})
    console = Console(file=io.StringIO(), width=120)
    console.print(contract.table(tree))
    shown = console.file.getvalue()
    assert "[red]x" in shown
    for word in ("contract BROKEN", "mAP 50-95", "2.50 %", "8,000,000", "never evaluated", "at 512 px"):
        assert word in shown


def test_intransigence_is_what_learning_alone_would_have_given_more():
    assert contract.intransigence([None, 0.4, 0.3], reference=0.5, higher_is_better=True) == pytest.approx(0.1)
    assert contract.intransigence([8.0], reference=6.0, higher_is_better=False) == pytest.approx(2.0)
    assert contract.intransigence([None, None], reference=0.5, higher_is_better=True) is None
    assert contract.intransigence([0.4], reference=float("nan"), higher_is_better=True) is None


def test_forward_transfer_is_what_earlier_stages_gave_before_the_task_s_own():
    assert contract.forward_transfer(0.3, 0.1, higher_is_better=True) == pytest.approx(0.2)
    assert contract.forward_transfer(9.0, 10.0, higher_is_better=False) == pytest.approx(1.0)
    assert contract.forward_transfer(None, 0.1, higher_is_better=True) is None


def test_intransigence_is_told_where_a_run_of_its_own_is_the_baseline():
    stages = [{"name": "a", "metrics": {"seg": {"miou": 0.4}}}]
    for baselines, expected in ((None, None), ({"seg": contract.Baseline(0.5, "run x")}, pytest.approx(0.1))):
        tree = contract.build(stages, {"seg": ("miou", True)}, {}, max_drop_percent=5.0, baselines=baselines)
        assert tree["intransigence"]["tasks"]["seg"] == expected


def test_forward_transfer_is_told_where_the_stages_were_preceded_by_evaluations():
    judged = {"a": ("miou", True), "b": ("mae", False)}
    stages = [
        {"name": "a", "before": {"a": {"miou": 0.1}, "b": {"mae": 9.0}}, "metrics": {"a": {"miou": 0.4}}},
        {"name": "b", "before": {"b": {"mae": 7.0}}, "metrics": {"a": {"miou": 0.4}, "b": {"mae": 2.0}}},
    ]
    tree = contract.build(stages, judged, {}, max_drop_percent=5.0)
    assert tree["forward_transfer"] == {"tasks": {"a": None, "b": pytest.approx(2.0)}, "mean": pytest.approx(2.0)}
    without = [{name: value for name, value in stage.items() if name != "before"} for stage in stages]
    tree = contract.build(without, judged, {}, max_drop_percent=5.0)
    assert tree["forward_transfer"] == {"tasks": {"a": None, "b": None}, "mean": None}


def test_delta_m_is_the_mean_gain_over_networks_of_the_tasks_own_and_told_where_all_are_known():
    assert contract.delta_m_percent([10.0, -4.0]) == pytest.approx(-3.0)
    assert contract.delta_m_percent([10.0, None]) is None
    assert contract.delta_m_percent([]) is None
    stages = [{"name": "both", "metrics": {"a": {"miou": 0.6}, "b": {"mae": 8.0}}}]
    judged = {"a": ("miou", True), "b": ("mae", False)}
    alone = {"a": contract.Baseline(0.5, "run a"), "b": contract.Baseline(10.0, "run b")}
    tree = contract.build(stages, judged, {}, max_drop_percent=5.0, baselines=alone)
    assert tree["delta_m_percent"] == pytest.approx(20.0)
    assert "delta_m +20.00 % against single-task networks" in contract.as_text(tree)
    single = contract.build(stages, judged, {}, max_drop_percent=5.0, baselines={"a": alone["a"]})
    assert single["delta_m_percent"] is None
    of_one_run = {task: baseline._replace(source="run old") for task, baseline in alone.items()}
    grown = contract.build(stages, judged, {}, max_drop_percent=5.0, baselines=of_one_run)
    assert "delta_m +20.00 % against run old" in contract.as_text(grown)
    assert "Against run old, delta_m is +20.00 %." in run_report._contract(grown)
    assert "delta_m" not in contract.as_text(single)


def test_classes_that_came_later_are_judged_by_themselves():
    grown = [
        {"name": "det", "metrics": {"det": {"map_50_95": 0.20}}},
        {
            "name": "more",
            "metrics": {"det": {"map_50_95": 0.20}},
            "added": {"det/more": {"map_50_95": 0.30}},
            "added_before": {"det/more": {"map_50_95": 0.0}},
            "added_constant": {"det/more": {"figure": 0.01, "standard_error": 0.0, "count": 9, "counted": "object"}},
        },
        {"name": "cls", "metrics": {"det": {"map_50_95": 0.20}}, "added": {"det/more": {"map_50_95": 0.27}}},
    ]
    judged, added = {"det": ("map_50_95", True)}, {"det": {"more": ("cup",), "to_come": ("car",)}}
    tree = build(grown, judged, {}, added=added)
    entry = tree["tasks"]["det"]
    assert list(entry["added"]) == ["more"]
    more = entry["added"]["more"]
    assert (more["classes"], more["baseline"], more["final"], more["learnt"]) == (["cup"], 0.30, 0.27, True)
    assert more["drop_percent"] == pytest.approx(10.0)
    assert not more["passed"]
    assert (entry["drop_percent"], entry["passed"]) == (0.0, True)
    assert not tree["passed"]
    assert "det/more" in contract.as_text(tree)
    assert "<td>det/more</td>" in run_report._contract(tree)
    section = versions_section.section(
        {**tree, "lineage": {"parent": "old", "digest": "0", "versions": [version("det"), version("more", "cls")]}}
    )
    assert "det/more" in section
    assert "0.27" in section


def version(*stages):
    return {"workdir": "runs/it", "stages": stages, "classes": {"det": ["cup"]}}
