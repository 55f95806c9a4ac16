"""The program as a user meets it: help, mistakes in one line with status 2, completion, and a smoke run."""

import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from mtl_jax import cli
from mtl_jax.cli import completion, flags
from mtl_jax.errors import UserError
from mtl_jax.runtime import compilation

ROOT = Path(__file__).parent.parent


class Done(NamedTuple):
    """What a command printed and returned."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Done]:
    """Runs a command in this process, as the program would in one of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(compilation, "enable_cache", lambda: None)

    def run(main: Callable[[Sequence[str]], int], *arguments: str) -> Done:
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code
        return Done(status, *capsys.readouterr())

    return run


def test_help_names_the_flags(run):
    process = run(cli.module("train").main, "--help")
    assert process.returncode == 0
    assert "--config" in process.stdout
    assert "--enforce_contract" in process.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--config is missing"),
        (("--config", "configs/nowhere.py"), "configs/nowhere.py"),
        (("--config", "configs/seq.py:tiny"), "error: configs/seq.py:tiny: expected one of shared, branched, plain"),
        (("--config", "tests/support/tiny.py"), "expected a page with a function get_config"),
        (("--config", "configs/quickstart.py", "--config.epochs=3"), "the config has no field"),
        (("--config", "configs/quickstart.py", "--config.seed=many"), "many"),
        (("--config", "configs/quickstart.py", "--flag_of_nothing"), "flag_of_nothing"),
        (("--config", "configs/quickstart.py", "stray"), "unexpected argument stray"),
        (("photos/masks",), "expected a kind of label and where it is"),
        (("mask=photos",), "expected a kind of label, found 'mask'; did you mean masks?"),
        (("boxes=a", "boxes=b"), "expected each name once, found boxes twice; tell them apart by names: boxes.one="),
        (("masks=nowhere",), "nowhere"),
        (
            ("--config", "configs/quickstart.py", "--config.order=seg,dte"),
            "config.order: expected names of config.stages (cls, det, seg), found dte; did you mean det?",
        ),
        (("--config", "configs/quickstart.py", "--config.model.neck=three"), "neck"),
        (("--config", "configs/seq.py", "--config.data_root=/nowhere"), "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(run, flags, words, tmp_path):
    told_in_one_line(run(cli.module("train").main, *flags, "--workdir", str(tmp_path / "run")), words, tmp_path)


def test_a_process_of_its_own_ends_with_the_line_and_status_of_a_mistake_whose_name_is_no_text(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", "configs/single.py"]
    flags = [os.fsencode(f"--config.data_root={tmp_path}/") + b"caf\xe9", "--workdir", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    process = subprocess.run([*command, *flags], capture_output=True, cwd=ROOT, env=env, check=False)
    told_in_one_line(Done(process.returncode, "", process.stderr.decode()), r"caf\udce9", tmp_path)


def told_in_one_line(done, words, tmp_path) -> None:
    assert done.returncode == 2
    # A machine without a C++ compiler is told so, once, before.
    lines = [line for line in done.stderr.splitlines() if "No compiled CPU kernels" not in line]
    assert words in done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


SMALL_PAGE = """
from mtl_jax.config import base, stage, stream

def get_config():
    config = base()
    config.image_size, config.held_out_percent = 64, 10.0
    config.model.update({"backbone": "plain_cnn", "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8})
    classes = tuple("0123456789")
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *classes)}
    config.tasks.cls = {"kind": "classification", "classes": classes}
    for task, label in (("seg", "segmentation"), ("cls", "classification")):
        options = {"labels": label, "size": 64, "length": 40}
        config.streams[task] = stream("digits", {task: label}, options=options, batch_size=4)
        config.stages[task] = stage((task,))
    config.order = ("seg", "cls")
    return config
"""


def test_a_smoke_run_of_one_stage_writes_every_file_and_a_broken_contract_can_be_enforced(run, tmp_path):
    workdir, page = tmp_path / "run", tmp_path / "page.py"
    page.write_text(SMALL_PAGE)
    flags = ("--config", str(page), "--config.smoke=True", "--config.order=seg,")
    small = ("--config.contract.latency_image_size=96", "--config.contract.max_latency_ms=0.0")
    process = run(cli.module("train").main, *flags, *small, "--enforce_contract", "--workdir", str(workdir))
    assert process.returncode == 3, process.stderr
    assert "contract BROKEN" in process.stdout
    assert json.loads((workdir / "contract.json").read_text())["budgets"]["latency_ms"]["passed"] is False
    for name in ("config.json", "metrics.jsonl", "report.html", "checkpoints/0-seg", "tensorboard"):
        assert (workdir / name).exists()
    selected = json.loads((workdir / "contract.json").read_text())["calibration"]["seg"]
    assert selected["temperature"] > 0
    assert selected["calibration_error"] >= 0
    saved = json.loads((workdir / "checkpoints" / "0-seg" / "metadata.json").read_text())["calibration"]
    assert saved["seg"]["temperature"] == selected["temperature"]


def test_a_mistake_with_a_name_that_is_no_text_is_printed_by_every_command(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stderr", printed)

    @flags.reported
    def refuses(arguments):
        raise UserError(f"{arguments[0]} is not there")

    assert refuses(["caf\udce9"]) == 2
    assert printed.buffer.getvalue() == b"error: caf\\udce9 is not there\n"
    for name in cli.COMMANDS:
        assert "flags.reported" in inspect.getsource(cli.module(name)), name


def mtl_jax(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mtl_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **settings)


def test_the_program_is_installed_by_its_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"mtl-jax": "mtl_jax.cli:program"}
    assert callable(cli.program)


def test_help_names_every_command_and_flag(run):
    printed = run(cli.main, "--help").stdout
    assert all(f"  {name}" in printed and subject in printed for name, subject in cli.COMMANDS.items())
    for name in cli.COMMANDS:
        assert cli.module(name).parser().format_help().startswith(f"usage: mtl-jax {name}")


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_help_waits_for_nothing_heavy(arguments):
    code = (
        "import contextlib, sys; from mtl_jax import cli\n"
        f"with contextlib.suppress(SystemExit): cli.main({list(arguments)})\n"
        "print(*{'jax', 'numpy', 'flax', 'absl', 'ml_collections', 'rich'} & set(sys.modules), 'end')"
    )
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert process.stdout.splitlines()[-1] == "end"
    assert time.monotonic() - started < 2  # 0.07 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tarin",), "mtl-jax has no command tarin; did you mean train?"),
        (("--vers",), "mtl-jax has no flag --vers"),
        (("eval",), "the following arguments are required: --weights"),
        (("eval", "--weights", "nowhere"), "neither a work directory"),
        (("compare", "page.py"), "--out"),
        (("benchmark", "speed"), "invalid choice: 'speed'"),
        (("prepare", "--sets", "cifar"), "found 'cifar'"),
        (("completion", "fish"), "invalid choice: 'fish'"),
        (("inspect", "boxes=nowhere"), "nowhere: expected a folder or file of labels, found none"),
        (("convert", "nowhere", "out", "--to", "coco"), "nowhere: expected a folder or file of labels, found none"),
    ],
)
def test_a_mistake_in_any_command_is_one_line_and_status_two(run, arguments, words):
    process = run(cli.main, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert words in process.stderr


def test_the_version_is_printed():
    from mtl_jax import __version__

    assert mtl_jax("--version").stdout == f"mtl-jax {__version__}\n"


@pytest.mark.parametrize(
    ("written", "loaded"),
    [
        ((), False),
        (("--quick",), True),
        (("--quick=true",), True),
        (("--quick=False",), False),
        (("--noquick",), False),
        (("--quick", "--noquick"), False),
    ],
)
def test_a_switch_is_written_in_several_ways_and_takes_no_word_after_it(written, loaded):
    parser = flags.Parser("test", None)
    flags.add_switch(parser, "quick", "hurries")
    parser.add_argument("places", nargs="*")
    options = parser.parse_args([*written, "masks=photos"])
    assert (options.quick, options.places) == (loaded, ["masks=photos"])


def completed(*words: str) -> set[str]:
    program = f'{completion.bash()}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mtl_jax; echo "${{COMPREPLY[@]}}"'
    process = subprocess.run(["bash", "-c", program, "bash", *words], capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_bash_completes_commands_flags_and_choices():
    assert completed("mtl-jax", "") == set(cli.COMMANDS)
    assert completed("mtl-jax", "ev") == {"eval"}
    assert completed("mtl-jax", "train", "--wo") == {"--workdir"}
    assert completed("mtl-jax", "benchmark", "--dtype", "b") == {"bfloat16"}
    assert completed("mtl-jax", "completion", "z") == {"zsh"}


def test_zsh_takes_the_completion_function(tmp_path):
    (tmp_path / "completion").write_text(completion.zsh())
    assert "'--workdir=[where the run leaves its files" in completion.zsh()
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed: its completion function is not read by it")
    subprocess.run(["zsh", "-n", tmp_path / "completion"], check=True)
