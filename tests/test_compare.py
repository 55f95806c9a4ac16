"""The command that compares: which runs it starts, which it does not start again, and its exit status."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUB = """
import json, pathlib, sys
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
if "broken" in options["config"]:
    sys.exit("error: no such data")
workdir = pathlib.Path(options["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
count = workdir / "starts"
count.write_text(count.read_text() + "x" if count.is_file() else "x")
entry = {"metric": "top1", "higher_is_better": True, "final": 0.5, "drop_percent": 0.0}
stages = [{"name": "cls", "metrics": {"cls": {"top1": 0.5}}}]
tree = {"passed": True, "max_drop_percent": 5.0, "tasks": {"cls": entry}, "budgets": {}, "stages": stages}
(workdir / "contract.json").write_text(json.dumps(tree))
"""


@pytest.fixture
def compare(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("compare", ROOT / "scripts" / "compare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stub = tmp_path / "train.py"
    stub.write_text(STUB)
    monkeypatch.setattr(script, "TRAIN", stub)
    monkeypatch.chdir(tmp_path)
    Path("page.py").write_text("")
    Path("broken.py").write_text("")
    Path("many.py").write_text('VARIANTS = ("none", "ewc+lwf")\n')
    return script


def test_every_variant_is_trained_with_every_seed_and_compared(compare):
    assert compare.main(["many.py", "slow=page.py --config.x=2", "--out", "out", "--seeds", "0,1"]) == 0
    runs = sorted(str(path.parent) for path in Path("out").rglob("contract.json"))
    assert runs == [f"out/{name}/seed_{seed}" for name in ("ewc+lwf", "none", "slow") for seed in (0, 1)]
    assert Path("out/comparison.csv").read_text().count("\n") == 7
    assert "slow" in Path("out/comparison.html").read_text()
    arguments = json.loads(Path("out/slow/seed_1.json").read_text())
    assert arguments == ["--config=page.py", "--config.x=2", "--config.seed=1"]


def test_a_setting_may_name_the_run_s_seed(compare):
    compare.main(["a=page.py --config.x=own_{seed}", "--out", "out", "--seeds", "4", "--", "--config.y=all_{seed}"])
    arguments = json.loads(Path("out/a/seed_4.json").read_text())
    assert arguments == ["--config=page.py", "--config.x=own_4", "--config.y=all_4", "--config.seed=4"]


def test_what_is_finished_is_not_started_again_unless_its_settings_changed(compare):
    def starts():
        return len(Path("out/a/seed_0/starts").read_text())

    for _ in range(2):
        compare.main(["a=page.py", "--out", "out"])
    assert starts() == 1
    compare.main(["a=page.py", "--out", "out", "--", "--config.x=3"])
    assert starts() == 2


def test_a_failed_run_is_told_and_the_others_go_on(compare, capsys):
    assert compare.main(["broken.py", "page.py", "--out", "out"]) == 1
    assert "failed: error: no such data (exit status 1" in capsys.readouterr().out
    assert "page" in Path("out/comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.py"], "found no Python file gone.py"),
        (["page.py", "page.py"], "several variants are called page"),
        (["page.py", "--seeds", "one"], "invalid literal"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(compare, capsys, arguments, words):
    assert compare.main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
