"""Real processes ended at random moments: the same command goes on, and ends as if nothing had happened.

MTL_JAX_KILLS says how many are killed (`make torture`: 20 and more).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import QUICK

from mtl_jax.workdir import checkpoints, metrics_log

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("MTL_JAX_KILLS", "1"))
SEED = int(os.environ.get("MTL_JAX_KILL_SEED", "0"))
# Everything that a run carries from step to step and from stage to stage: an optimizer, a balancing method with a
# state, averaged weights, importance, a teacher, exemplars.
PAGE = """
from mtl_jax import config as config_lib

DIGITS = tuple("0123456789")


def get_config():
    config = config_lib.base()
    config.name, config.image_size, config.example_images = "killed", 64, 1
    config.contract.latency_image_size = 64
    config.log_every_steps, config.checkpoint_every_seconds = 1, 0.2
    config.model.backbone, config.model.width_multiplier, config.model.head_layers = "plain_cnn", 0.25, 2
    config.model.neck_channels = config.model.head_channels = 16
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    for name, task, label in (("masks", "seg", "segmentation"), ("single", "cls", "classification")):
        options = {"labels": label, "size": 64, "length": 24}
        changes = {"batch_size": 4, "augment": {"flip_probability": 0.5, "scale_min": 0.8}}
        config.streams[name] = config_lib.stream("digits", {task: label}, options=options, **changes)
    config.stages.both = config_lib.stage(
        ("masks", "single"), epochs=4.0, balance="gradvac", ema_decay=0.9, eval_every_epochs=2.0,
        keep={"replay": {"images": 3}},
    )
    config.stages.cls = config_lib.stage(
        ("single",), epochs=3.0, ema_decay=0.9,
        keep={"lwf": {"weight": 1.0}, "replay": {"batch_size": 2}, "ewc": {"strength": 1.0}},
    )
    config.order = ("both", "cls")
    return config
"""
TIMES = ("images_per_second", "step_ms", "memory_mb")  # what two runs never have in common


class Training:
    """The training script on the page above, in a process of its own."""

    def __init__(self, page: Path, workdir: Path) -> None:
        self.workdir = workdir
        self.log = workdir.with_suffix(".log")
        script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(page), "--workdir", str(workdir)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}  # one device
        with self.log.open("w") as log:
            self.process = subprocess.Popen(script, stdout=log, stderr=log, env=environment, cwd=ROOT)

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process.wait(timeout=300) == 0, self.log.read_text()

    def kill_at(self, events: int, seconds_later: float) -> bool:
        """Kills it some time after it has logged so many events; whether it was still running then."""
        while self.process.poll() is None and logged(self.workdir) <= events:
            time.sleep(0.005)
        try:
            self.process.wait(timeout=seconds_later)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return True
        self.finish()
        return False

    def terminate_in_training(self) -> float:
        """Asks it to end once it has saved something; returns the seconds until it did."""
        while not list((self.workdir / "partial").glob("0-both/*/metadata.json")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        requested = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.finish()
        return time.monotonic() - requested


def logged(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def left_by(workdir: Path) -> dict:
    """What a finished run has learnt and measured, times left out."""
    arrays = [
        checkpoints.load(stage.path, dict.fromkeys(("variables", "training", "memory")))
        for stage in checkpoints.stages(workdir)
    ]
    events = [event for event in metrics_log.read(workdir / "metrics.jsonl") if event["name"] not in TIMES]
    contract = json.loads((workdir / "contract.json").read_text())
    return {
        "arrays": arrays,
        "events": [{name: value for name, value in event.items() if name != "time"} for event in events],
        "contract": {name: contract[name] for name in ("tasks", "stages", "forgetting", "backward_transfer")},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "killed.py"
    path.write_text(PAGE)
    return path


@pytest.fixture(scope="module")
def whole(page) -> dict:
    """What a run leaves that nobody disturbs."""
    Training(page, page.parent / "whole").finish()
    return left_by(page.parent / "whole")


def assert_the_same(workdir: Path, whole: dict) -> None:
    result = left_by(workdir)
    jax.tree.map(np.testing.assert_array_equal, result["arrays"], whole["arrays"])
    assert result["events"] == whole["events"]
    assert result["contract"] == whole["contract"]
    assert not list((workdir / "partial").glob("*/*"))


def test_a_run_that_was_asked_to_end_saves_and_one_that_was_killed_at_random_goes_on(page, whole, tmp_path):
    chance, workdir = random.Random(SEED), tmp_path / "run"
    training = Training(page, workdir)
    assert training.terminate_in_training() < 10
    assert "stopped by SIGTERM" in training.log.read_text()
    killed, rounds = 0, 0
    while killed < KILLS:
        events = chance.randint(logged(workdir), logged(page.parent / "whole"))
        if Training(page, workdir).kill_at(events, chance.uniform(0.0, 0.5)):
            killed += 1
        else:  # it came to its end: compare, and begin again
            assert_the_same(workdir, whole)
            rounds += 1
            workdir = tmp_path / f"run_{rounds}"
    Training(page, workdir).finish()
    assert_the_same(workdir, whole)
