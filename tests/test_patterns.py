"""Patterns of parameters: what lies below a name, and the backbone's stages in place of their layers."""

import jax
import pytest

from mtl_jax import tasks
from mtl_jax.models import multi_task, patterns

STAGES = {"stride_2": ("stem",), "stride_4": ("block_1",), "stride_8": ("block_2", "block_3")}


def test_a_name_stands_for_all_that_lies_below_it():
    assert patterns.matches("backbone/stem/conv/kernel", ("backbone",))
    assert patterns.matches("branch_seg/backbone/stem", ("*/backbone",))
    assert not patterns.matches("backbones/stem", ("backbone",))
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    assert patterns.change_where(lambda leaf: 10 * leaf, tree, ("a/x", "b")) == {"a": {"x": 10, "y": 2}, "b": 30}
    assert patterns.paths(tree) == ["a/x", "a/y", "b"]


def test_stages_become_their_layers():
    assert patterns.expanded("backbone/stride_[28]/conv", STAGES) == [
        "backbone/stem/conv",
        "backbone/block_2/conv",
        "backbone/block_3/conv",
    ]
    assert patterns.expanded("head/norm_0_stage", STAGES) == ["head/norm_0_stage"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("backbone/kernels", {"stem", "excite"}),
        ("neck/kernels", {"lateral"}),
        ("head/kernels", {"conv"}),
        ("kernels", {"stem", "excite", "lateral", "conv"}),
        ("patches", {"neck_patch", "head_patch"}),
        ("head/patches", {"head_patch"}),
        ("norms", {"norm", "head_norm"}),
        ("head/norms", {"head_norm"}),
    ],
)
def test_a_kind_of_parameter_has_a_name(pattern, expected):
    inputs = {
        "stem": "backbone/stem/conv/kernel",
        "excite": "backbone/block_1/squeeze_excite/reduce/bias",
        "norm": "backbone/block_1/expand/norm/seg/scale",
        "lateral": "neck/lateral_8/bias",
        "neck_patch": "neck/lateral_8/patch_seg/down/kernel",
        "conv": "head/conv_0/depthwise/kernel",
        "head_patch": "head/conv_0/depthwise/patch_seg/whole/kernel",
        "head_norm": "head/norm_0_stride_8/seg/scale",
        "readout": "head/seg/kernel",
    }
    assert {name for name, path in inputs.items() if patterns.matches(path, (pattern,))} == expected


def test_stages_up_to_a_stride_have_a_name():
    assert patterns.expanded("backbone/until_4/conv", STAGES) == ["backbone/stem/conv", "backbone/block_1/conv"]
    assert patterns.expanded("backbone/until_8", STAGES)[-1] == "backbone/block_3"


def test_the_stages_of_a_backbone_hold_every_layer_once():
    records = tasks.build({"cls": {"kind": "classification", "classes": ("a", "b")}})
    for changes in ({}, {"share_until": 8}, {"backbone": "plain_cnn"}):
        model = multi_task.build(changes, records)
        stages = multi_task.backbone_stages(model)
        layers = [layer for stage in stages.values() for layer in stage]
        params = jax.eval_shape(lambda key, model=model: multi_task.init_variables(model, key=key), jax.random.key(0))[
            "params"
        ]
        built = {*params["backbone"], *params.get("branch_cls", {}).get("backbone", {})}
        assert sorted(layers) == sorted(built)
        assert stages["stride_2"] == (("layer_0",) if changes.get("backbone") else ("stem",))
    model = multi_task.build({}, records)
    assert multi_task.backbone_stages(model)["stride_8"] == ("block_2", "block_3")
    assert multi_task.backbone_stages(multi_task.build({}, records)) is multi_task.backbone_stages(model)  # found once
