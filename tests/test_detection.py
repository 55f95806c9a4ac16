"""Detection: assignment, loss, missing labels and crowds, decoding, mean average precision on known cases."""

import functools
import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from mtl_jax.errors import UserError
from mtl_jax.kernels import cpu_kernels
from mtl_jax.tasks import assignment, boxes, detection, detection_cells
from mtl_jax.tasks.base import Geometry

CLASSES = ("cat", "dog", "eel")
SIZE = (64, 96)
STRIDES = (8, 16, 32)
CENTRES, CELL_STRIDES = boxes.cell_grid(SIZE, STRIDES)
CELLS = len(CENTRES)
CHANNELS = 5 + len(CLASSES)
task = detection.Detection("det", CLASSES)
loss_and_gradient = jax.jit(
    jax.value_and_grad(lambda raw, labels: task.loss(raw, labels, image_size=SIZE), has_aux=True)
)
sim_ota = jax.jit(functools.partial(assignment.sim_ota, image_size=SIZE, strides=STRIDES))
decode = jax.jit(task.decode)


def labels_of(*images, slots=6, crowd=()):
    """Each image is a list of (x0, y0, x1, y1, class), or None where its labels are missing."""
    box = np.zeros((len(images), slots, 4), np.float32)
    label = np.zeros((len(images), slots), np.int32)
    valid = np.zeros((len(images), slots), bool)
    for row, image in enumerate(images):
        if image is None:
            box[row] = np.nan
        for column, (*corners, kind) in enumerate(image or []):
            box[row, column], label[row, column], valid[row, column] = corners, kind, True
    crowds = np.zeros((len(images), slots), bool)
    for row, column in crowd:
        crowds[row, column], valid[row, column] = True, False
    return {
        "boxes_xyxy": jnp.array(box),
        "label": jnp.array(label),
        "valid": jnp.array(valid),
        "crowd": jnp.array(crowds),
    }


TWO = [(10, 10, 40, 50, 0), (60, 20, 66, 25, 2)]
ONE = [(20, 0, 90, 60, 1)]


def raw_of(key, batch):
    return 0.5 * jax.random.normal(key, (batch, CELLS, CHANNELS))


def assign(corners, label=None, valid=None, raw=None):
    """Assigns boxes to cells that predict their prior boxes, or `raw`."""
    outputs = task.finish(jnp.zeros((1, CELLS, CHANNELS)) if raw is None else raw, image_size=SIZE)[0]
    corners = jnp.array(corners, jnp.float32)
    label = jnp.zeros(len(corners), jnp.int32) if label is None else jnp.array(label)
    valid = jnp.ones(len(corners), bool) if valid is None else jnp.array(valid)
    corner_outputs = boxes.to_corners(outputs[:, :4])
    return np.asarray(sim_ota(corner_outputs, outputs[:, 4], outputs[:, 5:], corners, label, valid))


def test_a_box_is_assigned_to_cells_around_its_centre_that_fit_its_size():
    owner = assign([[16, 16, 48, 48]])  # 32 px: the prior of stride 8
    selected = np.flatnonzero(owner == 0)
    assert 1 < len(selected) <= assignment.MAX_CELLS_PER_BOX
    assert (np.abs(CENTRES[selected] - 32) < 2.5 * CELL_STRIDES[selected, None]).all()
    assert {(28, 28), (36, 28), (28, 36), (36, 36)} <= {tuple(centre) for centre in CENTRES[selected].tolist()}


@pytest.mark.parametrize("size", [0.5, 3.0, 9.0])
@pytest.mark.parametrize("centre", [(0.3, 0.2), (95.5, 63.5), (40.0, 24.0), (33.0, 35.0)])
def test_the_smallest_boxes_get_a_cell_wherever_they_are(size, centre):
    x, y = centre
    owner = assign([[x - size / 2, y - size / 2, x + size / 2, y + size / 2]])
    assert (owner == 0).sum() >= 1


