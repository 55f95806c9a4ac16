"""Shapes and orders of axes: an array is reshaped in the order in which it lies, or not at all."""

import math

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.export import onnx_layout as layout

NCHW = (0, 2, 3, 1)  # where the axes of an NHWC value lie


def value_of(array: np.ndarray, order: layout.Order) -> np.ndarray:
    return array.transpose(order)


@pytest.mark.parametrize(
    ("shape", "order", "target", "stored"),
    [
        ((2, 4, 6, 3), NCHW, (2, 24, 3), (2, 3, 24)),  # rows and columns lie side by side
        ((2, 1, 1, 3), NCHW, (2, 3), (2, 3)),
        ((2, 3), (0, 1), (2, 1, 1, 3), (2, 1, 1, 3)),
        ((2, 4, 6, 3), NCHW, (2, 4, 1, 6, 1, 3), (2, 1, 3, 4, 1, 6)),
        ((2, 24, 3), (0, 2, 1), (2, 4, 6, 3), (2, 3, 4, 6)),
        ((2, 4, 6, 3), NCHW, (2, 4, 18), None),  # columns and channels do not
        ((2, 4, 6, 3), (0, 3, 2, 1), (2, 24, 3), None),  # in the other direction
    ],
)
def test_a_value_is_reshaped_where_its_numbers_lie(shape, order, target, stored):
    result = layout.reshape_stored(shape, order, target)
    assert (None if result is None else result[0]) == stored
    if result is not None:
        array = np.arange(math.prod(shape)).reshape(layout.stored_shape(shape, order))
        expected = value_of(array, order).reshape(target)
        np.testing.assert_array_equal(value_of(array.reshape(result[0]), result[1]), expected)


def test_reshaping_random_values_is_right_or_refused():
    generator, reshaped_count = np.random.default_rng(0), 0
    for _ in range(500):
        factors = generator.choice([1, 2, 3], generator.integers(1, 6)).tolist()
        shape, target = (
            (math.prod(factors[:first]), math.prod(factors[first:second]), math.prod(factors[second:]))
            for first, second in np.sort(generator.integers(0, len(factors) + 1, (2, 2)))
        )
        order = tuple(generator.permutation(3).tolist())
        array = np.arange(math.prod(shape)).reshape(layout.stored_shape(shape, order))
        if (result := layout.reshape_stored(shape, order, target)) is not None:
            reshaped_count += 1
            reshaped = value_of(array.reshape(result[0]), result[1])
            np.testing.assert_array_equal(reshaped, value_of(array, order).reshape(target))
    assert 100 < reshaped_count < 500


def test_a_batch_of_any_length_stays_an_axis():
    assert layout.reshape_stored((layout.BATCH, 4, 6, 3), NCHW, (layout.BATCH, 24, 3)) == (
        (layout.BATCH, 3, 24),
        (0, 2, 1),
    )


@pytest.mark.parametrize(
    ("shape", "repeated", "target", "factors"),
    [
        ((2, 4, 1, 6, 1, 3), (2, 4, 2, 6, 2, 3), (2, 8, 12, 3), (1, 2, 2, 1)),
        ((2, 4, 2, 6, 2, 3), (2, 4, 2, 6, 2, 3), (2, 8, 12, 3), None),  # nothing is repeated
        ((2, 4, 6, 3), (2, 4, 6, 3), (2, 4, 6, 3), None),
        ((2, 1, 4, 3), (2, 5, 4, 3), (2, 20, 3), None),  # whole rows are repeated, not cells
    ],
)
def test_repeated_cells_are_found(shape, repeated, target, factors):
    assert layout.repeat_factors(shape, repeated, target) == factors


def test_lengths_of_symbols_are_sums_of_products_and_others_are_refused():
    batch, rows, columns = jax.export.symbolic_shape("batch, rows, columns")
    lengths = layout.integer_shape((batch, 3, 32 * rows, 21 * rows * columns * batch, 2 * columns - 1 + 4 * rows))
    assert lengths[:3] == (layout.BATCH, 3, 32 * layout.ROWS)
    assert [layout.is_static(length) for length in lengths] == [False, True, False, False, False]
    assert sorted(layout.terms(lengths[3])) == [(21, ("batch", "rows", "columns"))]
    assert sorted(layout.terms(lengths[4])) == [(-1, ()), (2, ("columns",)), (4, ("rows",))]
    assert list(map(layout.length_text, lengths)) == [
        "batch",
        3,
        "height",
        "21*batch*rows*columns",
        "2*columns + 4*rows + -1",
    ]
    assert list(map(layout.minimum, lengths)) == [1, 3, 32, 21, 5]
    assert layout.terms(0) == []
    with pytest.raises(UserError, match="products of batch, rows, columns, found floor"):
        layout.integer_shape((rows // 2,))
    with pytest.raises(OverflowError):
        np.array(lengths[:1], np.int64)  # so that no file holds one by mistake


def test_an_order_loses_axes():
    assert layout.remove_axes(NCHW, [1, 2]) == (0, 1)
    assert layout.remove_axes(NCHW, [3]) == (0, 1, 2)
    assert layout.remove_axes((2, 0, 1), [1]) == (1, 0)
