"""The worked example of docs/grow.md: five digits, then five more, which both runs learn."""

import pytest
from test_pages import CONFIGS

import mtl_jax
from mtl_jax.extend import extend


@pytest.mark.slow
def test_the_example_learns_five_digits_and_then_five_more(tmp_path):
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