def test_every_valid_box_gets_a_cell_in_a_crowded_image():
    numbers = np.random.default_rng(0)
    middle = np.array([48, 32]) + numbers.uniform(-6, 6, (24, 2))
    corners = np.concatenate([middle - 5, middle + 5], axis=1)
    corners[:8] = corners[0]  # eight boxes the same
    valid = np.arange(24) != 9
    owner = assign(corners, valid=valid)
    counts = np.bincount(owner, minlength=25)[:24]
    assert (counts[valid] >= 1).all()
    assert counts[9] == 0
    assert (counts <= assignment.MAX_CELLS_PER_BOX).all()


def test_more_boxes_than_cells_share_what_there_is():
    owner = assign(np.tile([[46.0, 30.0, 50.0, 34.0]], (100, 1)))
    occupied = owner[owner < 100]
    assert len(np.unique(occupied)) == len(occupied) == 25 + 20 + 6  # the windows of the three levels on the grid


def test_a_box_far_outside_the_image_is_left_alone():
    assert (assign([[500.0, 500.0, 520.0, 520.0]]) == 1).all()


def test_the_cell_goes_to_the_box_that_it_predicts_best():
    # Two boxes around one centre; every cell of stride 8 predicts the class of the second.
    raw = jnp.zeros((1, CELLS, CHANNELS)).at[..., 5 + 2].set(6.0)
    owner = assign([[16, 16, 48, 48], [17, 17, 49, 49]], label=[0, 2], raw=raw)
    assert (owner == 1).sum() > (owner == 0).sum() >= 1


def test_loss_of_one_assigned_cell_equals_hand_computed_value():
    # One level of one cell: its prior box of 32 px at (4, 4) against the box (-12, -12, 20, 4), IoU 1/2.
    single = detection.Detection("det", CLASSES, strides=(8,))
    labels = labels_of([(-12, -12, 20, 4, 1)])
    raw = jnp.zeros((1, 1, CHANNELS))
    _, components = jax.jit(lambda raw: single.loss(raw, labels, image_size=(8, 8)))(raw)
    v = 4 / np.pi**2 * (np.arctan(1) - np.arctan(2)) ** 2
    complete = 0.5 - 8**2 / (2 * 32**2) - v**2 / (0.5 + v)
    np.testing.assert_allclose(components["box"], 5 * (1 - complete), rtol=1e-5)
    prior = detection_cells.OBJECTNESS_PRIOR
    entropy = -0.5 * np.log(prior) - 0.5 * np.log(1 - prior)
    np.testing.assert_allclose(components["objectness"], (0.5 - prior) ** 2 * entropy, rtol=1e-5)
    np.testing.assert_allclose(components["class"], 3 * np.log(2), rtol=1e-5)  # logits 0, whatever the target


def test_loss_of_an_image_without_objects_is_that_of_its_objectness():
    (value, components), gradient = loss_and_gradient(jnp.zeros((1, CELLS, CHANNELS)), labels_of([]))
    prior = detection_cells.OBJECTNESS_PRIOR
    np.testing.assert_allclose(value, -CELLS * prior**2 * np.log(1 - prior), rtol=1e-4)
    assert components["box"] == components["class"] == 0
    assert (gradient[..., 4] > 0).all()
    assert not np.any(gradient[..., :4])


def test_missing_labels_add_neither_loss_nor_gradient(key):
    raw = raw_of(key, 2)
    (value, _), gradient = loss_and_gradient(raw, labels_of(None, None))
    assert value == 0
    assert not np.any(gradient)
    (value, _), gradient = loss_and_gradient(raw, labels_of(TWO, None))
    (alone, _), gradient_alone = loss_and_gradient(raw, labels_of(TWO, None) | {"label": jnp.full((2, 6), 2)})
    (first, _), first_gradient = loss_and_gradient(raw[:1], labels_of(TWO))
    np.testing.assert_allclose(value, first, rtol=1e-5)
    np.testing.assert_allclose(gradient[:1], first_gradient, atol=1e-6)
    assert not np.any(gradient[1])
    assert np.isfinite(gradient).all()
    assert value != alone
    assert np.any(gradient != gradient_alone)


