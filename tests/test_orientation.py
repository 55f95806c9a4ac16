"""One convention for a dataset: labels of the stored or of the upright pixels, by the images whose size tells."""

import numpy as np
import pytest

from mtl_jax.data import images, orientation
from mtl_jax.data.orientation import Header
from mtl_jax.errors import UserError

TURNED = Header(6, 4, 6)
MIRRORED = Header(6, 4, 3)
SQUARE = Header(4, 4, 8)
STORED, UPRIGHT = ("s", TURNED, (6, 4)), ("u", TURNED, (4, 6))
UNCLEAR = [("m", MIRRORED, (6, 4)), ("q", SQUARE, (4, 4)), ("p", Header(6, 4, 1), (6, 4))]


def judged(result, annotated_on="auto"):
    return orientation.judge(result, annotated_on=annotated_on, noun="boxes", location="x.json")


def test_the_size_tells_only_of_images_on_their_side():
    assert orientation.is_stored(TURNED, (6, 4)) is True
    assert orientation.is_stored(TURNED, (4, 6)) is False
    assert orientation.is_stored(TURNED, (5, 5)) is None
    assert [orientation.is_stored(header, size) for _, header, size in UNCLEAR] == [None] * 3


@pytest.mark.parametrize(
    ("result", "stored", "words"),
    [
        ([STORED, *UNCLEAR], True, ["EXIF turns 2 images (first: m)", "taken as stored, like 1 whose", "annotated_on"]),
        ([UPRIGHT, *UNCLEAR], False, ["taken upright, like 1 whose size"]),
        ([STORED, STORED, UPRIGHT, *UNCLEAR], True, ["like 2 whose size", "1 image (first: u) fits their boxes only"]),
        (UNCLEAR, None, []),
        ([STORED], True, []),
        ([UPRIGHT], False, []),
        (UNCLEAR[2:], None, []),
    ],
)  # fmt: skip
def test_the_majority_decides_what_the_size_does_not_tell_and_says_so(result, stored, words):
    convention = judged(result)
    assert convention.stored == stored
    assert bool(convention.notes) == bool(words)
    for word in words:
        assert word in " ".join(convention.notes)


def test_without_any_size_that_tells_nothing_is_guessed():
    with pytest.raises(UserError, match=r"x\.jpg: .* found none here .* 2 turned images; set annotated_on"):
        judged(UNCLEAR).decided("x.jpg", "boxes")


def test_a_setting_decides_without_a_word():
    assert judged(UNCLEAR, "stored") == (True, 2, 2, ())
    assert judged(UNCLEAR, "upright") == (False, 2, 2, ())
    assert "1 image (first: u)" in judged([UPRIGHT, *UNCLEAR], "stored").notes[0]
    with pytest.raises(UserError, match="expected annotated_on among auto, upright, stored, found 'exif'"):
        orientation.check("exif")


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_box_stays_on_its_object_when_the_image_is_turned(tag):
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[1:3, 2:5] = 9
    left, top, right, bottom = (
        orientation.turn_boxes(np.array([[2, 1, 5, 3]], np.float32), Header(6, 4, tag))[0].astype(int).tolist()
    )
    expected = np.zeros_like(images.turn_upright(stored, tag))
    expected[top:bottom, left:right] = 9
    np.testing.assert_array_equal(images.turn_upright(stored, tag), expected)
