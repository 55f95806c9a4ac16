"""Labels of boxes stay in the picture and apart from each other."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from mtl_jax.tasks.box_drawing import MOST_LABELS, Area, Framed, draw, place_labels


def picture():
    axes = Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    axes.imshow(np.zeros((64, 64)))
    return axes


def test_a_label_stands_on_its_box_and_where_it_would_leave_the_picture_in_it():
    boxes = [Framed((1.0, 0.0, 20.0, 40.0), "cup 0.90", "C0"), Framed((30.0, 30.0, 60.0, 60.0), "ball", "C1")]
    inside, above = (area for _, area in place_labels(picture(), boxes))
    assert inside.top == 0.0
    assert above.bottom == 30.0


def test_labels_of_crowded_boxes_are_apart_and_within_the_picture():
    generator = np.random.default_rng(0)
    corners = np.sort(generator.uniform(0, 64, (40, 2, 2)), axis=1).reshape(40, 4)
    boxes = [Framed(tuple(box.tolist()), "banana 0.42", "C0") for box in corners]
    areas = [area for _, area in place_labels(picture(), boxes)]
    assert len(areas) >= 3
    assert all(area.within(Area(-0.5, -0.5, 63.5, 63.5)) for area in areas)
    assert not any(first.meets(second) for first, second in itertools.combinations(areas, 2))


def test_many_boxes_have_thinner_lines_and_few_labels():
    few, many = picture(), picture()
    box = Framed((10.0, 10.0, 20.0, 20.0), "cup", "C0")
    draw(few, [box])
    draw(many, [box] * 40)
    assert many.patches[0].get_linewidth() < few.patches[0].get_linewidth()
    assert len(many.patches) == 40
    assert len(many.texts) <= MOST_LABELS
