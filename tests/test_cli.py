"""The training script as a user meets it: help, mistakes in one line with status 2, and a smoke run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def train(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_names_the_flags():
    done = train("--help")
    assert done.returncode == 0
    assert "--config" in done.stdout
    assert "--enforce_contract" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--config is missing"),
        (("--config", "configs/nowhere.py"), "configs/nowhere.py"),
        (("--config", "configs/seq.py:tiny"), "error: configs/seq.py:tiny: expected one of shared, branched, plain"),
        (("--config", "tests/tiny.py"), "has no function get_config"),
        (("--config", "configs/quickstart.py", "--config.epochs=3"), "the config has no field"),
        (("--config", "configs/quickstart.py", "--config.seed=many"), "many"),
        (("--config", "configs/quickstart.py", "--flag_of_nothing"), "flag_of_nothing"),
        (("--config", "configs/quickstart.py", "stray"), "unexpected argument stray"),
        (("--config", "configs/quickstart.py", "--config.order=seg,dte"), "config.order names dte"),
        (("--config", "configs/quickstart.py", "--config.model.neck=three"), "neck"),
        (("--config", "configs/seq.py", "--config.data_root=/nowhere"), "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(flags, words, tmp_path):
    done = train(*flags, "--workdir", str(tmp_path / "run"))
    assert done.returncode == 2
    # A machine without a C++ compiler is told so, once, before.
    lines = [line for line in done.stderr.splitlines() if "No compiled CPU kernels" not in line]
    assert words in done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_smoke_run_of_one_stage_writes_every_file_and_a_broken_contract_can_be_enforced(tmp_path):
    workdir = tmp_path / "run"
    flags = ("--config", "configs/quickstart.py", "--config.smoke=True", "--config.order=seg,")
    small = ("--config.contract.latency_image_size=96", "--config.contract.max_latency_ms=0.0")
    done = train(*flags, *small, "--enforce_contract", "--workdir", str(workdir))
    assert done.returncode == 3, done.stderr
    assert "contract BROKEN" in done.stdout
    assert json.loads((workdir / "contract.json").read_text())["budgets"]["latency_ms"]["passed"] is False
    for name in ("config.json", "metrics.jsonl", "report.html", "checkpoints/0-seg", "tensorboard"):
        assert (workdir / name).exists()


def test_every_command_prints_names_that_are_no_text():
    commands = [*(ROOT / "scripts").glob("*.py"), ROOT / "eval.py", ROOT / "mtl_jax" / "predict.py"]
    assert [path.name for path in commands if "    print_any_name()\n" not in path.read_text()] == []


def test_a_data_folder_whose_name_is_no_text_is_told_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", "configs/seq.py"]
    flags = [os.fsencode(f"--config.data_root={tmp_path}/") + b"caf\xe9", "--workdir", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, *flags], capture_output=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 2
    assert b"caf\\udce9" in done.stderr
    assert b"Traceback" not in done.stderr
