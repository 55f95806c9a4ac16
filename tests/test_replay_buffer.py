"""Exemplars: which are chosen, that they stay what they were, and that they fit."""

import itertools

import numpy as np
import pytest
from list_source import boxes, class_source, make_sample

from mtl_jax.continual import exemplars, replay_buffer
from mtl_jax.errors import UserError


def generator(seed=0):
    return np.random.default_rng(seed)


class Described:
    """Takes the place of the network: two clusters of features, and losses that rise with the sample's number."""

    def features(self, source):
        return np.array([[np.cos(i % 2 + i / 100), np.sin(i % 2 + i / 100)] for i in range(len(source))])

    def losses(self, source):
        return np.arange(len(source), dtype=np.float64)


def ids(buffer):
    return [sample["id"] for sample in buffer.samples]


def test_the_classes_of_a_mask_are_its_values_without_void():
    mask = np.array([[0, 3], [255, 3]], np.uint8)
    assert exemplars.sample_classes({"labels": {"segmentation": {"mask": mask}}}) == {0, 3}


def test_numbers_and_depths_show_no_class():
    labels = {"age": {"value": np.array(30.0)}, "depth": {"depth": np.ones((2, 2))}}
    assert exemplars.sample_classes({"labels": labels}) == set()
    selected = exemplars.class_balanced([set()] * 4, 2, generator=np.random.default_rng(0))
    assert len(set(selected.tolist())) == 2


def test_the_classes_of_boxes_leave_out_crowds_and_missing_labels():
    fields = boxes([1, 5, 7], crowd=[False, True, False], boxes_xyxy=[[0, 0, 1, 1], [0, 0, 1, 1], [np.nan] * 4])
    assert exemplars.sample_classes({"labels": {"detection": fields}}) == {1}
    assert exemplars.sample_classes({"labels": {"detection": boxes([])}}) == set()


@pytest.mark.parametrize(("label", "expected"), [(4, {4}), (-1, set())])
def test_the_class_of_an_image_is_its_label_unless_missing(label, expected):
    assert exemplars.sample_classes({"labels": {"classification": {"label": np.array(label, np.int32)}}}) == expected


def test_the_classes_of_an_image_of_several_are_those_that_are_true_of_it():
    label = np.array([0.0, 1.0, np.nan, 1.0], np.float32)
    assert exemplars.sample_classes({"labels": {"multi_label": {"label": label}}}) == {1, 3}


def test_the_classes_of_several_labels_are_united_or_looked_at_one_by_one():
    sample = {"labels": {"a": {"label": np.int32(1)}, "b": {"label": np.int32(2)}}}
    assert exemplars.sample_classes(sample) == {1, 2}
    assert exemplars.sample_classes(sample, "b") == {2}


@pytest.mark.parametrize("choose", [exemplars.random, lambda n, k, **g: exemplars.reservoir(range(n), k, **g)])
def test_every_sample_is_as_likely_to_be_chosen_as_any_other(choose):
    one_generator, rounds = generator(), 3000
    counts = np.zeros(6)
    for _ in range(rounds):
        selected = choose(6, 2, generator=one_generator)
        assert len(set(selected.tolist())) == 2
        counts[selected] += 1
    # Each count has mean 1000 and standard deviation 26.
    assert np.abs(counts - rounds / 3).max() < 5 * 26


def test_a_reservoir_needs_no_length():
    selected = exemplars.reservoir(itertools.islice(itertools.count(100), 50), 5, generator=generator())
    assert len(selected) == 5
    assert set(selected.tolist()) <= set(range(100, 150))


@pytest.mark.parametrize("count", [3, 10])
def test_asking_for_more_than_there_are_gives_all(count):
    classes = [{0}, {1}, set()]
    assert sorted(exemplars.random(3, count, generator=generator())) == [0, 1, 2]
    assert sorted(exemplars.reservoir(range(3), count, generator=generator())) == [0, 1, 2]
    assert sorted(exemplars.class_balanced(classes, count, generator=generator())) == [0, 1, 2]


def test_ten_images_show_all_twenty_classes_where_they_can():
    # Ten images with two classes each cover everything; a hundred others show only the three common classes.
    pairs = [{0, 2 * i + 1, 2 * i + 2} for i in range(10)]
    common = [{0, 1, 2, 3} for _ in range(100)]
    selected = exemplars.class_balanced(common + pairs, 10, generator=generator())
    shown = set().union(*((common + pairs)[index] for index in selected))
    assert len(shown) >= 20


@pytest.mark.parametrize("seed", range(5))
def test_the_cover_is_within_the_greedy_bound_of_the_best(seed):
    draw = generator(seed)
    classes = [set(draw.choice(12, size=draw.integers(1, 4), replace=False).tolist()) for _ in range(12)]
    best = max(len(set().union(*some)) for some in itertools.combinations(classes, 4))
    selected = exemplars.class_balanced(classes, 4, generator=generator(seed))
    assert len(set().union(*(classes[index] for index in selected))) >= (1 - 1 / np.e) * best


