"""Negatives: images of old classes in a stream of boxes of new ones."""

import numpy as np
from list_source import ListSource, boxes, class_source, make_sample

from mtl_jax.continual import negatives, replay_buffer


def test_old_images_show_none_of_the_classes_of_the_source_that_they_join():
    labelled = np.array([False, True])
    new = ListSource(
        [make_sample(number, labels={"detection": {**boxes([1]), "labelled": labelled}}) for number in range(2)],
        {"detection": ("cat", "dog")},
    )
    old = class_source([0, 1, 1])
    joined = negatives.WithNegatives(new, [old, replay_buffer.ReplayBuffer((), {})])
    assert len(joined) == 5
    assert joined.class_names == new.class_names
    assert joined[1] is new.samples[1]
    assert joined[4]["image"] is old.samples[2]["image"]
    fields = joined[4]["labels"]["detection"]
    assert {name: len(value) for name, value in fields.items()} == {
        **dict.fromkeys(("boxes_xyxy", "label", "crowd", "area"), 0),
        "labelled": 2,
    }
    assert set(joined[4]["labels"]) == {"detection"}