def test_a_crowd_excuses_the_cells_inside_it(key):
    raw = raw_of(key, 1)
    people = (30, 30, 90, 60, 0)
    (_, components), gradient = loss_and_gradient(raw, labels_of([*TWO, people], crowd=[(0, 2)]))
    (_, without), _ = loss_and_gradient(raw, labels_of(TWO))
    inside = ((people[:2] <= CENTRES) & (people[2:4] >= CENTRES)).all(axis=1)
    excused = gradient[0, :, 4] == 0
    assert inside.sum() > 10
    assert not excused[~inside].any()
    assert excused[inside].sum() >= inside.sum() - 1  # the dog's box is in it too
    assert components["objectness"] < without["objectness"]
    np.testing.assert_allclose(components["box"], without["box"], rtol=1e-6)


def test_loss_does_not_depend_on_the_order_of_images_or_boxes(key):
    raw, order = raw_of(key, 2), jnp.array([1, 0])
    labels = labels_of(TWO, ONE)
    (value, _), gradient = loss_and_gradient(raw, labels)
    (turned, _), turned_gradient = loss_and_gradient(raw[order], jax.tree.map(lambda x: x[order], labels))
    np.testing.assert_allclose(value, turned, rtol=1e-5)
    np.testing.assert_allclose(gradient[order], turned_gradient, atol=1e-6)
    (turned, _), _ = loss_and_gradient(raw, jax.tree.map(lambda x: x[:, ::-1], labels))
    np.testing.assert_allclose(value, turned, rtol=1e-5)


def test_broken_boxes_never_reach_the_gradient(key):
    labels = labels_of(TWO, ONE)
    labels["boxes_xyxy"] = labels["boxes_xyxy"].at[0, 2].set(jnp.nan).at[1, 1].set(jnp.inf)
    labels["boxes_xyxy"] = labels["boxes_xyxy"].at[1, 2].set(30.0)  # of no size
    labels["valid"] = labels["valid"].at[:, 1:3].set(True)
    extreme = raw_of(key, 2).at[0, :50].mul(1e4)
    (value, _), gradient = loss_and_gradient(extreme, labels)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_gradient_equals_finite_differences_while_targets_hold_still(key):
    # With objects the targets (assignment, IoU), constants of the gradient, move in a finite difference.
    empty = labels_of([])
    raw = raw_of(key, 1)
    check_grads(
        jax.jit(lambda raw: task.loss(raw, empty, image_size=SIZE)[0]),
        (raw,),
        order=1,
        modes="rev",
        rtol=0.02,
    )


def test_gradients_of_single_examples_are_those_of_a_batch_of_one(key):
    raw, labels = raw_of(key, 2), labels_of(TWO, ONE)
    per_example = jax.jit(
        jax.vmap(
            lambda raw, labels: jax.grad(
                lambda raw: task.loss(raw[None], jax.tree.map(lambda x: x[None], labels), image_size=SIZE)[0]
            )(raw)
        )
    )(raw, labels)
    alone = loss_and_gradient(raw[1:], jax.tree.map(lambda x: x[1:], labels))[1]
    np.testing.assert_allclose(per_example[1], alone[0], atol=1e-6)


def test_class_gradient_is_probability_less_quality(key):
    raw = raw_of(key, 1)
    (_, _), gradient = loss_and_gradient(raw, labels_of([TWO[0]]))
    outputs = task.finish(raw, image_size=SIZE)[0]
    learns = np.any(gradient[0, :, :4] != 0, axis=-1)
    quality = boxes.iou(boxes.to_corners(outputs[:, :4]), jnp.tile(jnp.array([TWO[0][:4]], jnp.float32), (CELLS, 1)))
    target = np.zeros((CELLS, 3))
    target[:, 0] = quality
    expected = (np.asarray(jax.nn.sigmoid(outputs[:, 5:])) - target)[learns] / learns.sum()
    np.testing.assert_allclose(gradient[0, learns, 5:], expected, atol=1e-6)