def test_single_class_images_are_chosen_evenly():
    labels = [0] * 50 + [1] * 5 + [2] * 20
    selected = exemplars.class_balanced([{label} for label in labels], 12, generator=generator())
    assert np.bincount([labels[index] for index in selected]).tolist() == [4, 4, 4]


def test_evenness_holds_after_hundreds_of_choices_and_an_exhausted_class():
    labels = [0] * 400 + [1] * 400 + [2]
    selected = exemplars.class_balanced([{label} for label in labels], 701, generator=generator())
    assert np.bincount([labels[index] for index in selected]).tolist() == [350, 350, 1]


def test_ties_are_broken_by_the_generator_alone():
    classes = [{index % 3} for index in range(30)]
    first, again, another = (
        exemplars.class_balanced(classes, 6, generator=generator(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != another


def test_herding_keeps_the_mean_closer_than_chance_does():
    features = generator(0).normal(size=(200, 16)) + 1.0
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def distance(selected):
        return np.linalg.norm(unit[selected].mean(0) - unit.mean(0))

    by_chance = [distance(exemplars.random(200, 10, generator=generator(seed))) for seed in range(20)]
    assert distance(exemplars.herding(features, 10)) < 0.5 * min(by_chance)


def test_herded_groups_take_turns():
    groups = [0] * 5 + [1] * 5 + [2]
    selected = exemplars.herding(generator(0).normal(size=(11, 4)), 7, groups=groups)
    assert [groups[index] for index in selected] == [0, 1, 2, 0, 1, 0, 1]


def test_diverse_samples_cover_every_cluster():
    centres = np.repeat(10.0 * np.eye(5), 20, axis=0)
    selected = exemplars.diverse(centres + generator(0).normal(size=centres.shape), 5)
    assert sorted(index // 20 for index in selected) == [0, 1, 2, 3, 4]


def test_equal_samples_are_not_chosen_twice():
    assert sorted(exemplars.diverse(np.ones((4, 3)), 4).tolist()) == [0, 1, 2, 3]


def test_hard_samples_come_first():
    assert exemplars.hard(np.array([0.5, 3.0, 1.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("selection", replay_buffer.SELECTIONS)
def test_a_buffer_is_filled_from_a_source_and_is_one_itself(selection):
    source = class_source([0] * 8 + [1] * 2)
    buffer = replay_buffer.fill(source, count=4, selection=selection, generator=generator(), describe=Described())
    assert len(buffer) == len(set(ids(buffer))) == 4
    assert buffer.class_names == source.class_names
    original = source.samples[int(buffer[0]["id"].split("-")[1])]
    np.testing.assert_array_equal(buffer[0]["image"], original["image"])
    again = replay_buffer.fill(source, count=4, selection=selection, generator=generator(), describe=Described())
    assert ids(again) == ids(buffer)
    if selection in ("class_balanced", "herding"):
        assert sorted(int(sample["labels"]["classification"]["label"]) for sample in buffer.samples) == [
            0,
            0,
            1,
            1,
        ]
    elif selection in ("random", "reservoir"):
        assert source.reads <= 9, "choosing at random reads only what it keeps"


def test_exemplars_do_not_change_when_the_source_does():
    source = class_source([0, 1])
    buffer = replay_buffer.fill(source, count=2, selection="random", generator=generator())
    before = [sample["image"].copy() for sample in buffer.samples]
    for sample in source.samples:
        sample["image"][:] = 0
        sample["labels"]["classification"]["label"][...] = 9
    for sample, image in zip(buffer.samples, before, strict=True):
        np.testing.assert_array_equal(sample["image"], image)
        assert sample["labels"]["classification"]["label"] < 9


def test_the_byte_limit_holds():
    source = class_source([0, 1] * 5)
    single = replay_buffer.sample_bytes(source.samples[0])
    assert single == 12 * 20 * 3 + 4
    buffer = replay_buffer.fill(
        source, count=10, selection="random", generator=generator(), max_bytes=int(3.5 * single)
    )
    assert len(buffer) == 3
    assert buffer.size_bytes == 3 * single


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        ([0, 1], {"selection": "newest"}, 'random, reservoir, .*, found "newest"'),
        (
            [0, 1],
            {"selection": "hard"},
            'outputs of the network for the samples for selection "hard", found none',
        ),
        ([0, 1], {"count": 0}, "found count=0 of 2 samples"),
        ([], {}, "found count=1 of 0 samples"),
        ([0, 1], {"max_bytes": 100}, "a limit of 100 bytes where the last one needs 724; raise the limit"),
    ],
)
def test_a_buffer_that_would_be_empty_is_refused(samples, options, words):
    options = {"count": 1, "selection": "random", **options}
    with pytest.raises(UserError, match=words):
        replay_buffer.fill(class_source(samples), generator=generator(), **options)


def test_downscaling_moves_image_mask_and_boxes_together():
    image = np.zeros((40, 80, 3), np.uint8)
    mask = np.zeros((40, 80), np.uint8)
    image[8:24, 16:48] = 200
    mask[8:24, 16:48] = 7
    labels = {"segmentation": {"mask": mask}, "detection": boxes([2], boxes_xyxy=[[16, 8, 48, 24]])}
    labels["depth"] = {"depth": np.where(mask, np.nan, 3.5).astype(np.float32)}
    small = replay_buffer.downscale({"image": image, "labels": labels, "id": "a"}, 20)
    assert small["image"].shape == (10, 20, 3)
    expected = np.zeros((10, 20), bool)
    expected[2:6, 4:12] = True
    np.testing.assert_array_equal(small["image"][..., 0], np.where(expected, 200, 0))
    np.testing.assert_array_equal(small["labels"]["segmentation"]["mask"], np.where(expected, 7, 0))
    np.testing.assert_array_equal(small["labels"]["depth"]["depth"], np.where(expected, np.nan, 3.5))
    np.testing.assert_array_equal(small["labels"]["detection"]["boxes_xyxy"], [[4, 2, 12, 6]])
    assert small["labels"]["detection"]["area"].tolist() == [30.0 / 16]
    assert small["labels"]["detection"]["label"].tolist() == [2]


def test_downscaling_by_an_odd_ratio_keeps_the_mean_and_the_dtypes():
    sample = make_sample(0, height=31, width=47, labels={"detection": boxes([1])})
    small = replay_buffer.downscale(sample, 17)
    assert small["image"].shape == (11, 17, 3)
    np.testing.assert_allclose(small["image"].mean((0, 1)), sample["image"].mean((0, 1)), atol=1.5)
    for field, array in small["labels"]["detection"].items():
        assert array.dtype == sample["labels"]["detection"][field].dtype


@pytest.mark.parametrize("max_side_px", [None, 20, 500])
def test_a_small_image_is_not_resized(max_side_px):
    sample = make_sample(0, labels={"detection": boxes([1])})
    matches = replay_buffer.downscale(sample, max_side_px)
    np.testing.assert_array_equal(matches["image"], sample["image"])
    np.testing.assert_array_equal(
        matches["labels"]["detection"]["boxes_xyxy"], sample["labels"]["detection"]["boxes_xyxy"]
    )


def test_a_sliver_keeps_at_least_one_pixel():
    assert replay_buffer.downscale(make_sample(0, height=2, width=200), 20)["image"].shape == (1, 20, 3)


def test_a_checkpoint_gives_the_buffer_back_exactly():
    samples = [
        make_sample(0, labels={"segmentation": {"mask": np.full((12, 20), 255, np.uint8)}}),
        make_sample(0, labels={"depth": {"depth": np.full((12, 20), np.nan, np.float32)}}),
        make_sample(1, labels={"detection": boxes([])}),
        make_sample(2, labels={"detection": boxes([3, 1]), "a/b": {"label": np.array(-1, np.int32)}}),
        {**make_sample(3), "id": "Straße/ü 你好"},
    ] + [make_sample(number) for number in range(4, 12)]
    class_names = {"segmentation": ("background", "Zürich"), "detection": ()}
    buffer = replay_buffer.ReplayBuffer(samples=tuple(samples), class_names=class_names)
    tree = replay_buffer.to_tree(buffer)
    assert all(array.dtype == np.uint8 and array.size for array in tree.values())
    restored = replay_buffer.from_tree(tree)
    assert ids(restored) == ids(buffer)
    assert restored.class_names == class_names
    for sample, original in zip(restored.samples, samples, strict=True):
        np.testing.assert_array_equal(sample["image"], original["image"], strict=True)
        assert list(sample["labels"]) == list(original["labels"])
        for name, fields in original["labels"].items():
            assert list(sample["labels"][name]) == list(fields)
            for field, array in fields.items():
                np.testing.assert_array_equal(sample["labels"][name][field], array, strict=True)


def test_the_same_buffer_always_gives_the_same_bytes():
    buffer = replay_buffer.fill(class_source([0, 1]), count=2, selection="random", generator=generator())
    first, again = (replay_buffer.to_tree(replay_buffer.from_tree(replay_buffer.to_tree(buffer))) for _ in range(2))
    np.testing.assert_array_equal(first["npz"], again["npz"])
    np.testing.assert_array_equal(first["npz"], replay_buffer.to_tree(buffer)["npz"])
