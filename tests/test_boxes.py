"""Boxes: overlaps by hand, decoding and its inverse, suppression against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mtl_jax.tasks import boxes

UNIT = [0.0, 0.0, 2.0, 2.0]
# Compiled once: operation by operation the same tests take many times as long.
suppress = jax.jit(boxes.suppress, static_argnames="iou_threshold")
iou, iou_matrix, generalised_iou, complete_iou, decode, encode = (
    jax.jit(function)
    for function in (
        boxes.iou,
        boxes.iou_matrix,
        boxes.generalised_iou,
        boxes.complete_iou,
        boxes.decode,
        boxes.encode,
    )
)


def array(*rows: list[float]) -> jax.Array:
    return jnp.array(rows, jnp.float32)


def random_boxes(seed: int, count: int, extent: float = 20.0) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    low = numbers.uniform(0, extent, (count, 2))
    return np.concatenate([low, low + numbers.uniform(1, extent, (count, 2))], axis=1).astype(np.float32)


def numpy_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


@pytest.mark.parametrize(
    ("another", "expected", "expected_generalised"),
    [
        (UNIT, 1.0, 1.0),
        ([1.0, 0.0, 3.0, 2.0], 1 / 3, 1 / 3),  # half shifted; the hull is filled
        ([1.0, 1.0, 3.0, 3.0], 1 / 7, 1 / 7 - 2 / 9),  # hull 9, union 7
        ([3.0, 0.0, 5.0, 2.0], 0.0, -2 / 10),  # apart: hull 10, union 8
        ([0.5, 0.5, 1.5, 1.5], 0.25, 0.25),  # contained
    ],
)
def test_overlaps_equal_hand_computed_values(another, expected, expected_generalised):
    a, b = array(UNIT), array(another)
    np.testing.assert_allclose(iou(a, b)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(iou_matrix(a, b)[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(generalised_iou(a, b)[0], expected_generalised, rtol=1e-6, atol=1e-7)


def test_complete_iou_equals_hand_computed_values():
    # Same shape, shifted by (1, 1): distance 2, squared diagonal of the hull 18, no term of the aspect.
    np.testing.assert_allclose(complete_iou(array(UNIT), array([1, 1, 3, 3]))[0], 1 / 7 - 2 / 18, rtol=1e-6)
    # Same centre, 4 x 2 inside 4 x 4: IoU 1/2, v = 4/pi² (atan 2 - atan 1)², alpha = v / (1/2 + v).
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan(1)) ** 2
    expected = 0.5 - v / (0.5 + v) * v
    np.testing.assert_allclose(complete_iou(array([0, 1, 4, 3]), array([0, 0, 4, 4]))[0], expected, rtol=1e-6)


def test_empty_boxes_overlap_nothing_and_have_finite_gradients():
    empty = array([1, 1, 1, 1])
    for overlap in (iou, generalised_iou, complete_iou):
        assert np.isfinite(overlap(empty, empty)).all()
        gradient = jax.jit(jax.grad(lambda a, overlap=overlap: overlap(a, empty).sum()))(empty)
        assert np.isfinite(gradient).all()
    assert iou(empty, array(UNIT))[0] == 0


def test_gradients_equal_finite_differences():
    a, b = jnp.array(random_boxes(0, 6)), jnp.array(random_boxes(1, 6))
    check_grads(jax.jit(lambda a: generalised_iou(a, b).sum()), (a,), order=1, modes="rev", rtol=0.02, eps=1e-2)
    same_aspect = boxes.to_corners(boxes.to_centre_size(a) * jnp.array([[1.1, 0.9, 1.2, 1.2]]))
    # Where the aspect ratios agree, alpha (constant in the gradient) does not matter.
    check_grads(lambda c: complete_iou(c, a).sum(), (same_aspect,), order=1, modes="rev", rtol=0.02, eps=1e-2)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_overlaps_are_symmetric_bounded_and_scale_free(seed):
    a, b = jnp.array(random_boxes(seed, 8)), jnp.array(random_boxes(seed + 1, 8))
    overlap, generalised, complete = iou(a, b), generalised_iou(a, b), complete_iou(a, b)
    assert (np.asarray((overlap, -overlap)) <= [[1.0], [0.0]]).all()
    assert (np.asarray(generalised) <= np.asarray(overlap) + 1e-6).all()
    assert (np.asarray(generalised) >= -1).all()
    assert (np.asarray(complete) <= np.asarray(overlap) + 1e-6).all()
    np.testing.assert_allclose(generalised_iou(b, a), generalised, atol=1e-6)
    np.testing.assert_allclose(complete_iou(7 * a, 7 * b), complete, atol=1e-5)


def test_the_grid_lists_levels_in_order_and_rows_first():
    centres, strides = boxes.cell_grid((16, 24), (8, 16))
    np.testing.assert_array_equal(centres[:6], [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]])
    np.testing.assert_array_equal(centres[6:], [[8, 8], [24, 8]])
    np.testing.assert_array_equal(strides, [8] * 6 + [16] * 2)


def test_a_zero_offset_is_the_prior_box_of_its_cell():
    centres, strides = boxes.cell_grid((16, 16), (8, 16))
    decoded = decode(jnp.zeros((5, 4)), centres, strides)
    np.testing.assert_allclose(decoded[0], [4, 4, 32, 32])
    np.testing.assert_allclose(decoded[4], [8, 8, 64, 64])


def test_encode_inverts_decode_and_sizes_stay_finite():
    centres, strides = boxes.cell_grid((32, 32), (8, 16))
    offsets = jax.random.normal(jax.random.key(0), (3, 20, 4))
    np.testing.assert_allclose(encode(decode(offsets, centres, strides), centres, strides), offsets, atol=1e-5)
    huge = decode(jnp.full((20, 4), 1e4), centres, strides)
    np.testing.assert_allclose(huge[:, 2].max(), 64 * np.exp(boxes.MAX_LOG_SIZE), rtol=1e-5)


def test_corners_and_centre_size_invert_each_other():
    corners = jnp.array(random_boxes(3, 5))
    np.testing.assert_allclose(boxes.to_corners(boxes.to_centre_size(corners)), corners, atol=1e-5)
    np.testing.assert_allclose(boxes.to_centre_size(array([1, 2, 5, 10]))[0], [3, 6, 4, 8])


def greedy_suppression(corners, label, valid, threshold):
    keep = np.zeros(len(corners), bool)
    for i in range(len(corners)):
        beaten = any(
            keep[j] and label[i] == label[j] and numpy_iou(corners[i], corners[j]) > threshold for j in range(i)
        )
        keep[i] = valid[i] and not beaten
    return keep


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_suppression_equals_the_greedy_loop(seed, threshold):
    numbers = np.random.default_rng(seed)
    corners = random_boxes(seed, 60)
    label, valid = numbers.integers(0, 2, 60), numbers.random(60) < 0.8
    retained = suppress(jnp.array(corners), jnp.array(label, jnp.int32), jnp.array(valid), iou_threshold=threshold)
    expected = greedy_suppression(corners, label, valid, threshold)
    assert 0 < expected.sum() < valid.sum()
    np.testing.assert_array_equal(retained, expected)


def test_suppression_follows_a_long_chain_of_overlaps():
    # Each box overlaps only its neighbours (IoU 1/3), so that every second one stays.
    remaining = np.arange(30, dtype=np.float32)
    chain = np.stack([remaining, 0 * remaining, remaining + 2, 0 * remaining + 1], axis=1)
    retained = suppress(jnp.array(chain), jnp.zeros(30, jnp.int32), jnp.ones(30, bool), iou_threshold=0.3)
    np.testing.assert_array_equal(retained, np.arange(30) % 2 == 0)


def test_boxes_of_a_class_that_overlap_are_averaged_by_their_scores():
    pair = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]]
    result = jnp.array([*pair, pair[1], pair[1], [50.0, 50.0, 60.0, 60.0]])
    label, valid = jnp.array([0, 0, 1, 0, 0]), jnp.array([True, True, True, False, True])
    voted = boxes.vote(result, jnp.array([0.9, 0.3, 0.9, 0.9, 0.5]), label, valid, iou_threshold=0.6)
    mean = [0.0, 0.0, 10.0, (0.9 * 10 + 0.3 * 8) / 1.2]
    np.testing.assert_allclose(voted[:2], [mean, mean], rtol=1e-5)  # not those of another class, or not valid
    np.testing.assert_allclose(voted[2], result[2], rtol=1e-5)
    np.testing.assert_allclose(voted[4], result[4], rtol=1e-5)


def test_some_boxes_are_moved_as_all_of_them_would_be():
    generator = np.random.default_rng(0)
    corner, size = generator.uniform(0, 30, (40, 2)), generator.uniform(5, 20, (40, 2))
    result, score = jnp.array(np.concatenate([corner, corner + size], axis=1)), jnp.array(generator.uniform(0.1, 1, 40))
    label, valid = jnp.array(generator.integers(0, 2, 40)), jnp.array(generator.random(40) > 0.2)
    some = jnp.array([3, 0, 17, 39])
    vote = jax.jit(boxes.vote, static_argnames="iou_threshold")
    voted = vote(result, score, label, valid, iou_threshold=0.3)
    moved = vote(result, score, label, valid, iou_threshold=0.3, shifted_boxes=(result[some], label[some]))
    np.testing.assert_allclose(moved, voted[some], rtol=1e-6)
    assert float(jnp.abs(moved - result[some]).max()) > 1


def test_a_vote_above_every_overlap_changes_nothing():
    result = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    voted = boxes.vote(result, jnp.full(3, 0.5), jnp.zeros(3, jnp.int32), jnp.ones(3, bool), iou_threshold=1.0)
    np.testing.assert_allclose(voted, result, rtol=1e-6)
