"""A config is checked before anything is trained, and its mistakes are told by name."""

import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mtl_jax import config as config_lib
from mtl_jax.errors import UserError

PAGES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def load(page: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(page.stem, page)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_valid_and_opens_with_its_command(page: Path):
    config = load(page)
    config_lib.validate(config)
    assert f"python scripts/train.py --config configs/{page.name}" in page.read_text()
    assert config.name == page.stem


@pytest.fixture
def config() -> ConfigDict:
    config = config_lib.base()
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", "thing")}
    config.streams.scenes = config_lib.stream("digits", {"seg": "segmentation"})
    config.stages.seg = config_lib.stage(("scenes",))
    config.order = ("seg",)
    return config


def test_a_config_whose_parts_name_each_other_is_valid(config):
    config_lib.validate(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("order", (), "order is empty"),
        ("order", ("seg", "det"), "names det; config.stages has seg"),
        ("stages.seg.streams", ("voc",), "names voc; config.streams has scenes"),
        ("stages.seg.epochs", 0.0, "epochs is 0.0; expected more than 0"),
        ("stages.seg.learning_rate", -1.0, "learning_rate is -1.0; expected at least 0"),
        ("stages.seg.ema_decay", 1.0, "ema_decay is 1.0"),
        ("stages.seg.epochs", float("inf"), "epochs is inf; expected more than 0 and at most 1e"),
        ("stages.seg.eval_every_epochs", float("nan"), "eval_every_epochs is nan; expected at least 0"),
        ("cache_gb", float("nan"), "config.cache_gb is nan; expected at least 0"),
        ("log_every_steps", 0, "config.log_every_steps is 0; expected at least 1"),
        ("model.head_layers", 10**9, "config.model.head_layers is 1000000000; expected at least 1 and at most 100"),
        ("image_size", -5, "config.image_size is -5; expected at least 1"),
        ("seed", -1, "config.seed is -1; expected at least 0"),
        ("contract.max_drop_percent", float("nan"), "config.contract.max_drop_percent is nan; expected at least 0"),
        (
            "stages.seg.ewc_importance",
            "guess",
            "ewc_importance is 'guess'; expected one of empirical, sampled, exact, mas, si",
        ),
        ("stages.seg.train_batch_norm", "never", "train_batch_norm is 'never'; expected one of everywhere"),
        ("streams.scenes.batch_size", 0, "batch_size is 0; expected at least 1"),
        ("streams.scenes.labels", ConfigDict({"mask": "segmentation"}), "names mask; config.tasks has seg"),
    ],
)
def test_a_mistake_is_told_by_field_and_value(config, field, value, words):
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
        if isinstance(value, ConfigDict):
            config.streams.scenes.labels = value
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        config_lib.validate(config)


def test_names_given_as_one_string_are_split(config):
    config.stages.again = config_lib.stage(("scenes",))
    config.order = ("seg, again",)
    config_lib.resolve(config)
    assert config.order == ("seg", "again")


def test_what_may_be_without_limit_may_be_infinite(config):
    config.stages.seg.sampling_temperature = config.contract.max_latency_ms = float("inf")
    config_lib.validate(config)


def test_names_that_are_numbers_are_told_as_unknown(config):
    config.order = (1,)
    with pytest.raises(UserError, match=r"config\.order names 1"):
        config_lib.resolve(config)


def test_an_unknown_setting_of_a_stage_or_stream_is_refused():
    with pytest.raises(UserError, match="has no setting epoch; it has"):
        config_lib.stage(("scenes",), epoch=3)
    with pytest.raises(UserError, match="has no setting batch"):
        config_lib.stream("digits", {"seg": "segmentation"}, batch=3)


def test_data_root_is_the_config_s_then_the_variable_s_then_data(config, monkeypatch):
    monkeypatch.delenv("MTL_JAX_DATA", raising=False)
    assert config_lib.data_root(config) == Path("data")
    monkeypatch.setenv("MTL_JAX_DATA", "/datasets")
    assert config_lib.data_root(config) == Path("/datasets")
    config.data_root = "/mine"
    assert config_lib.data_root(config) == Path("/mine")


def test_what_was_saved_before_a_setting_came_has_its_default(config):
    config_lib.resolve(config)
    saved = config.to_dict()
    older = {name: value for name, value in saved.items() if name != "on_nan"}
    older["streams"] = {
        name: {key: value for key, value in each.items() if key != "crop"} for name, each in saved["streams"].items()
    }
    assert config_lib.completed(older) == config_lib.completed(saved) == saved
    assert config_lib.completed({"streams": "not a section"})["streams"] == "not a section"
