import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.evaluation import contract
from mtl_jax.evaluation.details import ByClass
from mtl_jax.report import run_report, verdict_section
from mtl_jax.report.pictures import Looked, Picture, Shown
from mtl_jax.report.svg_figures import MAX_POINTS, Curve, Span, averaged, panel_svg
from mtl_jax.workdir import files
from mtl_jax.workdir.metrics_log import MetricsLog

HOSTILE = "<script>alert('$x')</script>&\"_$\\frac$"
WEBP = b"RIFF not decoded"
FIGURES = ByClass(("class", "IoU"), [("cat", "0.500")], np.array([[3, 1], [0, 4]]), (np.array([0.5, 1.0]),) * 2)
PICTURE = Picture(WEBP, (("#ff0000", "cat"),), "")
LOOKED = Looked([Shown(PICTURE, PICTURE, "IoU 0.50")], [Shown(PICTURE, None, "IoU 0.10")], FIGURES, ("cat", "dog"))
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Collects what a browser would load or run, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_a_bar_shows_whose_the_parameters_are():
    budgets = {"params_by_owner": {"value": {"shared": 900, "<seg>": 100, "det": 0}, "limit": None}}
    tree = contract.build([], {}, budgets, max_drop_percent=5.0)
    page = run_report.html("run", None, [], tree, {})
    assert 'style="flex: 90.000" title="shared: 900"' in page
    assert "&lt;seg&gt;: 100" in page
    assert "shared 900, &lt;seg&gt; 100, det 0" in page  # in the table
    assert 'title="det' not in page


