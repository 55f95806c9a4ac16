"""The worked example of docs/grow.md: five digits, then five more, which both runs learn."""

import pytest
from test_pages import CONFIGS

import mtl_jax
from mtl_jax.cli import extend as extend_command
from mtl_jax.extend import extend
from mtl_jax.workdir import trained

# One epoch at a rate that ruins what was learnt.
RUINOUS = """
from pathlib import Path

from mtl_jax.config import load_page


def get_config():
    config = load_page(Path("CONFIGS/grow.py")).get_config("first")
    config.streams.again, config.stages.again, config.order = config.streams.first, config.stages.first, ("again",)
    config.stages.again.update({"streams": ("again",), "learning_rate": 1.0, "epochs": 1.0})
    config.streams.again.options.length = 500
    del config.streams["first"], config.stages["first"]
    return config
"""


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_example_learns_five_digits_and_then_five_more(tmp_path, capsys):
    first = mtl_jax.train(f"{CONFIGS}/grow.py", tmp_path / "digits")
    assert first["passed"]
    contract = extend(tmp_path / "digits", tmp_path / "digits-2", f"{CONFIGS}/grow.py:more")
    assert contract["passed"]
    boxes = contract["tasks"]["det"]
    assert boxes["learnt"]
    assert boxes["largest_output_change"] == 0.0
    assert boxes["drop_percent"] <= 5.0
    more = boxes["added"]["more"]
    assert more["learnt"]
    assert more["final"] > 0.5 * boxes["final"]
    before, after = (run["budgets"]["params"]["value"] for run in (first, contract))
    assert after <= 1.02 * before

    (tmp_path / "ruinous.py").write_text(RUINOUS.replace("CONFIGS", str(CONFIGS)))
    words = ["--from", str(tmp_path / "digits"), "--workdir", str(tmp_path / "refused"), "--task", "det", "--refine"]
    assert (
        extend_command.main([*words, "--config", str(tmp_path / "ruinous.py")]) == extend_command.EXIT_CONTRACT_BROKEN
    )
    assert "not kept, as more than 5 % were lost (det map_50_95 from" in capsys.readouterr().err
    assert trained.load(tmp_path / "refused").stage == "first"  # the old version
