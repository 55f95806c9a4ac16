"""Conflicts are counted as logged, and the section stands where there is something to tell."""

from mtl_jax.report import balance_section, run_report
from mtl_jax.report.balance_section import Conflict
from mtl_jax.report.svg_figures import Span


def event(step, name, value, task=None, split="train"):
    return {"step": step, "stage": "joint", "split": split, "task": task, "name": name, "value": value}


COSINES = [event(step, "cosine/seg/depth_a", value) for step, value in enumerate((0.5, -0.25, -0.75, 0.0))]
OTHERS = [event(1, "cosine/seg/cls", 0.1), event(1, "task_weight", 0.4, task="seg"), event(1, "loss", 2.0, task="seg")]


def test_a_conflict_is_a_negative_cosine():
    result = balance_section.conflicts([*COSINES, *OTHERS])
    assert result == {("seg", "depth_a"): Conflict(0.5, -0.125, -0.5, 4), ("seg", "cls"): Conflict(0.0, 0.1, None, 1)}


def test_a_stream_called_cosine_is_no_pair_of_tasks():
    of_the_stream = [event(1, "cosine/feature_distance", 0.5), event(1, "cosine/loss", 2.0, task="seg")]
    assert balance_section.conflicts(of_the_stream) == {}
    assert balance_section.section(of_the_stream, []) == ""


def test_the_heatmap_shows_every_pair_on_both_sides_of_the_diagonal():
    section = balance_section.section([*COSINES, *OTHERS], [Span("joint", 0, 3)])
    assert section.count("opposed in 50 %") == section.count("opposed in 0 %") == 2
    assert section.count("where opposed -0.500") == 2
    assert "where opposed never" in section
    assert "cosine of seg and depth_a" in section
    assert "weights of the tasks" in section


def test_a_solver_that_leaves_nothing_over_is_not_drawn():
    draw = lambda value: balance_section.section([event(1, "balance_residual", value)], [])  # noqa: E731
    assert "left over" in draw(1e-3)
    assert "left over" not in draw(0.0)


def test_a_run_without_balance_has_no_section():
    assert balance_section.section([event(1, "loss", 2.0, task="seg"), event(1, "miou", 0.5, split="val")], []) == ""


def test_what_the_section_of_a_report_shows_is_not_shown_again():
    page = run_report.html("run", None, [*COSINES, *OTHERS], None, {})
    assert "<h2>Balance between the tasks" in page
    for title in ("Training loss", "Optimisation and speed"):
        section = page.split(title)[1].split("<h2")[0]
        assert "cosine" not in section
        assert "task_weight" not in section
