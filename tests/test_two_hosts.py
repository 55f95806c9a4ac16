"""Two machines, as two network namespaces: one is lost in the middle, and the same commands go on bit for bit.

Needs Linux, root and iproute2, and is left out elsewhere.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from compiling import QUICK

from mtl_jax.workdir import checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PORT = 12355
PAGE = """
from mtl_jax import config as config_lib


def get_config():
    config = config_lib.base()
    config.name, config.image_size, config.example_images = "two_hosts", 64, 1
    config.contract.latency_image_size = 64
    config.log_every_steps, config.checkpoint_every_seconds = 1, 0.2
    config.model.backbone, config.model.width_multiplier, config.model.head_layers = "plain_cnn", 0.25, 2
    config.model.neck_channels = config.model.head_channels = 16
    config.tasks.cls = {"kind": "classification", "classes": tuple("0123456789")}
    options = {"labels": "classification", "size": 64, "length": 24}
    changes = {"batch_size": 4, "augment": {"flip_probability": 0.5, "scale_min": 0.8}}
    config.streams.single = config_lib.stream("digits", {"cls": "classification"}, options=options, **changes)
    config.stages.cls = config_lib.stage(("single",), epochs=EPOCHS, ema_decay=0.9)
    config.order = ("cls",)
    return config
"""
EPOCHS = 12.0  # of 6 steps
MIDDLE = 30  # steps


class Host(NamedTuple):
    """A network namespace with an address and a hosts file of its own."""

    name: str
    address: str


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a wire between them."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux, root and iproute2: two hosts are not tested")
    mark = f"mtl{os.getpid()}"
    pair = Host(f"{mark}a", "10.77.0.1"), Host(f"{mark}b", "10.77.0.2")
    try:
        for host in pair:
            _ip("netns", "add", host.name)
            files = Path("/etc/netns") / host.name  # `ip netns exec` shows them in /etc
            files.mkdir(parents=True)
            (files / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {os.uname().nodename}\n")
        _ip("link", "add", "eth0", "netns", pair[0].name, "type", "veth", "peer", "eth0", "netns", pair[1].name)
        for host in pair:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", "eth0", "up")
        yield pair
    finally:
        for host in pair:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / host.name, ignore_errors=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "two_hosts.py"
    path.write_text(PAGE.replace("EPOCHS", str(EPOCHS)))
    return path


class Run:
    """One training on both hosts."""

    def __init__(self, hosts: tuple[Host, Host], page: Path, workdir: Path) -> None:
        self.workdir, self.logs = workdir, [workdir.with_suffix(f".{number}.log") for number in (0, 1)]
        self.processes = [self._start(host, number, page, hosts[0].address) for number, host in enumerate(hosts)]

    def _start(self, host: Host, number: int, page: Path, coordinator: str) -> subprocess.Popen[bytes]:
        words = ["ip", "netns", "exec", host.name, sys.executable, str(ROOT / "scripts" / "train.py")]
        words += ["--config", str(page), "--workdir", str(self.workdir), f"--coordinator={coordinator}:{PORT}"]
        words += ["--num_processes=2", f"--process_id={number}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}
        with self.logs[number].open("w") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=ROOT)

    def said(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def finish(self) -> None:
        """Waits for a good end of both."""
        try:
            for process in self.processes:
                assert process.wait(timeout=400) == 0, self.said()
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def saved_step(self) -> int:
        saved = (self.workdir / "partial").glob("0-cls/*/metadata.json")
        return max((int(file.parent.name) for file in saved if file.parent.name.isdigit()), default=0)

    def lose_host_1(self) -> bool:
        """Kills host 1 once the middle is saved, and then host 0; whether the training was cut short.

        Host 0 may wait for the lost one, or end with the error that it is gone.
        """
        try:
            while self.saved_step() < MIDDLE:
                assert all(process.poll() is None for process in self.processes), self.said()
                time.sleep(0.01)
            self.processes[1].kill()
            time.sleep(0.5)
            finished = self.processes[0].poll() == 0
        finally:
            self.end()
        return not finished and not checkpoints.stages(self.workdir)


def learnt(workdir: Path) -> list[np.ndarray]:
    tree = checkpoints.load(checkpoints.stages(workdir)[-1].path, {"variables": None, "training": None})
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_lost_host_costs_nothing(hosts: tuple[Host, Host], page: Path, tmp_path: Path) -> None:
    Run(hosts, page, tmp_path / "whole").finish()
    assert Run(hosts, page, tmp_path / "cut").lose_host_1()
    resumed = Run(hosts, page, tmp_path / "cut")
    resumed.finish()
    assert "epoch 4/12" not in resumed.said()
    assert "epoch 12/12" in resumed.said()
    for actual, expected in zip(learnt(tmp_path / "cut"), learnt(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(actual, expected)
