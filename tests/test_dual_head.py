"""Two detectors on two datasets: the page, and streams that take turns in a real run."""

from pathlib import Path

import pytest
from test_joint import joint_config

from mtl_jax import config as config_lib
from mtl_jax.errors import UserError
from mtl_jax.training import train_loop
from mtl_jax.workdir import checkpoints, metrics_log

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def dual_head():
    return config_lib.load_page(CONFIGS / "dual_head.py")


def test_every_variant_trains_the_heads_that_it_names(dual_head):
    for variant in dual_head.VARIANTS:
        config = dual_head.get_config(variant)
        config_lib.resolve(config)
        assert config.stages[config.order[-1]].streams == (
            (variant,) if variant in config.tasks else ("people", "things")
        )
    assert dual_head.get_config("staged").order == ("people", "both")
    with pytest.raises(UserError, match=r"configs/dual_head\.py:both: expected one of together, staged"):
        dual_head.get_config("both")


def test_neither_dataset_labels_what_the_other_looks_for(dual_head):
    tasks, streams = dual_head.get_config().tasks, dual_head.get_config().streams
    assert not set(tasks.people.classes) & set(tasks.things.classes)
    assert streams.people.options.images_with == streams.things.options.images_without == ("person",)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report", "one_device")
def test_streams_take_turns_and_each_step_logs_its_own(tiny_backbone, tmp_path):
    turns = {"sampling_temperature": 1.0, "update": "weight", "rates": {"head/seg": 0.5, "backbone": 0.1}}
    config = joint_config("sum", epochs=1.0, **turns)
    config.image_size = 32
    config.streams.masks.options.length = 48  # against 16: three steps of four
    train_loop.train_and_evaluate(config, tmp_path)
    loaded = metrics_log.read(tmp_path / "metrics.jsonl")
    losses = [event for event in loaded if event["name"] in ("masks/loss", "single/loss")]
    assert len(losses) == len({event["step"] for event in losses}) == 16  # an epoch of 12 batches, at 3/4 of the steps
    position = checkpoints.read_metadata(tmp_path / "checkpoints" / "0-both")["data_position"]
    assert sum(position.values()) == 16
    assert position["masks"] == sum(event["name"] == "masks/loss" for event in losses) > position["single"] > 0
