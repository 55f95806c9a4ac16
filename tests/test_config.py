"""A config is checked before anything is trained, and its mistakes are told by name."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mtl_jax import config as config_lib
from mtl_jax.config import overrides, stage_settings
from mtl_jax.errors import UserError
from mtl_jax.training import optimizer, unlabelled
from mtl_jax.workdir import files

PAGES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def load(page: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(page.stem, page)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_valid_and_opens_with_its_command(page: Path):
    config = load(page)
    config_lib.resolve(config)
    command = rf"(python scripts/train\.py|mtl-jax train) --config configs/{page.name}"
    assert re.search(command, page.read_text())
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
    config_lib.resolve(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("order", (), "order: expected the names of the stages"),
        ("order", ("seg", "det"), "expected names of config.stages (seg), found det"),
        ("stages.seg.streams", ("voc",), "expected names of config.streams (scenes), found voc"),
        ("stages.seg.epochs", 0.0, "epochs: expected more than 0"),
        ("stages.seg.learning_rate", -1.0, "learning_rate: expected at least 0"),
        ("stages.seg.ema_decay", 1.0, "ema_decay: expected at least 0 and less than 1"),
        ("stages.seg.epochs", float("inf"), "epochs: expected more than 0 and at most 1e"),
        ("stages.seg.eval_every_epochs", float("nan"), "eval_every_epochs: expected at least 0"),
        ("cache_gb", float("nan"), "config.cache_gb: expected at least 0"),
        ("log_every_steps", 0, "config.log_every_steps: expected at least 1"),
        ("model.head_layers", 10**9, "config.model.head_layers: expected at least 1 and at most 100"),
        ("image_size", -5, "config.image_size: expected at least 1"),
        ("seed", -1, "config.seed: expected at least 0"),
        ("contract.max_drop_percent", float("nan"), "config.contract.max_drop_percent: expected at least 0"),
        ("order", ("seg", "seg"), "config.order: expected each stage once, found seg twice"),
        ("image_size", 64.0, "config.image_size: expected a whole number"),
        ("name", 5, "config.name: expected text"),
        ("smoke", 1, "config.smoke: expected True or False"),
        ("stages.seg.freeze", (5,), "config.stages.seg.freeze: expected a tuple of names"),
        ("stages.seg.loss_weights", {"seg": "high"}, "loss_weights.seg: expected a number"),
        ("stages.seg.loss_weights", {"seg": float("nan")}, "loss_weights.seg: expected at least 0"),
        ("stages.seg.rates", {"neck": -1.0}, "config.stages.seg.rates.neck: expected at least 0"),
        ("stages.seg.lwf_weight", 4.0, "config.stages.seg has no setting lwf_weight; it is now keep.lwf.weight"),
        ("stages.seg.optimiser", "sgd", "config.stages.seg has no setting optimiser; did you mean optimizer?"),
        ("stages.seg.optimizer", "adm", "optimizer: expected one of adamw, sgd"),
        ("stages.seg.train_batch_norm", "never", "train_batch_norm: expected one of everywhere"),
        ("streams.scenes", 5, "config.streams.scenes: expected a table of settings"),
        ("tasks.seg", "segmentation", "config.tasks.seg: expected a table of settings"),
        ("tasks.seg.kind", 5, "config.tasks.seg.kind: expected text"),
        ("model.head_channels", 2**70, "config.model.head_channels: expected at least 1"),
        ("streams.scenes.batch_size", 0, "batch_size: expected at least 1"),
        (
            "streams.scenes.labels",
            ConfigDict({"mask": "segmentation"}),
            "expected names of config.tasks (seg), found mask",
        ),
    ],
)
def test_a_mistake_is_told_by_field_and_value(config, field, value, words):
    *above, name = field.split(".")
    with config.ignore_type(), config.unlocked():
        section = functools.reduce(lambda component, entry: component[entry], above, config)
        section[name] = value
    with pytest.raises(UserError, match=re.escape(words)) as error:
        config_lib.resolve(config)
    if ": expected" in words:
        assert ", found " in str(error.value)


@pytest.mark.parametrize("table", ["tasks", "streams", "stages"])
@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "é", "a,b", "a@1", "x" * 65])
def test_a_name_that_no_file_or_flag_takes_is_refused(config, table, name):
    with config.ignore_type():
        config[table] = {**config[table], name: next(iter(config[table].values()))}
    with pytest.raises(UserError, match=f"config.{table}: expected names of 1 to 64"):
        config_lib.resolve(config)


@pytest.mark.parametrize("name", ["all", "shared", "attention", "conv_0", "branch_seg"])
def test_a_task_s_name_has_no_meaning_of_its_own(config, name):
    config.tasks[name] = dict(config.tasks.seg)
    with pytest.raises(UserError, match="expected names other than"):
        config_lib.resolve(config)


def test_choices_are_those_of_the_parts_that_take_them():
    assert stage_settings.OPTIMIZERS == optimizer.RULES
    assert stage_settings.SCHEDULES == optimizer.SCHEDULES
    assert tuple(unlabelled.UPDATES) == stage_settings.UPDATES


def test_names_given_as_one_string_are_split(config):
    config.stages.again = config_lib.stage(("scenes",))
    config.order = ("seg, again",)
    assert config_lib.resolve(config).order == ("seg", "again")


def test_what_may_be_without_limit_may_be_infinite(config):
    config.stages.seg.sampling_temperature = config.contract.max_latency_ms = float("inf")
    config_lib.resolve(config)


def test_names_that_are_numbers_are_refused(config):
    config.order = (1,)
    with pytest.raises(UserError, match=r"config\.order: expected a tuple of names"):
        config_lib.resolve(config)


def test_an_unknown_setting_of_a_stage_or_stream_is_refused():
    with pytest.raises(UserError, match="has no setting epoch; did you mean epochs"):
        config_lib.stage(("scenes",), epoch=3)
    with pytest.raises(UserError, match=r"has no setting agem; it is now keep\.agem"):
        config_lib.stage(("scenes",), agem=True)
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
    saved = config_lib.resolve(config).to_dict()
    older = {name: value for name, value in saved.items() if name != "on_nan"}
    older["streams"] = {
        name: {key: value for key, value in entry.items() if key != "crop"} for name, entry in saved["streams"].items()
    }
    assert config_lib.completed(older) == config_lib.completed(saved) == saved
    assert config_lib.completed({"streams": "not a section"})["streams"] == "not a section"


@pytest.mark.parametrize(("former", "stride"), [("stage_0", 2), ("stage_2", 8), ("all", "all"), (8, 8)])
def test_what_is_shared_is_read_under_its_former_name(config, former, stride):
    config.model.share_until = former
    assert config_lib.resolve(config).model.share_until == stride
    assert config_lib.completed(config.to_dict())["model"]["share_until"] == stride


def test_batch_norms_by_task_are_read_under_their_former_name(config):
    overrides.change(config, overrides.Override(("model", "batch_norm_per_task"), "true"))
    assert config_lib.resolve(config).model.norms_from == 1
    saved = config_lib.completed(config.to_dict())["model"]
    assert (saved["norms_from"], "batch_norm_per_task" in saved) == (1, False)
    overrides.change(config, overrides.Override(("model", "batch_norm_per_task"), "false"))
    assert config_lib.resolve(config).model.norms_from == 0


def test_infinities_come_back_from_json(config):
    config.stages.seg.update({"soft_sharing": float("inf"), "freeze": {"neck": (1, None)}})
    settings = config_lib.resolve(config)
    saved = files.without_nan(settings.to_dict())
    assert saved["stages"]["seg"]["soft_sharing"] is None
    assert config_lib.read_settings(config_lib.completed(saved)) == settings
