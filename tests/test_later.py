"""Classes of a task that came later, have other names, or are gone: what its outputs, losses and figures are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks as tasks_lib
from mtl_jax.config import former
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Geometry
from mtl_jax.tasks.calibration import Calibration, calibrated

SIZE = (64, 64)
CLASSES = ("cup", "ball", "tree", "car")
LATER = (("more", 1), ("last", 1))
WHOLE = Geometry(1.0, 1.0, 0.0, 0.0, *SIZE)


def task(kind, classes=CLASSES, **settings):
    return tasks_lib.build({"it": {"kind": kind, "classes": classes, **settings}})["it"]


def test_a_task_knows_which_of_its_classes_came_when():
    it = task("classification", added=LATER)
    assert it.first_classes == ("cup", "ball")
    assert it.classes_of("more") == ("tree",)
    assert it.classes_of("last") == ("car",)
    assert it.classes_of("first") == ()
    assert (it.channels, it.channels_after(()), it.channels_after(("more",))) == (2, 2, 3)


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        ("classification", (("more", 4),)),
        ("classification", (("more", 0),)),
        ("classification", ("more", 1)),
        ("classification", 1),
        ("detection", (("more", True),)),
    ],
)
def test_what_is_no_table_of_later_classes_is_refused(kind, added):
    with pytest.raises(UserError, match=r"config\.tasks\.it\.added: expected "):
        task(kind, added=added)
    with pytest.raises(UserError, match=r"config\.tasks\.age has no setting added"):
        tasks_lib.build({"age": {"kind": "regression", "added": (("more", 1),)}})


def test_a_run_whose_boxes_came_later_in_a_former_way_says_what_to_do():
    saved = {"tasks": {"det": {"kind": "detection", "classes": CLASSES, "reads_backbone": ("more",)}}}
    with pytest.raises(
        UserError, match=r"tasks\.det: .* of an earlier version \(reads_backbone\); extend the run again"
    ):
        former.renamed(saved)


def boxes(*labels):
    corners = [[4.0 + 8 * k, 4.0, 24.0 + 8 * k, 28.0] for k in range(len(labels))]
    return {
        "boxes_xyxy": np.asarray([corners], np.float32),
        "label": np.asarray([labels], np.int32),
        "valid": np.ones((1, len(labels)), bool),
        "crowd": np.zeros((1, len(labels)), bool),
    }


def raw_boxes(*sections):
    count = sum((64 // stride) ** 2 for stride in (8, 16, 32))
    generator = np.random.default_rng(0)
    return [generator.normal(size=(1, count, 5 + len(entry))).astype(np.float32) for entry in sections]


def test_a_detector_s_first_boxes_and_scores_are_those_it_had():
    first, later = raw_boxes(CLASSES[:3], CLASSES[3:])
    alone, grown = task("detection", CLASSES[:3]), task("detection", added=(("more", 1),))

    @jax.jit
    def finished(first, later):
        return alone.finish(first, SIZE), grown.finish(jnp.concatenate([first, later], axis=-1), SIZE)

    before, after = (np.asarray(value) for value in finished(first, later))
    cells = before.shape[1]
    np.testing.assert_array_equal(after[:, :cells, :8], before)
    assert (after[:, cells:, 5:8] < -1000).all()
    assert (after[:, :cells, 8] < -1000).all()
    was = jax.jit(alone.decode)(before)
    result = jax.tree.map(np.asarray, jax.jit(grown.decode)(after))
    assert set(result["label"][result["valid"]]) <= {0, 1, 2, 3}
    assert (np.diff(result["score"]) <= 0).all()
    of_first = result["valid"] & (result["label"] < 3)
    for name in ("boxes_xyxy", "score", "label"):
        np.testing.assert_array_equal(result[name][of_first], np.asarray(was[name])[was["valid"]])


def test_later_classes_find_what_they_would_alone():
    first, later = raw_boxes(CLASSES[:3], CLASSES[3:])
    grown = task("detection", added=(("more", 1),), candidates=10, max_detections=3)
    alone = task("detection", CLASSES[3:], candidates=10, max_detections=3)
    found = jax.jit(lambda raw: grown.decode(grown.finish(raw, SIZE)))(np.concatenate([first, later], axis=-1))
    expected = jax.jit(lambda raw: alone.decode(alone.finish(raw, SIZE)))(later)
    assert found["valid"].shape == (1, 6)
    of_later = np.asarray(found["valid"] & (found["label"] == 3))
    assert of_later.sum() == 3
    np.testing.assert_array_equal(np.asarray(found["score"])[of_later], np.asarray(expected["score"])[0])
    np.testing.assert_array_equal(np.asarray(found["boxes_xyxy"])[of_later], np.asarray(expected["boxes_xyxy"])[0])
    missing = jax.tree.map(lambda values: np.asarray(values)[~np.asarray(found["valid"])], dict(found))
    assert all(not values.any() for values in missing.values())


def test_a_detector_s_parts_learn_their_own_boxes():
    first, later = raw_boxes(CLASSES[:3], CLASSES[3:])
    grown, raw = task("detection", added=(("more", 1),)), np.concatenate([first, later], axis=-1)
    custom = [task("detection", CLASSES[:3]), task("detection", CLASSES[3:])]
    # Where only the later class is labelled, the first ones have no part in the loss.
    labelled = {**boxes(3), "labelled": np.asarray([[False, False, False, True]])}

    @jax.jit
    def computed(raw, first, later):
        value, sections = grown.loss(raw, boxes(1, 3), SIZE)
        expected = custom[0].loss(first, _with(boxes(1, 1), valid=[[True, False]]), SIZE)[0]
        expected += custom[1].loss(later, _with(boxes(0, 0), valid=[[False, True]]), SIZE)[0]
        return value, sections, expected, jax.grad(lambda raw: grown.loss(raw, labelled, SIZE)[0])(raw)

    value, sections, expected, gradient = computed(raw, first, later)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(sum(sections.values()), value, rtol=1e-5)
    assert not np.asarray(gradient)[..., : first.shape[-1]].any()
    assert np.asarray(gradient)[..., first.shape[-1] :].any()


def _with(labels, **changes):
    return {**labels, **{name: np.asarray(value) for name, value in changes.items()}}


def test_an_image_of_a_later_class_is_of_none_of_the_others():
    it, logits = task("classification", added=(("more", 1),)), jnp.asarray([[2.0, 0.0, 0.0, 0.0]])
    labels = {"label": jnp.asarray([3]), "labelled": jnp.asarray([[False, False, False, True]])}
    expected = -jax.nn.log_softmax(logits)[0, 3]
    np.testing.assert_allclose(it.loss(logits, labels, SIZE)[0], expected, rtol=1e-6)
    assert task("classification").loss(logits, labels, SIZE)[0] == 0.0
    metric = it.new_metric()
    metric.update(
        {"probability": np.asarray(jax.nn.softmax(logits)[0])},
        {name: np.asarray(value[0]) for name, value in labels.items()},
        WHOLE,
    )
    assert metric.compute()["top1"] == 0.0


def test_background_of_later_masks_may_be_any_earlier_class():
    names = ("background", "cup", "ball", "tree")
    it = task("segmentation", names, added=(("more", 1),), loss_stride=8)
    logits = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    raw = np.broadcast_to(logits, (1, 8, 8, 4))
    among = np.asarray([[True, False, False, True]])

    @jax.jit
    def loss_and_gradient(raw, labels):
        return jax.value_and_grad(lambda raw: it.loss(raw, labels, SIZE)[0])(raw)

    for value, classes in ((0, [0, 1, 2]), (3, [3])):
        labels = {"mask": np.full((1, *SIZE), value), "labelled": among}
        expected = np.log(np.exp(logits).sum()) - np.log(np.exp(logits[classes]).sum())
        np.testing.assert_allclose(loss_and_gradient(raw, labels)[0], expected, rtol=1e-5)
    # Exemplars say of a pixel of an earlier class that it is not of the later one, and of their background nothing.
    among, moved = np.asarray([[True, True, True, False]]), []
    for value in (0, 1):
        labels = {"mask": np.full((1, *SIZE), value), "labelled": among}
        moved.append(np.asarray(loss_and_gradient(raw, labels)[1])[..., 3].sum())
    assert moved[0] < 0 < moved[1]
    without = task("segmentation", ("cup", "ball", "tree"), added=(("more", 1),), loss_stride=8)
    labels = {"mask": np.full((1, *SIZE), 2), "labelled": np.asarray([[False, False, True]])}
    assert jax.jit(lambda raw, labels: without.loss(raw, labels, SIZE)[0])(raw[..., :3], labels) > 0


EDITED = ("background", "cup", "ball")
# Raw outputs in which class 1 is best.
RAW = {
    "classification": jnp.asarray([[0.0, 9.0, 1.0]]),
    "multi_label": jnp.asarray([[-1.0, 9.0, 1.0]]),
    "segmentation": jnp.broadcast_to(jnp.asarray([0.0, 9.0, 1.0]), (1, 8, 8, 3)),
}


@pytest.mark.parametrize("kind", RAW)
def test_a_removed_class_is_never_an_answer(kind):
    it = task(kind, EDITED, removed=("cup",))
    assert it.removed == ("cup",)
    assert it.classes == EDITED
    result = it.predictions(RAW[kind], SIZE)
    if kind == "segmentation":
        assert (np.asarray(result["mask"]) == 2).all()
    else:
        assert float(result["probability"][0, 1]) < 1e-6
        assert set(it.to_json({"probability": np.asarray(result["probability"])[0]})["probability"]) == set(EDITED) - {
            "cup"
        }


def test_a_removed_class_of_a_detector_scores_nothing():
    raw = np.zeros((1, 84, 8), np.float32)
    raw[..., 6] = 9.0
    it = task("detection", EDITED, removed=("cup",))
    score = jax.jit(lambda raw: it.undecided.decode(it.finish(raw, SIZE))["score"])(raw)
    assert float(score[..., 1].max()) == 0.0
    assert float(score[..., 0].min()) > 0.0


@pytest.mark.parametrize("removed", [(), CLASSES[:1], CLASSES[3:]])
def test_a_detector_s_short_way_finds_the_same_boxes(removed):
    raw = np.concatenate(raw_boxes(CLASSES[:3], CLASSES[3:]), axis=-1)
    it = task("detection", added=(("more", 1),), removed=removed)
    for grown in (it, calibrated(it, Calibration(temperature=2.0))):
        actual = jax.jit(lambda raw, grown=grown: grown.predictions(raw, SIZE))(raw)
        expected = jax.jit(lambda raw, grown=grown: grown.decode(grown.finish(raw, SIZE)))(raw)
        assert actual.keys() == expected.keys()
        found = {CLASSES[label] for label in np.asarray(actual["label"])[np.asarray(actual["valid"])]}
        assert not found & set(removed)
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-4)


def test_what_is_labelled_as_a_removed_class_is_not_measured():
    metric = task("classification", EDITED, removed=("cup",)).new_metric()
    for label in (1, 2):
        metric.update({"probability": np.array([0.1, 0.0, 0.9])}, {"label": np.int32(label)}, WHOLE)
    assert metric.compute()["top1"] == 1.0
    metric = task("segmentation", EDITED, removed=("cup",)).new_metric()
    mask = np.full(SIZE, 2, np.int32)
    mask[:32] = 1
    metric.update({"mask": np.full(SIZE, 2)}, {"mask": mask}, WHOLE)
    assert metric.compute()["iou/ball"] == 1.0
    metric = task("multi_label", EDITED, removed=("cup",)).new_metric()
    metric.update({"probability": np.array([0.1, 0.0, 0.9])}, {"label": np.array([0.0, 1.0, 1.0], np.float32)}, WHOLE)
    assert metric.compute()["f1"] == 1.0


def test_the_figures_of_later_classes_are_of_them_alone():
    added = (("more", 2),)
    it = task("multi_label", added=added)
    metric, of_all = it.metric_of("more"), it.new_metric()
    for label in ([1, 0, 1, 0], [0, 1, 0, 1]):
        probability = np.array([0.5, 0.5, *label[2:]])  # the first classes are guessed
        for one in (metric, of_all):
            one.update({"probability": probability}, {"label": np.array(label, np.float32)}, WHOLE)
    assert metric.compute()["map"] == 1.0 > of_all.compute()["map"]

    metric = task("classification", added=added).metric_of("more")
    for label in range(4):  # all are taken for the last
        metric.update({"probability": np.array([0.0, 0.0, 0.1, 0.9])}, {"label": np.int32(label)}, WHOLE)
    assert metric.compute()["top1"] == 0.5

    metric = task("detection", added=added).metric_of("more")
    target = {name: value[0] for name, value in boxes(0, 2).items()}
    found = {
        "boxes_xyxy": target["boxes_xyxy"][1:],
        "label": np.array([2]),
        "score": np.ones(1),
        "valid": np.ones(1, bool),
    }
    metric.update(found, {**target, "area": np.ones(2, np.float32)}, WHOLE)
    assert metric.compute()["map_50_95"] == pytest.approx(1.0)


def test_pixels_of_first_classes_are_background_to_the_figures_of_later_masks():
    classes = ("background", "cup", "ball", "tree")
    it = task("segmentation", classes, added=(("more", 1),))
    mask = np.full(SIZE, 3, np.uint8)
    mask[:16], mask[16:32] = 0, 1
    predicted = np.where(mask == 1, 3, mask)  # cups are taken for trees
    predicted[16:24] = 2
    metric = it.metric_of("more")
    metric.update({"mask": predicted}, {"mask": mask}, WHOLE)
    figures = metric.compute()
    assert figures["iou/tree"] == pytest.approx(32 / 40)
    assert figures["iou/background"] == pytest.approx(16 / 24)
    assert figures["miou"] == pytest.approx((32 / 40 + 16 / 24) / 2)
    metric = task("segmentation", CLASSES, added=(("more", 1),)).metric_of("more")
    metric.update({"mask": np.full(SIZE, 3)}, {"mask": mask}, WHOLE)
    assert metric.compute()["miou"] == 1.0


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"removed": ("cupp",)}, "did you mean cup"),
        ({"renamed": (("mug", "cupp"),)}, "did you mean cup"),
        ({"removed": EDITED}, r"removed: expected one of the first classes to stay \(background, cup, ball\)"),
        ({"removed": EDITED[:2], "added": (("more", 1),)}, r"one of the first classes to stay \(background, cup\)"),
        ({"renamed": ("mug",)}, "expected pairs of names"),
    ],
)
def test_edits_of_classes_that_are_not_there_are_refused(edits, words):
    with pytest.raises(UserError, match=words):
        task("classification", EDITED, **edits)
