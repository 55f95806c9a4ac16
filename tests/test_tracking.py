"""Figures of a run in the services that people use: the same interface, offline and in a local folder."""

import contextlib
import json
from pathlib import Path

import pytest

from mtl_jax.errors import UserError
from mtl_jax.workdir import tracking
from mtl_jax.workdir.metrics_log import MetricsLog
from mtl_jax.workdir.tracking import Start

CONFIG = {"seed": 7, "model": {"neck": "fpn", "patches": {"head": 16}}, "order": ["seg", "det"]}


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, start: Start) -> None:
        self.start, self.told = start, []
        KEPT.append(self)

    def log(self, step: int, name: str, value: float) -> None:
        self.told.append((step, name, value))

    def artifact(self, path: Path) -> None:
        self.told.append(path.name)

    def flush(self) -> None:
        self.told.append("flushed")

    def close(self, *, failed: bool) -> None:
        self.told.append("failed" if failed else "finished")


KEPT: list[Kept] = []


@pytest.fixture
def kept(monkeypatch):
    KEPT.clear()
    monkeypatch.setitem(tracking.TRACKERS, "kept", Kept)
    return KEPT


def test_a_tracker_gets_name_configuration_figures_and_artifacts(tmp_path, kept):
    with MetricsLog(tmp_path, trackers=("kept",), name="mine", config=CONFIG) as log:
        log.log(3, 0.5, "seg", "train", "seg", "loss", 0.25)
        log.log(4, 0.5, "seg", "train", None, "loss", float("nan"))
        log.flush()
        log.artifact(tmp_path / "report.html")
    (single,) = kept
    assert single.start == Start(tmp_path, "mine", CONFIG, None)
    assert single.told == [(3, "train/seg/loss", 0.25), "flushed", "report.html", "finished"]


def test_a_run_that_fails_is_told_as_failed(tmp_path, kept):
    with contextlib.suppress(ZeroDivisionError), MetricsLog(tmp_path, trackers=("kept",)) as log:
        log.log(1, 0.5, "seg", "train", None, "loss", 1.0)
        raise ZeroDivisionError
    assert kept[0].told[-1] == "failed"


def test_a_resumed_run_says_from_where_it_is_logged_again(tmp_path, kept):
    with MetricsLog(tmp_path, trackers=("kept",)) as log:
        log.log(1, 0.5, "seg", "train", None, "loss", 1.0)
        log.resume_from(1)
        log.log(2, 0.5, "seg", "train", None, "loss", 1.0)
    assert [entry.start.purge_step for entry in kept] == [None, 2]


@pytest.mark.parametrize(
    ("text", "names"), [("none", ()), ("tensorboard", ("tensorboard",)), (" tensorboard,tensorboard", ("tensorboard",))]
)
def test_trackers_are_named_with_commas(text, names):
    assert tracking.parse(text) == names


@pytest.mark.parametrize("text", ["", "neptune", "none,tensorboard"])
def test_what_is_no_tracker_is_refused(text):
    with pytest.raises(UserError, match="expected none or some of tensorboard, wandb, mlflow"):
        tracking.parse(text)


def test_a_service_that_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    def refuses(start):
        raise RuntimeError("no such\nserver")

    monkeypatch.setitem(tracking.TRACKERS, "kept", refuses)
    with pytest.raises(UserError, match="--track kept cannot start: no such server; correct its settings"):
        tracking.open_trackers(("kept",), Start(tmp_path, "mine", {}))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_whose_package_is_missing_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'mtl_jax\[track\]'"):
        tracking.parse(name)


def test_settings_have_dotted_names():
    assert dict(tracking.flat(CONFIG)) == {
        "seed": 7,
        "model.neck": "fpn",
        "model.patches.head": 16,
        "order": ["seg", "det"],
    }


def logged(workdir: Path, name: str, steps: range) -> None:
    workdir.mkdir(exist_ok=True)
    (workdir / "report.html").write_text("a report")
    with MetricsLog(workdir, trackers=(name,), name="mine", config=CONFIG) as log:
        for step in steps:
            log.log(step, 0.5, "seg", "val", "seg", "miou", step / 4)
        log.artifact(workdir / "report.html")


@pytest.mark.filterwarnings("default")  # those of the services' own packages
def test_mlflow_keeps_a_run_in_a_local_folder_and_goes_on_with_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra `track` is not installed: MLflow is not tested")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "kept").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    for steps in (range(2), range(2, 3)):
        logged(tmp_path / "run", "mlflow", steps)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.patches.head"] == "16"
    history = client.get_metric_history(run.info.run_id, "val/seg/miou")
    assert [(entry.step, entry.value) for entry in history] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["report.html"]


@pytest.mark.filterwarnings("default")
def test_wandb_keeps_a_run_offline_and_goes_on_with_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `track` is not installed: Weights & Biases is not tested")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (range(2), range(2, 3)):
        logged(tmp_path / "run", "wandb", steps)
    identity = json.loads((tmp_path / "run" / tracking.IDENTITIES).read_text())["wandb"]
    files = sorted((tmp_path / "run" / "wandb").rglob(f"run-{identity}.wandb"))
    assert len(files) == 2  # one for each start, of the same run
    assert b"miou" in files[0].read_bytes()
