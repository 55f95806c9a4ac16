"""Joint training: its pages, and images with several labels."""

from pathlib import Path

import pytest
from test_train import tiny_config, values

from mtl_jax import balance
from mtl_jax import config as config_lib
from mtl_jax.errors import UserError
from mtl_jax.report import balance_section
from mtl_jax.training import train_loop
from mtl_jax.workdir import metrics_log

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def joint():
    return config_lib.load_page(CONFIGS / "joint.py")


@pytest.fixture(scope="module")
def single():
    return config_lib.load_page(CONFIGS / "single.py")


def test_every_method_is_a_word_after_the_page_s_name(joint):
    assert set(joint.VARIANTS) == set(balance.METHODS)
    for data in ("", "scenes/"):
        for name in ("sum", "nash_mtl", "gradnorm"):
            config = joint.get_config(data + name)
            config_lib.resolve(config)
            assert config.stages.joint.balance == name
            assert config.order == ("joint",)


def test_another_word_is_refused(joint, single):
    for word in ("pc_grad", "digits/pcgrad"):
        with pytest.raises(UserError, match=f"configs/joint.py:{word}: expected one of sum, mean"):
            joint.get_config(word)
    with pytest.raises(UserError, match=r"configs/single\.py:depth: expected one of seg, det, cls"):
        single.get_config("depth")


def test_a_task_alone_has_the_network_the_data_and_the_steps_of_the_joint_run(joint, single):
    both = joint.get_config()
    steps = both.stages.joint.epochs / both.streams.voc.batch_size
    for task in single.VARIANTS:
        config = single.get_config(task)
        config_lib.resolve(config)
        (stream,) = config.stages[task].streams
        assert tuple(config.streams[stream].labels) == (task,)
        assert config.streams == both.streams
        assert config.model == both.model
        # All three sets have as many training images, so an epoch's steps go by the batch size alone.
        assert config.stages[task].epochs / config.streams[stream].batch_size == steps


def joint_config(balance, **changes):
    config = tiny_config()
    config.stages.both = config_lib.stage(("masks", "single"), **{"epochs": 2.0, "balance": balance, **changes})
    config.order = ("both",)
    config.forward_transfer = False
    return config


def trained_losses(workdir, **settings):
    """Losses of images that are labelled for both tasks."""
    config = joint_config("pcgrad")
    config.image_size = 32
    labels = {"seg": "segmentation", "cls": "classification"}
    options = {"labels": tuple(labels.values()), "size": 64, "length": 16}
    config.streams.both = config_lib.stream("digits", labels, options=options, batch_size=4)
    config.stages.both = config_lib.stage(("both",), epochs=3.0, balance="pcgrad", learning_rate=1e-2, **settings)
    contract = train_loop.train_and_evaluate(config, workdir)
    assert set(contract["tasks"]) == {"seg", "cls"}
    return values(workdir, "loss")


@pytest.mark.usefixtures("no_report", "one_device")
def test_images_with_several_labels_train_all_their_tasks_by_gradients_of_features(tiny_backbone, tmp_path):
    losses = trained_losses(tmp_path / "run", gradient_space="features")
    assert losses[-1] < losses[0]
    events = metrics_log.read(tmp_path / "run" / "metrics.jsonl")
    assert balance_section.conflicts(events).keys() in ({("seg", "cls")}, {("cls", "seg")})


@pytest.mark.slow
@pytest.mark.usefixtures("no_report", "one_device")
def test_images_with_several_labels_train_all_their_tasks_part_by_part(tiny_backbone, tmp_path):
    losses = trained_losses(tmp_path / "run", micro_batches=2)
    assert losses[-1] < losses[0]


def test_a_batch_that_cannot_be_parted_is_refused(tiny_backbone, tmp_path):
    with pytest.raises(
        UserError, match=r"both\.micro_batches: expected a divisor of the 4 images of masks, such as 2, found 3"
    ):
        train_loop.train_and_evaluate(joint_config("sum", micro_batches=3), tmp_path / "run")