def test_following_the_gradient_finds_the_boxes():
    labels = labels_of(TWO, ONE)
    raw = jnp.zeros((2, CELLS, CHANNELS))

    optimizer = optax.adam(0.05)

    def step(_, carry):
        raw, state = carry
        update, state = optimizer.update(loss_and_gradient(raw, labels)[1], state)
        return optax.apply_updates(raw, update), state

    raw, _ = jax.jit(lambda raw: jax.lax.fori_loop(0, 400, step, (raw, optimizer.init(raw))))(raw)
    prediction = jax.tree.map(np.asarray, decode(task.finish(raw, image_size=SIZE)))
    metric = task.new_metric()
    for index, image in enumerate((TWO, ONE)):
        target = {"boxes_xyxy": np.array(image)[:, :4], "label": np.array(image)[:, 4].astype(int)}
        metric.update({name: leaf[index] for name, leaf in prediction.items()}, target, identity(*SIZE))
    assert metric.compute()["map_50"] > 0.95


def test_raw_with_another_number_of_cells_is_refused():
    with pytest.raises(ValueError, match=f"expected {CELLS} cells"):
        task.finish(jnp.zeros((1, 10, CHANNELS)), image_size=SIZE)


def outputs_of(*rows, cells=CELLS):
    """Finished outputs of one image: rows (cx, cy, w, h, objectness logit, class logits), the rest silent."""
    outputs = np.full((1, cells, CHANNELS), -20.0, np.float32)
    if rows:
        outputs[0, : len(rows)] = rows
    return jnp.array(outputs)


def test_decoding_keeps_the_best_of_each_class_and_sorts_by_score():
    prediction = decode(
        outputs_of(
            [20, 20, 10, 10, 0.0, 2.0, -9.0, -9.0],
            [21, 20, 10, 10, 3.0, 2.0, -9.0, -9.0],  # better than the first, of the same class
            [20, 20, 10, 10, -1.0, -9.0, 1.0, -9.0],  # another class
            [60, 20, 10, 10, 1.0, 2.0, -9.0, -9.0],  # elsewhere
        )
    )
    valid = np.asarray(prediction["valid"][0])
    assert valid.shape == (100,)
    shown = valid & (np.asarray(prediction["score"][0]) > 0.1)
    np.testing.assert_array_equal(np.flatnonzero(shown), [0, 1, 2])
    np.testing.assert_array_equal(prediction["label"][0, :3], [0, 0, 1])
    score = lambda x, y: np.sqrt(1 / (1 + np.exp(-x)) / (1 + np.exp(-y)))  # noqa: E731 one formula, used often
    np.testing.assert_allclose(prediction["score"][0, 0], score(3, 2), rtol=1e-5)
    np.testing.assert_allclose(prediction["score"][0, 2], score(-1, 1), rtol=1e-5)
    # The box that went has moved the one that stayed, 1 px to its right, by its share of their scores.
    shift = score(0, 2) / (score(0, 2) + score(3, 2))
    np.testing.assert_allclose(prediction["boxes_xyxy"][0, 0], [16 - shift, 15, 26 - shift, 25], atol=0.01)


def test_silence_decodes_to_nothing_and_invalid_entries_are_zero():
    prediction = decode(outputs_of())
    assert not np.any(prediction["valid"])
    assert not any(np.any(leaf) for leaf in prediction.values())


