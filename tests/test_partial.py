"""Classes that a dataset does not label: no loss, no gradient, no part in a figure, whatever the kind of the task."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment, tasks
from mtl_jax.continual import replay_buffer
from mtl_jax.data import transforms
from mtl_jax.data.mosaic import mosaic
from mtl_jax.data.partial import Classes, in_task_terms
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Geometry
from mtl_jax.training import train_loop

SIZE = (32, 32)
NAMES = ("background", "cat", "dog", "cup")
SETTINGS = {
    "segmentation": {"label_smoothing": 0.1, "dice_weight": 1.0, "class_weights": (0.5, 1.0, 2.0, 1.0)},
    "classification": {"label_smoothing": 0.1},
    "detection": {"strides": (8, 16)},
}
KINDS = [*SETTINGS, "multi_label"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def task_of(kind):
    return tasks.build({"t": {"kind": kind, "classes": NAMES, **SETTINGS.get(kind, {})}})["t"]


def raw_of(kind, rng):
    shapes = {"segmentation": (2, 4, 4, 4), "detection": (2, 20, 9)}
    return rng.normal(size=shapes.get(kind, (2, 4))).astype(np.float32)


def labels_of(kind, rng, *, classes=(0, 1, 2, 3)):
    rendered = rng.choice(classes, size=(2, *SIZE)).astype(np.int32)
    if kind == "segmentation":
        return {"mask": rendered}
    if kind == "classification":
        return {"label": rendered[:, 0, 0]}
    if kind == "multi_label":
        return {"label": np.isin(np.arange(4), classes)[None].repeat(2, 0).astype(np.float32)}
    boxes = np.array([[[2, 2, 14, 14], [16, 4, 30, 30]]] * 2, np.float32)
    return {
        "boxes_xyxy": boxes,
        "label": rendered[:, 0, :2],
        "valid": np.ones((2, 2), bool),
        "crowd": np.zeros((2, 2), bool),
    }


def among(kind, labels, labelled):
    """Labels as the pipeline gives them."""
    if kind == "multi_label":
        return {"label": np.where(labelled, labels["label"], np.nan).astype(np.float32)}
    return {**labels, "labelled": np.array([labelled] * 2)}


@functools.cache
def loss_and_gradient(kind):
    """Compiled once for all labels of one shape."""
    task = task_of(kind)
    return jax.jit(jax.value_and_grad(lambda raw, labels: task.loss(raw, labels, SIZE)[0]))


def filled_in(task, labels, raw, size=SIZE):
    """Labels with what another network is surer of than 0.9, in one program; `raw` are its outputs."""
    return jax.device_get(jax.jit(lambda labels, raw: task.fill_in(labels, raw, size, 0.9))(labels, raw))


def channels(kind):
    """Where the logits of the classes are."""
    return slice(5, None) if kind == "detection" else slice(None)


@pytest.mark.parametrize("kind", KINDS)
def test_unlabelled_classes_have_neither_loss_nor_gradient(kind, rng):
    labelled = np.array([True, True, False, False])
    raw, labels = raw_of(kind, rng), among(kind, labels_of(kind, rng, classes=(0, 1)), labelled)

    value, gradient = loss_and_gradient(kind)(raw, labels)
    by_class = np.asarray(gradient)[..., channels(kind)]
    assert np.all(by_class[..., 2:] == 0)
    assert np.any(by_class[..., :2] != 0)
    assert np.all(np.isfinite(gradient))
    peers = raw.copy()
    peers[..., channels(kind)][..., 2:] += rng.normal(size=(*by_class.shape[:-1], 2)) * 50
    np.testing.assert_allclose(loss_and_gradient(kind)(peers, labels)[0], value, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_unlabelled_classes_are_passed_over(kind, rng):
    raw = raw_of(kind, rng)
    labels = among(kind, labels_of(kind, rng, classes=(2, 3)), np.array([True, True, False, False]))
    if kind in ("detection", "multi_label"):  # they say that the others are absent
        empty = {**labels, "valid": labels["valid"] & False} if kind == "detection" else labels
        values = [loss_and_gradient(kind)(raw, entry)[0] for entry in (labels, empty)]
        np.testing.assert_allclose(*values, rtol=1e-6)
    else:
        value, gradient = loss_and_gradient(kind)(raw, labels)
        assert value == 0
        assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_labelled_class_is_no_label(kind, rng):
    raw, labels = raw_of(kind, rng), among(kind, labels_of(kind, rng), np.zeros(4, bool))
    value, gradient = loss_and_gradient(kind)(raw, labels)
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_labelled_classes_are_the_usual_loss(kind, rng):
    raw, labels = raw_of(kind, rng), labels_of(kind, rng)
    usual, _ = loss_and_gradient(kind)(raw, labels)
    value, _ = loss_and_gradient(kind)(raw, among(kind, labels, np.ones(4, bool)))
    np.testing.assert_allclose(value, usual, rtol=1e-6)


def test_where_nothing_is_labelled_the_objectness_is_held_down_by_labelled_classes_alone(rng):
    labels = labels_of("detection", rng) | {"valid": np.zeros((2, 2), bool)}
    labels["labelled"] = np.array([[True, False, False, False]] * 2)
    raw = np.zeros((2, 20, 9), np.float32)
    raw[..., 5] = -20.0  # surely none of the labelled class

    def pull(raw):
        return loss_and_gradient("detection")(jnp.asarray(raw), labels)[1][..., 4].max()

    certain = pull(raw)
    raw[..., 5] = 0.0
    assert 0 <= certain < 1e-3 * pull(raw)


MASK = np.array([[0, 1, 255]], np.uint8)
SEEN = Classes(numbers=(0, 2), labelled=(True, False, True, False))  # of background and dog


def test_masks_are_renumbered_and_what_counts_as_unlabelled_is_void():
    result = in_task_terms({"mask": MASK}, SEEN)
    np.testing.assert_array_equal(result["mask"], [[0, 2, 255]])
    np.testing.assert_array_equal(result["labelled"], SEEN.labelled)
    hidden = in_task_terms({"mask": MASK}, SEEN._replace(labelled=(True, True, False, True)))
    np.testing.assert_array_equal(hidden["mask"], [[0, 255, 255]])


def test_masks_of_more_classes_than_their_type_holds_are_widened():
    classes = Classes(numbers=(0, 299), labelled=(True,) * 300)
    result = in_task_terms({"mask": MASK}, classes)
    np.testing.assert_array_equal(result["mask"], [[0, 299, -1]])
    assert "labelled" not in result


def test_boxes_of_other_classes_are_dropped_with_all_that_belongs_to_them():
    fields = {
        "boxes_xyxy": np.arange(8, dtype=np.float32).reshape(2, 4),
        "label": np.array([1, 0], np.int32),
        "crowd": np.array([False, True]),
        "area": np.array([1.0, 2.0], np.float32),
    }
    result = in_task_terms(fields, SEEN._replace(labelled=(False, True, True, True)))
    assert result["label"].tolist() == [2]
    assert (result["boxes_xyxy"].tolist(), result["crowd"].tolist(), result["area"].tolist()) == (
        [[0, 1, 2, 3]],
        [False],
        [1],
    )
    missing = {**fields, "boxes_xyxy": np.full((2, 4), np.nan, np.float32)}
    assert np.isnan(in_task_terms(missing, SEEN)["boxes_xyxy"]).all()


@pytest.mark.parametrize(("label", "expected"), [(0, 0), (1, 2), (-1, -1)])
def test_a_class_of_the_whole_image_is_renumbered(label, expected):
    actual = in_task_terms({"label": np.array(label, np.int32)}, SEEN)
    assert actual["label"] == expected
    assert (
        in_task_terms({"label": np.array(1, np.int32)}, SEEN._replace(labelled=(True, True, False, True)))["label"]
        == -1
    )


def test_several_classes_of_the_whole_image_are_unknown_where_not_labelled():
    label = np.array([1, np.nan], np.float32)
    result = in_task_terms({"label": label}, Classes((0, 2), (True, False, True, True)))
    np.testing.assert_array_equal(result["label"], [1, np.nan, np.nan, 0])  # "cup" was looked for, and is nowhere


def test_what_was_looked_for_may_differ_from_image_to_image():
    fields = {"label": np.array(1, np.int32), "labelled": np.array([False, True])}
    np.testing.assert_array_equal(in_task_terms(fields, SEEN)["labelled"], [False, False, True, False])


def test_the_same_classes_leave_labels_as_they_are():
    fields = {"mask": MASK}
    assert in_task_terms(fields, Classes((0, 1), (True, True))) is fields


GEOMETRY = Geometry(1.0, 1.0, 0.0, 0.0, 1, 4)
LABELLED = np.array([True, True, False, False])


def metric_of(kind):
    return task_of(kind).new_metric()


def test_boxes_of_unlabelled_classes_count_nowhere():
    boxes = np.array([[0, 0, 2, 1], [2, 0, 4, 1]], np.float32)
    result = {"boxes_xyxy": boxes, "score": np.array([0.9, 0.8]), "label": np.array([1, 2]), "valid": np.ones(2, bool)}
    figures = {}
    for labelled in (LABELLED, np.ones(4, bool)):
        metric = metric_of("detection")
        truth = {"boxes_xyxy": boxes[:1], "label": np.array([1]), "labelled": labelled}
        for _ in range(2):  # of which the second shows the other class, and says so
            metric.update(result, truth, GEOMETRY)
            truth = {"boxes_xyxy": boxes[1:], "label": np.array([2]), "labelled": np.ones(4, bool)}
        figures[bool(labelled.all())] = metric.compute()["map_50"]
    # Where nobody looked for class 2, the first image's box of it is not wrong; the second image's box of class 1 is.
    assert figures[False] == pytest.approx((1.0 + 1.0) / 2)
    assert figures[True] < figures[False]


def test_pixels_given_to_unlabelled_classes_are_no_mistake_on_background_alone():
    metric = metric_of("segmentation")
    mask = {"mask": np.array([[0, 0, 1, 1]], np.uint8), "labelled": LABELLED}
    metric.update({"mask": np.array([[0, 2, 1, 2]])}, mask, GEOMETRY)
    figures = metric.compute()
    assert (figures["iou/background"], figures["iou/cat"]) == (1.0, 0.5)
    assert np.isnan(figures["iou/dog"])
    assert figures["miou"] == 0.75
    assert figures["pixel_accuracy"] == pytest.approx(2 / 3)


def test_an_image_s_class_is_ranked_among_the_labelled_ones():
    metric = metric_of("classification")
    metric.update(
        {"probability": np.array([0.1, 0.2, 0.4, 0.3])}, {"label": np.array(1), "labelled": LABELLED}, GEOMETRY
    )
    metric.update(
        {"probability": np.array([0.1, 0.2, 0.4, 0.3])}, {"label": np.array(2), "labelled": LABELLED}, GEOMETRY
    )
    assert metric.compute() == {"top1": 1.0}


def test_tags_are_filled_in_where_the_other_network_is_sure():
    labels = {"label": np.array([[np.nan, np.nan, np.nan, 1.0]], np.float32)}
    result = filled_in(task_of("multi_label"), labels, np.array([[5.0, -5.0, 0.1, -5.0]], np.float32))
    np.testing.assert_array_equal(result["label"], [[1, 0, np.nan, 1]])


def test_classes_are_filled_in_where_nobody_looked_for_them():
    labels = {"label": np.array([-1, -1, -1, 1], np.int32), "labelled": np.array([LABELLED] * 4)}
    raw = np.array(
        [[0, 0, 9, 0], [0, 9, 0, 0], [0, 0, 1, 0], [0, 0, 9, 0]], np.float32
    )  # sure; labelled; unsure; known
    result = filled_in(task_of("classification"), labels, raw)
    assert result["label"].tolist() == [2, -1, -1, 1]
    np.testing.assert_array_equal(result["labelled"][0], np.ones(4, bool))
    np.testing.assert_array_equal(result["labelled"][1:], [LABELLED] * 3)


def gradient_at_zero(task, labels, size):
    gradient = jax.jit(jax.grad(lambda raw, labels: task.loss(raw, labels, size)[0]))
    return np.asarray(gradient(np.zeros((1, 1, size[1] // 8, 4), np.float32), labels))


def test_pixels_of_background_are_filled_in_and_learnt_among_all_classes():
    task = task_of("segmentation")
    mask = np.zeros((1, 8, 16), np.int32)
    mask[:, 0] = 1
    raw = np.zeros((1, 1, 2, 4), np.float32)
    raw[0, 0, 0, 2] = 9.0
    labels = filled_in(task, {"mask": mask, "labelled": LABELLED[None]}, raw, (8, 16))
    pseudo = np.asarray(labels["pseudo"])[0]
    assert np.all(pseudo[1:, :8] == 2)
    assert np.all(pseudo[0] == -1)  # labelled as something else
    assert np.all(pseudo[:, 8:] == -1)  # not sure
    np.testing.assert_array_equal(np.asarray(labels["mask"])[0] == 255, pseudo == 2)
    gradient = gradient_at_zero(task, labels, (8, 16))
    assert gradient[0, 0, 0, 2] < 0


def test_pixels_that_surely_show_no_unlabelled_class_are_learnt_among_all_classes():
    task, size = task_of("segmentation"), (8, 24)
    mask = np.zeros((1, *size), np.int32)
    mask[:, 0] = 1
    raw = np.zeros((1, 1, 3, 4), np.float32)
    raw[0, 0, 0, 0] = 9.0  # surely background; three quarters unsure
    labels = filled_in(task, {"mask": mask, "labelled": LABELLED[None]}, raw, size)
    complete = labels["complete"][0].copy()
    assert np.all(complete[0])  # an object's pixel shows no other
    assert np.all(complete[:, :8])
    assert not np.any(complete[1:, 8:])
    complete[0, 8:] = False
    no_object = labels | {"mask": np.zeros_like(mask), "complete": complete[None]}
    gradient = gradient_at_zero(task, no_object, size)
    unlabelled = gradient[0, 0][:, ~LABELLED]
    assert np.all(unlabelled[0] > 0)
    np.testing.assert_array_equal(unlabelled[2], 0)  # the middle cell is interpolated into the first one's pixels


def test_boxes_are_filled_in_unless_a_labelled_one_lies_there(rng):
    task, raw = task_of("detection"), np.full((1, 20, 9), -9.0, np.float32)
    raw[0, [0, 5, 15], :4] = 0.0
    raw[0, [0, 5, 15], 4] = 20.0  # three sure boxes, of the classes 2, 3 and 1
    raw[0, [0, 5, 15], [7, 8, 6]] = 20.0
    at = np.asarray(jax.jit(lambda raw: task.finish(raw, SIZE))(raw))[0, 5, :4]
    truth = np.array([[[at[0] - at[2] / 2, at[1] - at[3] / 2, at[0] + at[2] / 2, at[1] + at[3] / 2]]], np.float32)
    labels = {"boxes_xyxy": truth, "label": np.array([[1]], np.int32), "valid": np.ones((1, 1), bool)}
    fill_in = jax.jit(lambda labels: task.fill_in(labels, jnp.asarray(raw), SIZE, 0.9))
    filled = fill_in(labels | {"labelled": LABELLED[None]})
    assert filled["label"][filled["valid"]].tolist() == [1, 2]  # 3 lies on the labelled box, 1 is labelled and absent
    assert filled["pseudo"].sum() == 1
    _, gradient = loss_and_gradient("detection")(raw_of("detection", rng)[:1], filled)
    assert np.any(np.asarray(gradient)[..., 7] != 0)
    nobody = labels | {"boxes_xyxy": np.full_like(truth, np.nan), "labelled": LABELLED[None]}
    assert not fill_in(nobody)["valid"][:, 1:].any()


DIGITS = tuple("0123456789")


def two_halves(**stage):
    """Two streams of one task, each of which labels some of its classes."""
    config = config_lib.base()
    config.name, config.image_size, config.contract.latency_image_size = "halves", 64, 64
    config.smoke, config.example_images = True, 1
    with config.ignore_type():
        config.model.update(MODEL)
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    options = {"labels": "segmentation", "size": 64, "length": 16}
    for number, (name, half) in enumerate((("low", DIGITS[:5]), ("high", DIGITS[5:]))):
        config.streams[name] = config_lib.stream("digits", {"seg": "segmentation"}, options=options, batch_size=4)
        config.streams[name].update({"train_parts": 2, "train_part": number})
        config.streams[name].labelled_classes = {"seg": ("background", *half)}
    config.stages.both = config_lib.stage(("low", "high"), **{"ema_decay": 0.9, "pseudo_labels": True, **stage})
    config.order = ("both",)
    return config


def test_a_source_s_classes_may_be_some_of_the_task_s_by_name(tiny_backbone):
    config = two_halves()
    config.streams.low.labelled_classes = {}
    setup = experiment.build(config_lib.resolve(config), data_root=Path())
    data = replay_buffer.ReplayBuffer((), {"segmentation": ("3", "background")})
    (classes,) = experiment.classes_of(setup, "low", data).values()
    assert classes.numbers == (4, 0)
    assert np.flatnonzero(classes.labelled).tolist() == [0, 4]
    data = replay_buffer.ReplayBuffer((), data.class_names, {"segmentation": ("background",)})
    np.testing.assert_equal(replay_buffer.from_tree(replay_buffer.to_tree(data)), data)
    (classes,) = experiment.classes_of(setup, "low", data).values()
    assert np.flatnonzero(classes.labelled).tolist() == [0]


def test_a_source_may_have_the_task_s_classes_in_another_order(tiny_backbone):
    def mask(classes):
        config = two_halves()
        config.tasks.seg.classes = classes
        config.streams.low.labelled_classes = {}
        setup = experiment.build(config_lib.resolve(config), data_root=Path())
        return next(iter(experiment.eval_batches(setup, "low"))).targets[0]["seg"]["mask"]

    usual, reverse = mask(("background", *DIGITS)), mask((*DIGITS[::-1], "background"))
    numbers = np.array(
        [10, *range(9, -1, -1), *[0] * 244, 255]
    )  # of the usual classes, and of void, in the other order
    assert len(np.unique(usual)) > 2
    np.testing.assert_array_equal(reverse, numbers[usual])


@pytest.mark.usefixtures("tiny_backbone", "one_device", "no_report")
def test_streams_that_label_different_classes_train_and_measure_one_task(tmp_path, capsys):
    contract = train_loop.train_and_evaluate(two_halves(), tmp_path / "run")
    printed = capsys.readouterr().err
    assert "low does not label 5 of the 11 classes of seg (5, 6, " in printed
    assert (contract["tasks"]["seg"]["stream"], contract["tasks"]["seg"]["streams_not_measured"]) == ("low", [])
    assert contract["tasks"]["seg"]["streams_measured_too"] == ["high"]
    figures = contract["stages"][0]["metrics"]["seg"]
    assert all(np.isfinite(figures[f"iou/{digit}"]) for digit in "27")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.streams.low.labelled_classes.update(seg=("backgrund",)),
            "low.labelled_classes.seg: expected classes of the task .*, found backgrund",
        ),
        (lambda c: c.streams.low.labelled_classes.update(seg=()), "labelled_classes.seg"),
        (lambda c: c.streams.low.labelled_classes.update(det=("cup",)), "labelled_classes"),
        (lambda c: c.streams.low.update(train_part=2), "train_part"),
        (lambda c: c.streams.low.update(train_parts=0), "train_parts"),
        (lambda c: c.streams.low.update(train_parts=99), "train_parts: expected at most 16, .*, found 99"),
        (lambda c: c.streams.low.val_options.update(colour=1), "colour"),
        (lambda c: c.stages.both.update(ema_decay=0.0), r"both\.pseudo_labels: expected ema_decay above 0"),
        (lambda c: c.stages.both.update(pseudo_threshold=1.5), "pseudo_threshold"),
    ],
)
@pytest.mark.usefixtures("tiny_backbone")
def test_wrong_settings_are_one_line_before_the_first_step(change, words, tmp_path):
    config = two_halves()
    with config.ignore_type():
        change(config)
    with pytest.raises(UserError, match=words) as error:
        train_loop.train_and_evaluate(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def sample(**labels):
    return {"image": np.zeros((8, 8, 3), np.uint8), "labels": labels, "id": "a"}


def boxes_seen(*labelled):
    nothing = {"label": np.zeros(0, np.int32), "crowd": np.zeros(0, bool), "area": np.zeros(0, np.float32)}
    return {"boxes_xyxy": np.zeros((0, 4), np.float32), **nothing, "labelled": np.array(labelled)}


def test_what_was_looked_for_stays_with_an_image_that_is_moved():
    rng = np.random.default_rng(0)
    masked = {"mask": np.zeros((8, 8), np.uint8), "labelled": np.array([True, False])}
    moved = transforms.apply(sample(det=boxes_seen(True, False), seg=masked), rng, size=(8, 8), augment=Augment())
    assert all(fields["labelled"].tolist() == [True, False] for fields in moved["labels"].values())


def test_in_a_mosaic_only_what_was_looked_for_in_all_four_images_was():
    masks = {"mask": np.zeros((8, 8), np.uint8)}
    sections = [
        sample(det=boxes_seen(True, last, False), seg={**masks, "labelled": np.array([True, last])})
        for last in (True, True, False, True)
    ]
    joined = mosaic(sections, np.random.default_rng(0), size=(8, 8), augment=Augment())["labels"]
    assert joined["det"]["labelled"].tolist() == [True, False, False]
    assert joined["seg"]["labelled"].tolist() == [True, False]
