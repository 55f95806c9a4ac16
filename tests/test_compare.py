"""The command that compares: which runs it starts, which it does not start again, and its exit status."""

import json
import sys
from pathlib import Path

import pytest

from mtl_jax.cli import compare as command
from mtl_jax.report import comparison_page
from mtl_jax.workdir import run_record

ROOT = Path(__file__).parent.parent
STUB = """
import json, os, pathlib, sys
from mtl_jax import config as config_lib
from mtl_jax.config import overrides
page, changes, rest = overrides.split(sys.argv[1:])
if "broken" in page:
    sys.exit("error: no such data")
config = overrides.load(page, changes)
config_lib.resolve(config)
workdir = pathlib.Path(rest[0].removeprefix("--workdir="))
workdir.mkdir(parents=True, exist_ok=True)
record = {"config": config.to_dict(), "code": os.environ["CODE_OF_THE_STUB"]}
(workdir / "config.json").write_text(json.dumps(record))
count = workdir / "starts"
count.write_text(count.read_text() + "x" if count.is_file() else "x")
entry = {"metric": "top1", "higher_is_better": True, "final": 0.5, "drop_percent": 0.0}
stages = [{"name": "cls", "metrics": {"cls": {"top1": 0.5}}}]
tree = {"passed": True, "max_drop_percent": 5.0, "tasks": {"cls": entry}, "budgets": {}, "stages": stages}
(workdir / "contract.json").write_text(json.dumps(tree))
"""
PAGE = """
from mtl_jax.config import base, stage, stream

VARIANTS = {variants}

def get_config(variant=""):
    config = base()
    config.name = "page" + variant
    config.tasks.cls = {{"kind": "classification", "classes": ("a", "b")}}
    config.streams.single = stream("image_folder", {{"cls": "classification"}}, options={{"folder": "pets"}})
    config.stages.cls = stage(("single",), learning_rate={rate})
    config.order = ("cls",)
    return config
"""


@pytest.fixture
def compare(tmp_path, monkeypatch):
    stub = tmp_path / "train.py"
    stub.write_text(STUB)
    monkeypatch.setattr(command, "TRAIN", (sys.executable, str(stub)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODE_OF_THE_STUB", run_record.code_digest())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MTL_JAX_DATA", raising=False)
    for name, variants in (("page", ()), ("broken", ()), ("many", ("none", "ewc+lwf"))):
        Path(f"{name}.py").write_text(PAGE.format(variants=variants, rate=0.001))
    return command


@pytest.fixture
def undrawn(monkeypatch):
    """Spares drawing figures after every run, a fifth of a second each."""
    for name in ("spread_svg", "scatter_svg", "scatters_svg", "draw_heatmaps"):
        monkeypatch.setattr(comparison_page, name, lambda *arguments, **settings: "<svg></svg>")


@pytest.mark.usefixtures("undrawn")
def test_every_variant_is_trained_with_every_seed_and_compared(compare):
    assert compare.main(["many.py", "slow=page.py --config.cache_gb=1", "--out", "out", "--seeds", "0,1"]) == 0
    runs = sorted(str(path.parent) for path in Path("out").rglob("contract.json"))
    assert runs == [f"out/{name}/seed_{seed}" for name in ("ewc+lwf", "none", "slow") for seed in (0, 1)]
    assert Path("out/comparison.csv").read_text().count("\n") == 7
    assert "slow" in Path("out/comparison.html").read_text()
    arguments = json.loads(Path("out/slow/seed_1.json").read_text())["arguments"]
    assert arguments == ["--config=page.py", "--config.cache_gb=1", "--config.seed=1"]


def test_a_setting_may_name_the_run_s_seed(compare):
    compare.main(
        ["a=page.py --config.name=own_{seed}", "--out", "out", "--seeds", "4", "--", "--config.pretrained=all_{seed}"]
    )
    arguments = json.loads(Path("out/a/seed_4.json").read_text())["arguments"]
    assert arguments == ["--config=page.py", "--config.name=own_4", "--config.pretrained=all_4", "--config.seed=4"]
    assert "<svg" in Path("out/comparison.html").read_text()
    assert all("<svg" in Path("out", name).read_text() for name in ("heatmaps.svg", "tradeoffs.svg"))


@pytest.mark.usefixtures("undrawn")
def test_what_is_finished_is_started_again_only_where_settings_or_data_changed(compare, capsys):
    def starts(*flags, folder="seed_0"):
        assert compare.main(["a=page.py", "--out", "out", "--", *flags]) == 0
        return len(Path(f"out/a/{folder}/starts").read_text())

    assert [starts(), starts(), starts("--config.cache_gb=1")] == [1, 1, 1]
    Path("page.py").write_text(PAGE.format(variants=(), rate=0.02))
    assert starts() == 1
    assert "learning_rate was 0.001, is 0.02); the old run is kept in out/a/seed_0.old-1" in capsys.readouterr().out
    assert json.loads(Path("out/a/seed_0/config.json").read_text())["config"]["stages"]["cls"]["learning_rate"] == 0.02
    assert starts("--config.stages.cls.weight_decay=0.1") == 1
    assert Path("out/a/seed_0.old-2/contract.json").is_file()
    folder = Path("data/pets/train/cat")
    folder.mkdir(parents=True)
    (folder / "1.png").write_text("an image")
    assert starts("--config.stages.cls.weight_decay=0.1") == 1
    assert "files of its datasets have changed" in capsys.readouterr().out
    assert starts("--config.stages.cls.weight_decay=0.1", "--config.contract.max_drop_percent=3.0") == 2  # judged again


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_other_code_is_told(compare, capsys, monkeypatch):
    monkeypatch.setenv("CODE_OF_THE_STUB", "old")
    for _ in range(2):
        compare.main(["a=page.py", "--out", "out"])
    assert "was trained with other code of the package; remove out/a/seed_0" in capsys.readouterr().out


def test_a_wrong_setting_of_the_last_variant_is_told_before_the_first_is_trained(compare, capsys):
    assert compare.main(["page.py", "b=page.py --config.sed=1", "--out", "out"]) == 2
    assert "did you mean seed?" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_failed_run_is_told_and_the_others_go_on(compare, capsys):
    assert compare.main(["broken.py", "page.py", "--out", "out"]) == 1
    assert "failed: error: no such data (exit status 1" in capsys.readouterr().out
    assert "page" in Path("out/comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.py"], "found no Python file gone.py"),
        (["page.py", "page.py"], "expected variants of different names, found page twice"),
        (["page.py", "--seeds", "one"], "invalid literal"),
        (["page.py", "--seeds", "1,1"], "expected different whole numbers from 0"),
        (["page.py", "--seeds=-1"], "expected different whole numbers from 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(compare, capsys, arguments, words):
    assert compare.main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
