"""What the numbers of a mask mean: classes, void, and 0 and 255 as two classes."""

import numpy as np
import pytest

from mtl_jax.data import masks
from mtl_jax.errors import UserError


def indices(*values, **options):
    return masks.class_indices(np.array([values]), name="m.png", **options)[0].tolist()


def test_void_is_the_largest_value_of_the_mask_s_type_however_files_mark_it():
    assert indices(0, 2, 255, class_count=3) == [0, 2, 255]
    assert indices(0, 2, 3, class_count=3, void=[3]) == [0, 2, 255]
    assert indices(0, 2, -1, 7, class_count=3, void=[-1, 7]) == [0, 2, 255, 255]
    assert indices(255, 299, 65535, class_count=300) == [255, 299, 65535]
    assert indices(255, 299, 1000, class_count=300, void=[1000]) == [255, 299, 65535]


def test_masks_are_as_wide_as_their_classes_need():
    assert [masks.mask_dtype(count) for count in (2, 255, 256, 65535)] == [np.uint8, np.uint8, np.uint16, np.uint16]
    with pytest.raises(UserError, match="expected at most 65535 classes of a mask, found 65536"):
        masks.mask_dtype(65536)


def test_a_value_that_is_no_class_is_never_void():
    with pytest.raises(UserError, match=r"m\.png: expected class indices 0 to 2 or 3 \(void\), found \[255\]; correct"):
        indices(0, 255, class_count=3, void=[3])
    with pytest.raises(UserError, match=r"expected class indices 0 to 299 or 65535 \(void\), found \[300\]"):
        indices(0, 300, class_count=300)
    with pytest.raises(UserError, match=r"expected 0 or 255, as in all training masks, found \[1\]"):
        indices(0, 1, 255, class_count=2, binary=True)
    with pytest.raises(UserError, match="expected void outside the classes 0 to 2, found 1"):
        masks.void_values(1, None, 3)


@pytest.mark.parametrize(
    ("values", "class_count", "expected"),
    [
        ([[0, 255], [0]], 2, True),
        ([[0], [255]], 2, True),
        ([[0, 255], [0, 1]], 2, False),  # 255 is void
        ([[255]], 2, False),
        ([[0]], 2, False),
        ([[0, 255, 7]], 2, False),
        ([[0, 255]], 3, False),
    ],
)
def test_a_dataset_counts_0_and_255_where_two_classes_show_nothing_else(values, class_count, expected):
    assert masks.is_binary([np.array([value]) for value in values], class_count) == expected


def test_0_and_255_become_the_two_classes():
    assert indices(0, 255, class_count=2, binary=True) == [0, 1]
    assert indices(0, 255, 9, class_count=2, binary=True, void=[255, 9]) == [0, 1, 255]