def test_at_most_max_detections_are_returned():
    few = detection.Detection("det", CLASSES, max_detections=3, candidates=8)
    rows = [[8 * i + 4, 4, 6, 6, i / 10, 3.0, -20, -20] for i in range(10)]
    prediction = few.decode(outputs_of(*rows))
    assert prediction["score"].shape == (1, 3)
    np.testing.assert_allclose(prediction["boxes_xyxy"][0, :, 0], [73, 65, 57], rtol=1e-6)


@pytest.mark.skipif(not cpu_kernels.available(), reason="no C++ compiler: there is one way alone")
@pytest.mark.parametrize("class_counts", [(1,), (8,), (20,), (7, 3), (9, 1, 2)])
@pytest.mark.parametrize(
    "selection",
    [
        detection_cells.Selection(0.005, 0.5, 0.6, candidates=512, max_detections=100),
        detection_cells.Selection(0.3, 0.3, 1.0, candidates=20, max_detections=3),
        detection_cells.Selection(0.0, 1.0, 0.2, candidates=40, max_detections=40),
    ],
)
def test_boxes_are_decoded_alike_with_and_without_the_kernel(class_counts, selection):
    generator = np.random.default_rng(0)
    shape, columns = (2, 300), []
    for count in class_counts:
        logits = generator.normal(0, 3, (*shape, 1 + count))
        logits[1] = logits[1].round()  # many scores are equal
        columns += [generator.uniform(0, 40, (*shape, 2)), generator.uniform(5, 20, (*shape, 2)), logits]
    outputs = jnp.asarray(np.concatenate(columns, axis=-1), jnp.float32)
    _require_equal_with_and_without_kernel(
        lambda outputs: detection_cells.decode_parts(outputs, selection, class_counts), outputs
    )


@pytest.mark.skipif(not cpu_kernels.available(), reason="no C++ compiler: there is one way alone")
@pytest.mark.parametrize("class_counts", [(3,), (8,), (7, 3)])
def test_boxes_are_predicted_alike_with_and_without_the_kernel(class_counts):
    generator = np.random.default_rng(0)
    raw = generator.normal(0, 2, (2, 84, sum(5 + count for count in class_counts)))
    raw[..., 2:4] *= 4  # some log-sizes are beyond the largest
    selection = detection_cells.Selection(0.005, 0.5, 0.6, candidates=50, max_detections=20)
    _require_equal_with_and_without_kernel(
        lambda raw: detection_cells.predictions(raw, selection, class_counts, image_size=(64, 64), strides=(8, 16, 32)),
        jnp.asarray(raw, jnp.float32),
    )


def test_predictions_need_the_cells_of_the_image():
    raw, selection = jnp.zeros((1, 20, 8)), detection_cells.Selection(0.005, 0.5, 0.6, 10, 5)
    with pytest.raises(ValueError, match=r"expected 84 cells for an image of \(64, 64\) px"):
        detection_cells.predictions(raw, selection, (3,), image_size=(64, 64), strides=(8, 16, 32))


def _require_equal_with_and_without_kernel(function, cells):
    actual = jax.jit(function)(cells)
    with cpu_kernels.left_out():
        expected = jax.jit(lambda cells: function(cells))(cells)
    assert actual["valid"].any()
    for name in ("label", "valid"):
        np.testing.assert_array_equal(actual[name], expected[name])
    for name in ("score", "boxes_xyxy"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not cpu_kernels.available(), reason="no C++ compiler: there is one way alone")
def test_cells_without_a_number_are_no_detections():
    numbers, nan = [20, 20, 10, 10, 0.0, 2.0, -9.0, -9.0], [21, 20, 10, 10, np.nan, 2.0, np.nan, -9.0]
    expected = decode(outputs_of(numbers))
    for name, values in decode(outputs_of(numbers, nan)).items():
        np.testing.assert_array_equal(values, expected[name])


def identity(height, width):
    return Geometry(1.0, 1.0, 0.0, 0.0, height, width)