def fill(workdir, task="seg", stage="det"):
    """A work directory of two stages, the first task having lost a quarter."""
    workdir.mkdir(exist_ok=True)
    with MetricsLog(workdir, trackers=()) as log:
        for step in range(1, 7):
            name = task if step <= 3 else stage
            log.log(step, step, name, "train", task, "loss", 1.0 / step)
            log.log(step, step, name, "train", None, "learning_rate", 0.1 * step)
            log.log(step, step, name, "train", None, "ewc_penalty", 100.0**step)
        log.log(6, 6, stage, "train", task, "loss", math.nan)
        log.log(6, 6.5, stage, "train", None, "images_per_second", math.nan)
        log.log(3, 3, task, "val", task, "miou", 0.4)
        log.log(6, 6, stage, "val", task, "miou", 0.3)
        log.log(6, 6, stage, "val", task, "pixel_accuracy", 0.9)
    stages = [
        {"name": task, "metrics": {task: {"miou": 0.4}}},
        {"name": stage, "metrics": {task: {"miou": 0.3}, stage: {"rmse": 2.0}}},
    ]
    judged = {task: ("miou", True), stage: ("rmse", False)}
    tree = contract.build(stages, judged, {"params": {"value": 5, "limit": 8}}, max_drop_percent=5.0)
    files.write_json(workdir / "contract.json", tree)
    config = {"config": {"note": task}, "command": ["train.py", task], "device": "cpu", "seed": 3}
    files.write_json(workdir / "config.json", config | {"versions": {"jax": "0.10.2"}})
    return workdir


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of two stages, in its work directory."""
    workdir = fill(tmp_path_factory.mktemp("runs") / "run")
    path = run_report.write(workdir, pictures_by_task={"seg": LOOKED})
    assert path == workdir / "report.html"
    return path


@pytest.fixture(scope="module")
def page(written):
    return written.read_text(encoding="utf-8")


def test_the_report_shows_the_verdict_the_tables_and_the_run(page):
    checker = parse(page)
    text = " ".join("".join(checker.text).split())
    for expected in (
        "contract BROKEN",
        "25.00 %",
        "stage seg",
        "after det",
        "-25.0 %",
        "jax 0.10.2",
        "train.py",
    ):
        assert expected in text
    assert "Left out as not finite: 1 of 13 logged losses, first loss at step 6." in text
    assert "det: rmse" not in text  # judged, but never logged: no empty panel
    assert checker.tags.count("svg") == 5  # precision, validation and loss of seg; loss of the network; learning rate
    assert "details" in checker.tags


def test_the_report_loads_nothing_from_outside(page):
    assert "://" not in page
    assert "url(http" not in page
    checker = parse(page)
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in checker.links)
    assert f"data:image/webp;base64,{base64.b64encode(WEBP).decode()}" in checker.links


def test_hostile_names_stay_text(tmp_path):
    picture = Picture(WEBP, (("#ff0000", HOSTILE),), HOSTILE)
    figures = FIGURES._replace(rows=[(HOSTILE, "1")])
    hostile = Looked([Shown(picture, picture, HOSTILE)], [], figures, (HOSTILE, "dog"))
    path = run_report.write(fill(tmp_path, HOSTILE, stage="_<b>"), pictures_by_task={HOSTILE: hostile})
    checker = parse(path.read_text(encoding="utf-8"))
    assert "script" not in checker.tags
    assert "b" not in checker.tags
    assert "".join(checker.text).count(HOSTILE) >= 5


def test_an_empty_work_directory_says_what_is_missing(tmp_path):
    text = run_report.write(tmp_path, pictures_by_task={}).read_text(encoding="utf-8")
    for expected in (
        "no contract yet",
        "No contract.json yet",
        "No stage has been evaluated yet",
        "Nothing was logged yet",
        "No example predictions",
        "No config.json",
    ):
        assert expected in text
    parse(text)


def test_a_run_without_a_contract_shows_every_validation_figure(tmp_path):
    (fill(tmp_path) / "contract.json").unlink()
    text = run_report.write(tmp_path, pictures_by_task={}).read_text(encoding="utf-8")
    assert "pixel accuracy" in text


def test_a_kept_contract_is_passed(tmp_path):
    tree = contract.build([], {}, {}, max_drop_percent=5.0)
    files.write_json(tmp_path / "contract.json", tree)
    assert "contract PASSED" in run_report.write(tmp_path, pictures_by_task={}).read_text(encoding="utf-8")


def test_the_same_files_give_the_same_report_and_leave_matplotlib_s_global_state_alone(written, page):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    again = run_report.write(written.parent, pictures_by_task={"seg": LOOKED})
    assert again.read_bytes() == page.encode("utf-8")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "contract.json"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        run_report.write(tmp_path, pictures_by_task={})


def test_a_missing_work_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a work directory"):
        run_report.write(tmp_path / "none", pictures_by_task={})


def heat(value, *, higher=True, is_baseline=False):
    entry = {"baseline": 0.4, "higher_is_better": higher}
    return run_report.heat_cell(value, entry, 5.0, is_baseline=is_baseline)


def test_the_matrix_is_red_exactly_where_more_was_lost_than_allowed():
    red, green = "rgba(214", "rgba(40"
    assert green in heat(0.4 * 0.95)
    assert red in heat(0.4 * 0.949)
    assert green in heat(0.5)
    assert "+25.0 %" in heat(0.5)
    assert red in heat(0.5, higher=False)
    assert "-25.0 %" in heat(0.5, higher=False)
    assert "baseline" in heat(0.4, is_baseline=True)
    assert "·" in heat(None)


def test_a_cell_whose_baseline_says_nothing_has_no_change():
    cell = run_report.heat_cell(0.5, {"baseline": None, "higher_is_better": True}, 5.0, is_baseline=False)
    assert cell == "<td>0.5</td>"


def test_stages_span_the_steps_of_their_events(tmp_path):
    events = [
        {"stage": "seg", "step": 1},
        {"stage": "seg", "step": 9},
        {"stage": "det", "step": 10},
        {"stage": "det", "step": 12},
    ]
    assert run_report.stage_spans(events) == [Span("seg", 1, 9), Span("det", 10, 12)]


@pytest.mark.parametrize("count", [1, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS])
def test_long_curves_are_averaged_without_moving_their_mean(count):
    curve = Curve("loss", list(range(count)), [2.0 * step for step in range(count)])
    short = averaged(curve)
    assert len(short.steps) == len(short.values) <= MAX_POINTS
    assert short.values == pytest.approx([2.0 * step for step in short.steps])
    if count % MAX_POINTS == 0:
        assert sum(short.values) / len(short.values) == pytest.approx(count - 1)


def test_a_panel_takes_the_colour_of_the_page_and_has_no_ids_that_repeat():
    svg = panel_svg("seg", [Curve("loss", [1], [2.0])], [Span("seg", 1, 1)], baseline=1.0, floor=0.5)
    assert svg.startswith("<svg viewBox=")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert not re.search(r'<g id="', svg)
    assert ">seg<" in svg


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e300, -1e300], [1e-320, 1.0], [1e-38, 1e38]])
def test_extreme_values_and_long_names_can_be_drawn(values):
    curves = [Curve("n" * 200, [1, 2], values), Curve("m", [1], [2.0])]
    spans = [Span("stage" * 50, 1, 2), Span("other", 2, 3)]
    assert "<svg" in panel_svg("t" * 300, curves, spans, baseline=1.0, log_scale=True)


def test_many_curves_have_their_names_below_the_panel():
    curves = [Curve(f"stream_{number}_replay/cross_entropy", [1, 2], [2.0, 1.0]) for number in range(40)]
    few, many = (panel_svg("seg", curves[:count], []) for count in (8, 40))  # a collapsed panel is a warning
    heights = [float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1]) for svg in (few, many)]
    assert heights[1] > 2 * heights[0]
    assert many.count("stream_") >= 40


def test_a_wide_range_of_losses_has_plain_labels():
    curves = [Curve("loss", [1, 2, 3], [1e-3, 1.0, 1e3])]
    assert ">1000<" in panel_svg("", curves, [], log_scale=True)
    assert "mathdefault" not in panel_svg("", curves, [], log_scale=True)


def test_config_json_may_hold_the_settings_at_its_top(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 512, "seed": 1}), encoding="utf-8")
    text = run_report.write(tmp_path, pictures_by_task={}).read_text(encoding="utf-8")
    assert "&quot;image_size&quot;: 512" in text


def test_a_task_that_has_learnt_nothing_is_shown_as_broken_with_the_reason_and_the_stream(tmp_path):
    constant = {"figure": 0.5, "standard_error": 0.05, "count": 100, "counted": "labelled image"}
    stage = {"name": "cls", "metrics": {"cls": {"top1": 0.5}}, "before": {"cls": {"top1": 0.4}}}
    tree = contract.build([stage | {"constant": {"cls": constant}}], {"cls": ("top1", True)}, {}, max_drop_percent=5.0)
    tree["tasks"]["cls"] |= {"stream": "site", "streams_not_measured": ["archive"]}
    files.write_json(tmp_path / "contract.json", tree)
    text = run_report.write(tmp_path, pictures_by_task={}).read_text(encoding="utf-8")
    assert "contract BROKEN" in text
    assert "cls: learnt nothing: 0.5 after its own stage, expected 0.625" in text
    assert "cls is measured on stream site, not on archive." in text


def test_the_report_begins_with_what_was_learnt_and_kept_in_words(tmp_path):
    stages = [
        {"name": "seg", "metrics": {"seg": {"miou": 0.4}}},
        {"name": "det", "metrics": {"seg": {"miou": 0.3}, "det": {"rmse": 2.0}}},
    ]
    budgets = {
        "params": {"value": 1200, "limit": 8000},
        "shared_percent": {"value": 90.0, "limit": None},
        "latency_ms": {"value": 12.5, "limit": 150, "image_size": 512},
        "train_seconds": {"value": 90.0, "limit": 7200},
    }
    tree = contract.build(stages, {"seg": ("miou", True), "det": ("rmse", False)}, budgets, max_drop_percent=5.0)
    tree["tasks"]["seg"] |= {"to_beat": 0.1, "learnt": True}
    assert verdict_section.sentences(tree) == [
        "seg: learnt; mIoU 0.3 (to beat: 0.1). Lost 25.0 % since stage seg (0.4).",
        "det: RMSE 2. Learnt in the last stage, so nothing could be lost since.",
        "Cost: 1,200 parameters, 90.0 % of which serve two tasks or more; 12.5 ms for an image of 512 px; "
        "1.5 minutes of training.",
    ]


def test_the_verdict_speaks_of_later_classes_after_their_task():
    stages = [
        {"name": "first", "metrics": {"det": {"map": 0.4}}},
        {"name": "more", "metrics": {"det": {"map": 0.4}}, "added": {"det/more": {"map": 0.2}}},
    ]
    tree = contract.build(
        stages, {"det": ("map", True)}, {}, max_drop_percent=5.0, added={"det": {"more": ("cup", "car")}}
    )
    assert verdict_section.sentences(tree) == [
        "det: mAP 0.4. Lost nothing since stage first (0.4).",
        "det/more: mAP 0.2. Learnt in the last stage, so nothing could be lost since.",
    ]


def test_the_report_of_a_rejected_version_begins_with_the_reason():
    tree = contract.build(
        [{"name": "seg", "metrics": {"seg": {"miou": 0.4}}}], {"seg": ("miou", True)}, {}, max_drop_percent=5.0
    )
    refused = {**tree, "refused": "not kept, as more than 5 % were lost (seg); runs/old stays as it is"}
    assert verdict_section.sentences(refused)[0].startswith("This version was not kept, as more than 5 % were lost")
    assert verdict_section.sentences(refused)[1:] == verdict_section.sentences(tree)
    assert "not kept</span>" in run_report._title("new", refused)


def test_predictions_stand_beside_labels_and_the_worst_are_folded(page):
    assert page.index("Predictions") < page.index("<h2>Contract")
    assert 'alt="predicted"' in page
    assert 'alt="labelled"' in page
    assert "<summary>seg: the worst</summary>" in page
    assert "IoU 0.50" in page


def test_a_confusion_matrix_is_in_shares_of_its_rows(page):
    row = re.search(r"<tr><th>cat</th>(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r">(\d*)</td>", row[1]) == ["75", "25"]


def test_a_drawing_shows_what_is_shared():
    budgets = {"params_by_owner": {"value": {"shared": 900, "<seg>": 100}, "limit": None}}
    stages = [{"name": "seg", "metrics": {"<seg>": {"miou": 0.4}}}]
    tree = contract.build(stages, {"<seg>": ("miou", True)}, budgets, max_drop_percent=5.0)
    page = run_report.html("run", None, [], tree, {})
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", page)
    assert texts == ["image", "shared", "900", "&lt;seg&gt;", "100"]
