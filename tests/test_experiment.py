"""From a config to its parts: what does not fit together is told before any data is read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import KINDS, MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.data import opened, pixel_labels
from mtl_jax.data.sources.base import Reading, Subset
from mtl_jax.errors import UserError


def settings(labels: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    config: Any = config_lib.base()
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.update(KINDS)
    config.streams.photos = config_lib.stream("digits", {task: task for task in labels}, **changes)
    return config.to_dict()


@pytest.mark.parametrize("task", ["det", "seg", "depth"])
def test_what_has_a_place_in_the_image_is_not_cropped(tiny_backbone, task):
    with pytest.raises(UserError, match=rf"config\.streams\.photos\.crop: expected False with task {task}, "):
        experiment.build(settings(("cls", task), crop=True), data_root=Path())


def test_a_task_is_shown_images_as_its_stream_says_and_whole_without_one(tiny_backbone):
    setup = experiment.build(settings(("cls", "tags", "age"), crop=True, image_size=96), data_root=Path())
    assert experiment.task_view(setup, "age") == (96, True)
    assert experiment.task_view(setup, "seg") == (setup.image_size, False)


class Whole:
    """A source of one's own."""

    class_names = {}  # noqa: RUF012  the protocol's own form
    reading = Reading({"images": 2}, ("Image 1 is all black: look at it.",))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return index


def test_a_part_of_a_source_says_what_the_whole_found_on_reading():
    assert Subset(Whole(), [0]).reading == Whole.reading


def two_streams(order: tuple[str, ...]) -> experiment.Experiment:
    config: Any = config_lib.base()
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.update({name: KINDS[name] for name in ("cls", "tags")})
    config.streams.archive = config_lib.stream("digits", {"cls": "classification"}, image_size=32, crop=True)
    config.streams.site = config_lib.stream("digits", {"cls": "classification", "tags": "multi_label"}, image_size=128)
    config.stages.old = config_lib.stage(("archive",))
    config.stages.new = config_lib.stage(("site",))
    config.order = order
    return experiment.build(config.to_dict(), data_root=Path())


@pytest.mark.parametrize(
    ("order", "streams"), [(("new",), ("site",)), (("new", "old"), ("site", "archive")), (("old",), ("archive",))]
)
def test_a_task_is_measured_and_shown_as_the_first_stream_of_the_order_that_labels_it(tiny_backbone, order, streams):
    setup = two_streams(order)
    assert experiment.labelling_streams(setup, "cls") == streams
    assert list(experiment.measured_streams(setup, ("cls",))) == [streams[0]]
    assert experiment.task_view(setup, "cls") == experiment.view(setup, streams[0])


def test_each_task_is_measured_on_one_stream(tiny_backbone):
    measured = experiment.measured_streams(two_streams(("old", "new")), ("cls", "tags"))
    assert {stream: list(tasks) for stream, tasks in measured.items()} == {"archive": ["cls"], "site": ["tags"]}


def masked(root: Path, classes: tuple[str, ...], value: int, **task: Any) -> experiment.Experiment:
    """One image whose mask holds 0, 1 and a value, as the task `task` describes it."""
    folder = root / "masks"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    pixel_labels.write_png(folder / "JPEGImages/a.png", np.full((1, 3), 90, np.uint8))
    pixel_labels.write_png(folder / "SegmentationClass/a.png", np.array([[0, 1, value]], np.uint8))
    (folder / "ImageSets/Segmentation/val.txt").write_text("a\n")
    config: Any = config_lib.base()
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.seg = {"kind": "segmentation", "classes": ("ground", "thing"), **task}
    options = {"folder": "masks", "classes": classes}
    config.streams.photos = config_lib.stream("voc_segmentation", {"seg": "segmentation"}, options=options)
    return experiment.build(config.to_dict(), data_root=root)


@pytest.mark.parametrize("value", [255, 7])
def test_what_files_and_task_call_void_reaches_the_metric_as_the_task_s_void(tiny_backbone, tmp_path, value):
    setup = masked(tmp_path, ("ground", "thing"), value, ignore_label=7)
    target = experiment.eval_batches(setup, "photos")[0].targets[0]["seg"]["mask"]
    assert target.tolist() == [[0, 1, 7]]


def test_other_names_of_classes_are_refused_with_both_ways_out(tiny_backbone, tmp_path):
    setup = masked(tmp_path, ("earth", "thing"), 255)
    with pytest.raises(
        UserError, match=r"set config\.streams\.photos\.options\.classes .* or set config\.tasks\.seg\."
    ):
        experiment.source(setup, "photos", training=False)


def test_a_split_is_opened_once_and_its_files_are_noted_each_time(tiny_backbone, tmp_path):
    setup = masked(tmp_path, ("ground", "thing"), 255)
    with opened.recording() as first:
        result = experiment.source(setup, "photos", training=False)
    with opened.recording() as again:
        assert experiment.source(setup, "photos", training=False) is result
    assert [file.path for file in first] == [file.path for file in again]
    assert any(file.path.endswith("val.txt") for file in first)
    elsewhere = dataclasses.replace(setup, data_root=tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        experiment.source(elsewhere, "photos", training=False)
