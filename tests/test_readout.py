"""The rows of classes that came later: they change nothing of what was there, and cost little."""

import itertools

import jax
import numpy as np
import pytest
from test_pages import CONFIGS
from tiny import MODEL, random_variables

from mtl_jax import config as config_lib
from mtl_jax import tasks as tasks_lib
from mtl_jax.models import dependence, multi_task
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import path_of

NAMES = ("background", "cup", "ball", "tree", "car", "bed")
KINDS = ("detection", "segmentation", "classification")
SESSIONS = (("second", 1), ("third", 2))
# Of the rows of later classes, those that read more than the head's features; of two leaves each.
LAYERS = {
    "detection": ("down_backbone", "conv_0"),
    "segmentation": ("down_backbone", "conv_0"),
    "classification": ("rows_backbone",),
}
SHARED = {"norms_from": 16, "patches": {"neck": 4, "head": 4}, "head_convolution": "separable"}


def network(sessions, model, **detection):
    """A network whose tasks have got classes so many times."""
    count = 2 + sum(number for _, number in sessions)
    tasks = {kind: {"kind": kind, "classes": NAMES[:count], "added": sessions} for kind in KINDS}
    tasks["detection"] |= detection
    return multi_task.build({**MODEL, **model}, tasks_lib.build(tasks))


def leaves(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_additions_in_a_row_change_no_bit_of_what_was_there(tiny_backbone):
    image = jax.random.uniform(jax.random.key(1), (2, 64, 64, 3))
    versions = []
    for number in range(len(SESSIONS) + 1):
        built = network(SESSIONS[:number], SHARED)
        # As if trained: every parameter of its own at random, those of the version before as they were.
        noise = random_variables(built, seed=number)
        reference = leaves(versions[-1][1]) if versions else {}
        variables = jax.tree_util.tree_map_with_path(lambda path, leaf, k=reference: k.get(path_of(path), leaf), noise)
        assert reference.keys() <= leaves(variables).keys()
        apply = jax.jit(lambda variables, b=built: multi_task.eval_raw(b, variables, image, tasks=KINDS)[0])
        versions.append((built, variables, apply(variables)))
    for (_, _, before), (_, variables, after) in itertools.pairwise(versions):
        for kind in KINDS:
            channels = before[kind].shape[-1]
            np.testing.assert_array_equal(before[kind], after[kind][..., :channels])
            assert np.ptp(after[kind][..., channels:]) > 0
        for path in leaves(variables):
            if "added_" in path:
                assert owner_of(tuple(path.split("/")[1:]), KINDS) in KINDS


@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 32), (16,)])
def test_later_boxes_start_as_those_of_the_first_classes(tiny_backbone, strides):
    built = network(SESSIONS[:1], {}, strides=strides)
    variables = multi_task.init_variables(built, key=jax.random.key(2), image_size=64)
    image = jax.random.uniform(jax.random.key(1), (1, 64, 64, 3))
    first = built.tasks[0].channels

    def boxes(params):
        inputs = {**variables, "params": params}
        raw = multi_task.eval_raw(built, inputs, image, tasks=("detection",))[0]["detection"]
        return raw[..., first : first + 4].sum(), (raw[..., :4], raw[..., first : first + 4])

    (_, (old, new)), moved = jax.jit(jax.value_and_grad(boxes, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(old, new)
    assert not np.asarray(moved["head"]["detection"]["kernel"]).any()
    assert np.asarray(moved["head"]["detection"]["added_second"]["out"]["kernel"]).any()


@pytest.mark.parametrize("sharing", ["independent", "progressive", "series_adapters", "attention", "cgc"])
def test_later_rows_read_the_backbone_s_features_of_their_task_s_own_pass(sharing):
    built = network(SESSIONS[:1], {"sharing": sharing, "backbone": "plain_cnn"})
    reads = dependence.reads_of(built)
    for kind, layers in LAYERS.items():
        places = tuple(f"/{kind}/added_second/{layer}/" for layer in layers)
        own = [path for path in dependence.paths_of(built) if any(place in path for place in places)]
        assert len(own) == 2 * len(layers)
        assert set(own) <= set(reads[kind])
        assert not any(path in reads[other] for other in KINDS if other != kind for path in own)


@pytest.mark.parametrize("name", ["seg", "det", "cls"])
def test_a_session_costs_the_flagship_a_fiftieth_of_its_parameters(name):
    config, count = config_lib.load_page(CONFIGS / "seq.py").get_config(), 3
    settings = {key: value for key, value in config.tasks.to_dict()[name].items() if key != "class_weights"}
    sizes = []
    for added in ((), (("more", count),)):
        later = tuple(f"class {number}" for number in range(count * len(added)))
        task = {**settings, "classes": (*settings["classes"], *later), "added": added}
        model = multi_task.build(config.model, tasks_lib.build({**config.tasks.to_dict(), name: task}))
        shapes = jax.eval_shape(lambda key, m=model: multi_task.init_variables(m, key=key), jax.random.key(0))
        sizes.append(sum(multi_task.parameter_count(shapes["params"]).values()))
    assert sizes[0] < sizes[1] <= 1.02 * sizes[0]
