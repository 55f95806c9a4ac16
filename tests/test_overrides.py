"""Settings on a command line: every table of a page can be changed, by type, and what is unknown is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from mtl_jax import config as config_lib
from mtl_jax.config import overrides
from mtl_jax.errors import UserError

PAGE = """
from mtl_jax.config import base, stage, stream

def get_config(size="64"):
    config = base()
    config.image_size = int(size)
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", "thing")}
    config.streams.scenes = stream("digits", {"seg": "segmentation"})
    config.stages.seg = stage(("scenes",))
    config.order = ("seg",)
    return config
"""


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "page.py"
    path.write_text(PAGE)
    return path


def load(page: Path, *arguments: str) -> Any:
    _, changes, remainder = overrides.split(arguments)
    assert remainder == []
    return overrides.load(str(page), changes)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("stages.seg.epochs=3", 3.0),
        ("stages.seg.soft_sharing=inf", math.inf),
        ("seed=7", 7),
        ("smoke=True", True),
        ("smoke=false", False),
        ("smoke", True),
        ("name=5", "5"),
        ("order=seg,again", ("seg", "again")),
        ("order=seg,", ("seg",)),
        ("order=('seg',)", ("seg",)),
        ("stages.seg.freeze=", ()),
        # what the page leaves out
        ("streams.scenes.augment.flip_probability=0.5", 0.5),
        ("streams.scenes.augment.random_position=true", True),
        ("streams.scenes.options.labels=digits", "digits"),
        ("streams.scenes.labels.cls=classification", "classification"),
        ("tasks.seg.label_smoothing=0.1", 0.1),
        ("tasks.seg.strides=(8, 16)", (8, 16)),
        ("stages.seg.loss_weights.seg=2", 2.0),
        ("stages.seg.keep.lwf.weight=2", 2),
        ("stages.seg.keep.lwf.weights.seg=2", 2.0),
        ("stages.seg.keep.replay.selection=hard", "hard"),
        ("stages.seg.rates.backbone/stride_[24]=0.1", 0.1),
        ("stages.seg.freeze=backbone,neck", ("backbone", "neck")),
        ("stages.seg.balance_options.c=0.4", 0.4),
        ("contract.baseline_from.seg=runs/5", "runs/5"),
        ("model.branches.seg.neck_channels=24", 24),
    ],
)
def test_every_setting_is_read_by_its_type(page, argument, value):
    config = load(page, f"--config.{argument}")
    for name in argument.partition("=")[0].split("."):
        config = config[name]
    assert config == value
    assert type(config) is type(value)


def test_a_whole_table_may_be_given(page):
    config = load(page, "--config.streams.scenes.augment={'hue': 0.1}", "--config.streams.scenes.augment.contrast=0.2")
    assert config.streams.scenes.augment.to_dict() == {"hue": 0.1, "contrast": 0.2}
    config_lib.resolve(config)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("epochs=3", "the config has no field config.epochs; expected one of"),
        ("stages.seg.epoch=3", "the config has no field config.stages.seg.epoch; did you mean epochs?"),
        ("stages.det.epochs=3", "the config has no field config.stages.det; expected one of seg"),
        ("streams.scene.options.size=3", "no field config.streams.scene; did you mean scenes?"),
        ("stages.seg.lwf_weight=2", "no field config.stages.seg.lwf_weight; it is now keep.lwf.weight"),
        ("model.bakbone=x", "no field config.model.bakbone; did you mean backbone?"),
        ("seed=many", "--config.seed=many: expected a whole number"),
        ("seed=1.5", "--config.seed=1.5: expected a whole number"),
        ("seed", "--config.seed: expected a whole number"),
        ("smoke=maybe", "--config.smoke=maybe: expected true or false"),
        ("stages.seg.epochs=long", "expected a number, such as 10.0"),
        ("stages.seg.rates.neck=low", "expected a number"),
        ("streams.scenes.augment=high", "expected a table"),
        ("seed.x=3", "expected a table of settings as config.seed, found a value"),
    ],
)
def test_a_wrong_name_or_value_is_told_with_what_was_expected(page, argument, words):
    with pytest.raises(UserError) as raised:
        load(page, f"--config.{argument}")
    assert words in str(raised.value)


def test_the_page_and_its_settings_are_taken_out_of_a_command_line():
    inputs = ("--config", "p.py:x", "--workdir=w", "--config.seed", "3", "-config.smoke", "--noconfig.resume", "stray")
    page, changes, remainder = overrides.split(inputs)
    assert page == "p.py:x"
    assert [str(change) for change in changes] == ["--config.seed=3", "--config.smoke", "--config.resume=false"]
    assert remainder == ["--workdir=w", "stray"]


def test_a_page_takes_an_argument(page):
    assert overrides.load(f"{page}:96", ()).image_size == 96


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a page with a function get_config"),
        ("def get_config(): return 5", "expected settings from get_config, found int"),
        ("def get_config(): return 1 / 0", "cannot be read: ZeroDivisionError"),
        ("import nothing_of_the_kind", "No module named 'nothing_of_the_kind'"),
        ("def", "cannot be read"),
    ],
)
def test_a_page_that_gives_no_config_is_told(tmp_path, text, words):
    (tmp_path / "page.py").write_text(text)
    with pytest.raises(UserError, match=words):
        overrides.load(str(tmp_path / "page.py"), ())