def predict(corners, score=None, label=None):
    corners = np.array(corners, float).reshape(-1, 4)
    count = len(corners)
    return {
        "boxes_xyxy": corners,
        "score": np.linspace(0.9, 0.5, count) if score is None else np.array(score),
        "label": np.zeros(count, int) if label is None else np.array(label),
        "valid": np.ones(count, bool),
    }


def truth(corners, label=None, **fields):
    corners = np.array(corners, float).reshape(-1, 4)
    return {
        "boxes_xyxy": corners,
        "label": np.zeros(len(corners), int) if label is None else np.array(label),
        **fields,
    }


def precision_of(*images, size=(200, 200)):
    metric = task.new_metric()
    for prediction, target in images:
        metric.update(prediction, target, identity(*size))
    return metric.compute()


A, B = [10, 10, 50, 50], [100, 100, 140, 160]


def test_perfect_detections_score_one():
    figures = precision_of((predict([A, B], label=[0, 1]), truth([A, B], [0, 1])))
    np.testing.assert_allclose([figures["map_50_95"], figures["map_50"], figures["map_75"]], 1.0)
    np.testing.assert_allclose(figures["map_medium"], 1.0)
    assert np.isnan(figures["map_small"])  # there is none


def test_a_shift_by_half_of_the_width_is_no_detection():
    assert precision_of((predict([[30, 10, 70, 50]]), truth([A])))["map_50"] == 0  # IoU 1/3


def test_the_overlap_decides_the_thresholds_that_count():
    figures = precision_of((predict([[10, 10, 50, 41]]), truth([A])))  # IoU 0.775: 0.50, 0.55, ... 0.75
    np.testing.assert_allclose([figures["map_50"], figures["map_75"], figures["map_50_95"]], [1, 1, 0.6])


def test_a_missed_object_halves_the_recall():
    # Precision 1 up to recall 0.5, which are 51 of COCO's 101 points of recall.
    np.testing.assert_allclose(precision_of((predict([A]), truth([A, B])))["map_50"], 51 / 101)


def test_a_duplicate_counts_as_wrong():
    # Ranked between the two right ones it leaves precision 2/3 for the second half of the recalls.
    figures = precision_of((predict([A, A, B]), truth([A, B])))
    np.testing.assert_allclose(figures["map_50"], (51 + 50 * 2 / 3) / 101)


def test_a_wrong_class_is_no_detection():
    assert precision_of((predict([A], label=[1]), truth([A], [0])))["map_50"] == 0


def test_crowds_neither_count_nor_make_detections_wrong():
    crowd = truth([A, B], crowd=np.array([False, True]))
    inside = [[105, 105, 120, 120], [120, 120, 135, 150]]
    detections = predict([*inside, A])
    np.testing.assert_allclose(precision_of((detections, crowd))["map_50"], 1)
    np.testing.assert_allclose(precision_of((detections, truth([A])))["map_50"], 1 / 3)


def test_detections_on_an_image_without_objects_count_as_wrong():
    figures = precision_of((predict([A], score=[0.5]), truth([A])), (predict([B], score=[0.8]), truth([])))
    np.testing.assert_allclose(figures["map_50"], 0.5)


def test_without_any_object_the_figures_are_nan():
    figures = precision_of((predict([A]), truth([])))
    assert figures.keys() == set(detection.MeanAveragePrecision(name="det", classes=CLASSES).compute())
    assert all(np.isnan(value) for value in figures.values())
    assert all(np.isnan(value) for value in precision_of((predict([A]), truth([A], crowd=np.array([True])))).values())


def test_images_without_labels_are_left_out_and_silence_scores_zero():
    missing = truth([[np.nan] * 4])
    np.testing.assert_allclose(precision_of((predict([A]), truth([A])), (predict([B]), missing))["map_50"], 1)
    assert precision_of((predict([]), truth([A])))["map_50"] == 0


