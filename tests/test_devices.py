"""Training over devices and processes gives what one device gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import QUICK

from mtl_jax.errors import UserError
from mtl_jax.runtime import devices
from mtl_jax.workdir import checkpoints

REPOSITORY = Path(__file__).parents[1]
SETTINGS = (
    "--config=configs/quickstart.py",
    "--config.smoke=True",
    "--config.order=seg,cls",
    "--config.model.width_multiplier=0.5",
    "--config.example_images=1",
    # Adam's first steps are as large for a gradient of 1e-9 as for one of 1: rounding would show at full size.
    "--config.stages.seg.optimizer=sgd",
    "--config.stages.cls.optimizer=sgd",
)


def start(workdir: Path, *flags: str, device_count: int = 1) -> subprocess.Popen:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={device_count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "scripts/train.py", f"--workdir={workdir}", *SETTINGS, *flags],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> list[str]:
    try:
        spoken = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()  # SIGTERM would be taken for a pre-emption and ignored
    for process, (_, errors) in zip(processes, spoken, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output for output, _ in spoken]


def parameters(workdir: Path) -> list[np.ndarray]:
    last = checkpoints.stages(workdir)[-1]
    assert last.name == "cls"
    tree = checkpoints.load(last.path, {"variables": None})["variables"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir / "run"))
    return parameters(workdir / "run")


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_write_once(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    output = finish(*(start(tmp_path / "run", *common, f"--process_id={number}") for number in (0, 1)))
    assert_same(parameters(tmp_path / "run"), alone)
    assert ["contract PASSED" in entry or "contract BROKEN" in entry for entry in output] == [True, False]
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(event["step"], event["split"], event["task"], event["name"]) for event in events]
    assert len(logged) == len(set(logged))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_four_devices_train_what_one_trains(alone, tmp_path):
    finish(start(tmp_path / "run", device_count=4))
    assert_same(parameters(tmp_path / "run"), alone)


def test_a_batch_that_divides_is_split_and_another_is_whole_everywhere():
    batch = {"even": np.zeros((4, 2)), "odd": np.zeros((3, 2))}
    placed = devices.place(batch, {"even": 4, "odd": 3})
    assert [len(shard.data) for shard in placed["even"].addressable_shards] == [2, 2]
    assert [len(shard.data) for shard in placed["odd"].addressable_shards] == [3, 3]


def test_joining_with_half_of_the_flags_is_a_readable_error():
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id together"):
        devices.join("localhost:1", process_count=2)


def test_copies_outlive_what_a_step_gives_away_and_so_do_their_originals():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    everywhere = devices.everywhere()
    source = {"numpy": np.arange(4.0, dtype=np.float32), "key": jax.random.key(3)}
    source |= {"one": jax.device_put(np.ones(4, np.float32), place), "all": jax.device_put(np.ones(4), everywhere)}
    copies = devices.copy_everywhere(source)
    assert {leaf.sharding for leaf in jax.tree.leaves(copies)} == {everywhere}
    del copies["key"]  # keys do not add
    copies = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(copies)
    np.testing.assert_array_equal(copies["numpy"], [1, 2, 3, 4])
    np.testing.assert_array_equal(source["numpy"], [0, 1, 2, 3])
    for name in ("one", "all"):
        np.testing.assert_array_equal(source[name], np.ones(4))
        np.testing.assert_array_equal(copies[name], np.full(4, 2.0))
    assert jax.random.key_data(source["key"]).shape
