"""`mtl-jax train` and `inspect` on labels without a page: which runs they start, and what they leave."""

import re

import pytest
from label_files import class_folders, coco

from mtl_jax.cli import inspect, own_run
from mtl_jax.cli import train as command
from mtl_jax.own_data import page as page_lib
from mtl_jax.own_data.machine import Machine

LAPTOP = Machine("cpu", 2, False, image_seconds=0.07, start_seconds=25.0, stage_seconds=40.0)


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """A file of boxes and a folder of classes."""
    monkeypatch.setattr(own_run.machine_lib, "measure", lambda: LAPTOP)
    coco(tmp_path / "a set")
    class_folders(tmp_path / "kinds")
    return [f"boxes={tmp_path / 'a set'}", f"classes.kind={tmp_path / 'kinds'}"]


@pytest.fixture
def started(monkeypatch):
    """The configurations and work directories that would be trained."""
    runs = []

    def train(config, workdir, options, *, command):
        assert command.startswith("mtl-jax train boxes=")
        runs.append((config, workdir))
        return 0

    monkeypatch.setattr(command, "train", train)
    return runs


def test_labels_are_trained_by_the_page_that_is_written(labels, started, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ["--workdir", str(workdir), "--smoke", "--pretrained=", "--config.seed=5"]
    assert command.main([*labels, *flags]) == 0
    ((config, location),) = started
    assert location == workdir
    assert (config.order, config.smoke, config.seed) == (("boxes", "kind"), True, 5)
    printed = capsys.readouterr().out
    assert "starts from random weights; --pretrained mobilenet_v3_small downloads" in printed
    assert f"page: {workdir}/page.py" in printed
    assert "min on 2 CPU cores" in printed


@pytest.mark.parametrize(
    ("flags", "orders"),
    [
        (("--together",), [("together",)]),
        (("--alone",), [("boxes",), ("kind",), ("boxes", "kind")]),
        (("--alone", "--together"), [("boxes",), ("kind",), ("together",)]),
    ],
)
def test_tasks_are_trained_together_or_first_alone(labels, started, tmp_path, flags, orders):
    assert command.main([*labels, "--workdir", str(tmp_path / "run"), "--pretrained=", *flags]) == 0
    assert [config.order for config, _ in started] == orders
    config, location = started[-1]
    assert location == tmp_path / "run"
    expected = {name: str(tmp_path / "run" / f"alone_{name}") for name in ("boxes", "kind")}
    assert config.contract.baseline_from.to_dict() == (expected if "--alone" in flags else dict.fromkeys(expected, ""))
    assert [str(location) for _, location in started[:-1]] == (list(expected.values()) if "--alone" in flags else [])


def test_a_run_that_was_started_goes_on_with_its_page(labels, started, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ["--workdir", str(workdir), "--pretrained="]
    command.main([*labels, *flags])
    (workdir / "config.json").write_text("{}")
    page = workdir / page_lib.FILE
    page.write_text(page.read_text() + "# edited\n")
    assert command.main([*labels, *flags]) == 0
    assert page.read_text().endswith("# edited\n")
    assert f"continues with {page}" in capsys.readouterr().out
    assert len(started) == 2
    assert command.main([labels[0], *flags]) == 2
    assert "holds a run of another command" in capsys.readouterr().err


def test_features_are_found_beside_the_data(labels, started, tmp_path, monkeypatch):
    (tmp_path / "data" / "weights").mkdir(parents=True)
    features = tmp_path / "data" / "weights" / "mobilenet_v3_small_features.npz"
    features.write_bytes(b"")
    monkeypatch.setenv("MTL_JAX_DATA", str(tmp_path / "data"))
    command.main([*labels, "--workdir", str(tmp_path / "run")])
    assert started[0][0].pretrained == str(features)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--minutes=0",), "--minutes: expected more than 0"),
        (("--val_share=1.5",), "expected a share between 0 and 1"),
        (("--annotated_on=exif",), "expected annotated_on among auto, upright, stored, found 'exif'"),
        (("--num_processes=2",), "expected --config to train in several processes"),
        (("--config=page.py",), "with --config"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(labels, started, tmp_path, capsys, flags, words):
    (tmp_path / "kinds" / "val").rename(tmp_path / "kinds" / "train" / "val")  # without splits of its own
    assert command.main([labels[1], "--workdir", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert started == []


def test_inspect_prints_the_table_and_writes_one_page(labels, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "sheet.html"
    assert inspect.main([*labels, "--out", str(out), "--images", "2"]) == 0
    printed = capsys.readouterr().out
    assert "boxes (coco)" in printed
    assert "suspicious: boxes: fewer than 5 training images show" in printed
    html = out.read_text()
    assert html.count("data:image/jpeg") <= 4
    assert "What seems wrong" in html
    classes = {name for names in re.findall(r'class="([^"]+)"', html) for name in names.split()}
    assert {name for name in classes if f".{name}" not in html} == set()  # each has a rule, so pictures stand in a grid
    assert "single" in classes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--images", "0"), "--images: expected 1 to"),
        (("--out", "nowhere/sheet.html"), "nowhere/sheet.html cannot be written"),
    ],
)
def test_inspect_refuses_in_one_line(labels, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    assert inspect.main([*labels, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