def test_the_area_of_the_target_decides_its_size():
    figures = precision_of((predict([A]), truth([A], area=np.array([900.0]))))
    np.testing.assert_allclose(figures["map_small"], 1)  # the box alone, 40 x 40 px, is medium
    assert np.isnan(figures["map_medium"])


def test_detections_are_moved_to_the_original_image():
    metric = task.new_metric()
    geometry = Geometry(0.5, 0.25, 3.0, 7.0, 200, 180)
    box = np.array([[10, 20, 180, 200]], float)
    placed = box * [0.5, 0.25, 0.5, 0.25] + [3, 7, 3, 7] + [0, 0, 9, 9]  # sticks out of the image
    metric.update(predict(placed), truth(box), geometry)
    np.testing.assert_allclose(metric.compute()["map_50_95"], 1)


def test_pycocotools_stays_silent(capsys):
    precision_of((predict([A]), truth([A])))
    assert capsys.readouterr().out == ""


def test_a_label_outside_the_table_is_refused():
    with pytest.raises(UserError, match="'det': expected labels below 3, found 5"):
        task.new_metric().update(predict([]), truth([A], [5]), identity(9, 9))


def test_ground_truth_as_predictions_scores_one_and_noise_scores_nothing_on_real_labels(data_root):
    content = json.loads((data_root / "mini-coco-det/annotations/instances_val.json").read_text())
    kinds = {category["id"]: index for index, category in enumerate(content["categories"])}
    judge = detection.Detection("det", tuple(category["name"] for category in content["categories"]))
    perfect, noise = judge.new_metric(), judge.new_metric()
    numbers = np.random.default_rng(0)
    for image in content["images"]:
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        box = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        box[:, 2:] += box[:, :2]
        label = np.array([kinds[entry["category_id"]] for entry in entries], int)
        crowd = np.array([entry["iscrowd"] for entry in entries], bool)
        target = truth(box, label, crowd=crowd, area=np.array([entry["area"] for entry in entries]))
        geometry = identity(image["height"], image["width"])
        perfect.update(predict(box[~crowd], label=label[~crowd]), target, geometry)
        corner = numbers.uniform(0, 0.7, (20, 2)) * [image["width"], image["height"]]
        noise.update(
            predict(np.concatenate([corner, corner + 80], axis=1), label=numbers.integers(0, len(kinds), 20)),
            target,
            geometry,
        )
    figures = perfect.compute()
    np.testing.assert_allclose(list(figures.values()), 1.0)
    assert noise.compute()["map_50"] < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ()}, "at least 1 class"),
        ({"strides": ()}, "at least one stride"),
        ({"nms_iou": 0.0}, "nms_iou: expected more than 0 and at most 1"),
        ({"score_threshold": 1.5}, "score_threshold: expected at least 0 and less than 1"),
        ({"max_detections": 600}, "at most candidates, 512, found 600"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        detection.Detection("det", **({"classes": CLASSES} | options))


def test_drawing_frames_detections_of_a_fair_score():
    figure, axes = plt.subplots()
    axes.set(xlim=(0, 100), ylim=(100, 0))  # of an image of 100 px
    prediction = predict([A, B], score=[0.8, 0.2], label=[1, 0])
    task.draw(axes, prediction)
    assert [text.get_text() for text in axes.texts] == ["dog 0.80"]
    assert [patch.get_bbox().extents.tolist() for patch in axes.patches] == [A]
    plt.close(figure)


@pytest.mark.parametrize("count", [1, 4, 9])  # fewer, as many as some, and more than there are candidates
def test_detections_are_the_first_that_stay_and_zeros(count):
    keep = np.array([False, True, True, False, True, False, True])
    index, is_kept = jax.jit(detection_cells._first, static_argnums=1)(keep, count)
    expected = np.flatnonzero(keep)[:count]
    np.testing.assert_array_equal(np.asarray(index)[: len(expected)], expected)
    np.testing.assert_array_equal(is_kept, np.arange(count) < len(expected))
    assert np.asarray(index).max() < len(keep)
