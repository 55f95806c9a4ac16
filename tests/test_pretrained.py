"""Weights from files: every tensor accounted for, and every damaged file refused by name."""

import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_backbones import NETWORKS, shapes
from torch_files import Tensor, save, save_legacy

from mtl_jax import tasks
from mtl_jax.config.model_settings import ModelSettings
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.backbones import pretrained
from mtl_jax.models.backbones.efficientnet import EfficientNetB0Classifier
from mtl_jax.models.backbones.mobilenet_v3 import (
    MobileNetV3LargeClassifier,
    MobileNetV3Small,
    MobileNetV3SmallClassifier,
)
from mtl_jax.models.sharing.wiring import WAYS, has_branches


def zeros_like_init(module, **kwargs):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **kwargs), image)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def variables():
    """Of a multi-task network: the backbone, and a head that no file holds."""
    tree = zeros_like_init(MobileNetV3Small(), train_batch_norm=False)
    return {name: {"backbone": section, "head": {"bias": np.ones(3)}} for name, section in tree.items()}


@pytest.fixture(scope="module")
def weights(data_root):
    file = data_root.parent / "weights" / "mobilenet_v3_small_features.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there: loading real weights is not tested")
    return file


def published(name):
    """A whole state dict of a published network, of random numbers."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(NETWORKS[name]).items()}


@pytest.fixture(scope="module")
def state():
    """That of MobileNetV3-Small without its classifier."""
    full = published("mobilenet_v3_small")
    return {name: value for name, value in full.items() if not name.startswith("classifier.")}


@pytest.fixture
def file(tmp_path, state):
    np.savez(tmp_path / "weights.npz", **state)
    return tmp_path / "weights.npz"


def test_every_backbone_tensor_is_replaced_and_nothing_else(variables, file, state):
    loaded = pretrained.load(variables, file)
    assert all(leaf.any() for section in loaded.values() for leaf in jax.tree.leaves(section["backbone"]))
    assert loaded["params"]["head"]["bias"].tolist() == [1, 1, 1]
    total = sum(leaf.size for section in loaded.values() for leaf in jax.tree.leaves(section["backbone"]))
    assert total == sum(value.size for name, value in state.items() if "num_batches" not in name)


def test_every_branch_gets_its_stages_and_shared_ones_are_given_once(file, state):
    lower = zeros_like_init(MobileNetV3Small(until=8), train_batch_norm=False)
    features = jax.ShapeDtypeStruct((1, 4, 4, 24), jnp.float32)
    upper = jax.eval_shape(
        lambda x: MobileNetV3Small(after=8).init(jax.random.key(0), x, train_batch_norm=False), features
    )
    upper = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), upper)
    branched = {
        kind: {
            "backbone": lower[kind],
            "branch_seg": {"backbone": upper[kind]},
            "branch_cls": {"backbone": upper[kind]},
        }
        for kind in ("params", "batch_stats")
    }
    loaded = pretrained.load(branched, file)
    assert all(leaf.any() for leaf in jax.tree.leaves(loaded))
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["branch_seg"], loaded["params"]["branch_cls"])
    blocks = loaded["params"]["branch_cls"]["backbone"]
    np.testing.assert_array_equal(blocks["last"]["norm"]["scale"], state["features.12.1.weight"])


@pytest.mark.parametrize("scheme", [scheme for scheme in WAYS if scheme != "hard"])
def test_every_way_to_share_takes_the_features_into_all_its_backbones(scheme, file):
    records = tasks.build({name: {"kind": "classification", "classes": ("a", "b")} for name in ("one", "two")})
    model = multi_task.build({"sharing": scheme}, records)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    loaded = pretrained.load(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), file)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(loaded["params"])}
    stems = [path for path in leaves if "['backbone']['stem']['conv']" in path]
    assert len(stems) == (2 if has_branches(ModelSettings(sharing=scheme)) else 1)
    assert all(leaves[path].any() for path in stems)


def test_norms_of_every_task_take_the_published_ones_and_patches_stay(file, state):
    records = tasks.build({name: {"kind": "classification", "classes": ("a", "b")} for name in ("one", "two")})
    changes = {"norms_from": 8, "patches": {"backbone": 2}, "depthwise_patches": {"backbone": True}}
    model = multi_task.build(changes, records)
    shapes = jax.eval_shape(lambda: multi_task.init_variables(model, key=jax.random.key(0)))
    loaded = pretrained.load(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), file)
    block = loaded["params"]["backbone"]["block_4"]["expand"]
    for task in ("one", "two"):
        np.testing.assert_array_equal(block["norm"][task]["scale"], state["features.4.block.0.1.weight"])
        assert not any(leaf.any() for leaf in jax.tree.leaves(block["conv"][f"patch_{task}"]))
    np.testing.assert_array_equal(block["conv"]["kernel"], state["features.4.block.0.0.weight"][:, :, 0, 0].T)
    assert "one" not in loaded["params"]["backbone"]["block_3"]["expand"]["norm"]


def test_kernels_are_turned_from_oihw_to_the_layout_of_their_layer(variables, file, state):
    params = pretrained.load(variables, file)["params"]["backbone"]
    stem = state["features.0.0.weight"]
    assert params["stem"]["conv"]["kernel"][1, 2, 0, 5] == stem[5, 0, 1, 2]
    depthwise = state["features.2.block.1.0.weight"]
    assert params["block_2"]["depthwise"]["conv"]["kernel"][0, 2, 0, 70] == depthwise[70, 0, 0, 2]
    project = state["features.4.block.3.0.weight"]
    assert params["block_4"]["project"]["conv"]["kernel"][90, 3] == project[3, 90, 0, 0]
    squeeze = state["features.1.block.1.fc2.weight"]
    assert params["block_1"]["squeeze_excite"]["expand"]["kernel"][7, 15] == squeeze[15, 7, 0, 0]


def test_the_real_file_fits_by_torchvisions_own_names(variables, weights):
    loaded = pretrained.load(variables, weights)
    published = np.load(weights)
    last = loaded["params"]["backbone"]["last"]
    np.testing.assert_array_equal(last["conv"]["kernel"], published["features.12.0.weight"][:, :, 0, 0].T)
    variance = loaded["batch_stats"]["backbone"]["block_11"]["expand"]["norm"]["var"]
    np.testing.assert_array_equal(variance, published["features.11.block.0.1.running_var"])


def test_npz_and_pth_hold_the_same_weights(weights):
    ours = pretrained.read_state_dict(weights)
    theirs = pretrained.read_state_dict(weights.with_suffix(".pth"))
    assert set(ours) == set(theirs)
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_the_classifier_of_a_published_file_is_left_out_or_loaded(variables, state):
    classifier = {
        "classifier.0.weight": np.full((1024, 576), 2.0),
        "classifier.0.bias": np.full(1024, 3.0),
        "classifier.3.weight": np.full((1000, 1024), 4.0),
        "classifier.3.bias": np.full(1000, 5.0),
    }
    pretrained.merge(variables, state | classifier, source="published")
    full = zeros_like_init(MobileNetV3SmallClassifier(), train=False)
    loaded = pretrained.merge(full, state | classifier, source="published")["params"]
    assert loaded["hidden"]["kernel"].shape == (576, 1024)
    assert [float(loaded[a][b].mean()) for a in ("hidden", "logits") for b in ("kernel", "bias")] == [
        2,
        3,
        4,
        5,
    ]
    with pytest.raises(UserError, match=r"missing: classifier\.0\.bias, classifier\.0\.weight"):
        pretrained.merge(full, state, source="features only")


@pytest.mark.parametrize(
    ("name", "classifier", "count"),
    [
        ("mobilenet_v3_small", MobileNetV3SmallClassifier(), 2_542_856),
        ("mobilenet_v3_large", MobileNetV3LargeClassifier(), 5_483_032),
        ("efficientnet_b0", EfficientNetB0Classifier(), 5_288_548),
    ],
)
def test_every_tensor_of_a_published_network_finds_its_place(name, classifier, count, tmp_path):
    state = published(name)
    np.savez(tmp_path / "whole.npz", **state)
    loaded = pretrained.load(zeros_like_init(classifier, train=False), tmp_path / "whole.npz", backbone=name)
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded["params"])) == count
    inputs = {tensor: value for tensor, value in state.items() if "num_batches_tracked" not in tensor}
    paths, _ = jax.tree_util.tree_flatten_with_path(loaded)
    values = {tuple(step.key for step in path): np.asarray(leaf) for path, leaf in paths}
    names = pretrained._torchvision_names(list(values), pretrained.ARCHITECTURES[name])
    assert sorted(names.values()) == sorted(inputs)
    for path, tensor in names.items():  # the same numbers, in whatever layout
        np.testing.assert_array_equal(np.sort(values[path], axis=None), np.sort(inputs[tensor], axis=None))


def test_blocks_of_efficientnet_are_counted_by_stage(tmp_path):
    full = zeros_like_init(EfficientNetB0Classifier(), train=False)
    state = published("efficientnet_b0")
    loaded = pretrained.merge(full, state, source="published", backbone="efficientnet_b0")["params"]
    blocks = loaded["features"]
    np.testing.assert_array_equal(
        blocks["block_3"]["project"]["conv"]["kernel"], state["features.2.1.block.3.0.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(
        blocks["block_1"]["squeeze_excite"]["reduce"]["bias"], state["features.1.0.block.1.fc1.bias"]
    )
    np.testing.assert_array_equal(blocks["last"]["norm"]["scale"], state["features.8.1.weight"])
    np.testing.assert_array_equal(loaded["logits"]["bias"], state["classifier.1.bias"])


def test_a_file_of_another_architecture_is_refused_by_title(variables):
    full = zeros_like_init(EfficientNetB0Classifier(), train=False)
    large = published("mobilenet_v3_large")
    with pytest.raises(UserError, match=r"expected EfficientNet-B0 weights .* found missing: classifier\.1\.bias"):
        pretrained.merge(full, large, source="large", backbone="efficientnet_b0")
    with pytest.raises(UserError, match=r"expected MobileNetV3-Small weights .* unexpected: features\.1\.block\.1\.0"):
        pretrained.merge(variables, large, source="large")


def test_a_backbone_without_published_weights_is_refused_by_name(variables, state):
    with pytest.raises(UserError, match="found the backbone plain_cnn"):
        pretrained.merge(variables, state, source="weights", backbone="plain_cnn")


def without(state, name):
    return {another: value for another, value in state.items() if another != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: without(s, "features.4.block.2.fc1.weight"),
            r"missing: features\.4\.block\.2\.fc1\.weight",
        ),
        (lambda s: s | {"fc.weight": np.zeros(2)}, r"unexpected: fc\.weight"),
        (lambda s: s | {"features.0.1.bias": np.zeros(17)}, r"of wrong shape: features\.0\.1\.bias \(17,\)"),
        (
            lambda s: s | {"features.0.0.weight": np.zeros(3)},
            r"of wrong shape: features\.0\.0\.weight \(3,\)",
        ),
        (lambda s: s | {"features.0.1.bias": np.full(16, np.nan)}, r"not finite: features\.0\.1\.bias"),
        (lambda s: s | {"features.0.1.bias": np.full(16, "x")}, r"not finite: features\.0\.1\.bias"),
        (lambda s: {}, r"missing: .* and 2\d\d more"),
    ],
)
def test_a_wrong_file_says_which_names_do_not_fit(variables, state, tmp_path, change, message):
    np.savez(tmp_path / "wrong.npz", **change(state))
    with pytest.raises(UserError, match=message) as error:
        pretrained.load(variables, tmp_path / "wrong.npz")
    assert "wrong.npz" in str(error.value)
    assert "\n" not in str(error.value)


def truncated(path, good):
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def corrupted(path, good):
    data = bytearray(good.read_bytes())
    data[2000:2100] = bytes(100)
    path.write_bytes(data)


def text(path, good):
    path.write_text("<html>404 not found</html>")


def empty(path, good):
    path.write_bytes(b"")


def pickled(path, good):
    np.savez(path, **{"features.0.0.weight": np.array([{"a": 1}], dtype=object)})


def single_array(path, good):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def other_archive(path, good):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


@pytest.mark.parametrize("damage", [truncated, corrupted, text, empty, pickled, single_array, other_archive])
def test_a_damaged_npz_is_refused_by_name(variables, file, tmp_path, damage):
    bad = tmp_path / "bad.npz"
    damage(bad, file)
    with pytest.raises(UserError, match=r"bad\.npz") as error:
        pretrained.load(variables, bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [truncated, text, empty])
def test_a_damaged_pth_is_refused_by_name(file, tmp_path, damage):
    damage(tmp_path / "bad.pth", file)
    with pytest.raises(UserError, match=r"bad\.pth"):
        pretrained.read_state_dict(tmp_path / "bad.pth")


def test_an_absent_file_or_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.npz.*check the path"):
        pretrained.read_state_dict(tmp_path / "gone.npz")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.h5.*\.npz or \.pth"):
        pretrained.read_state_dict(tmp_path / "weights.h5")


class Malice:
    """A pickle that makes a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_no_pickle_is_ever_run(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([Malice(tmp_path / "made")], object))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Malice(tmp_path / "made")))
    save(tmp_path / "evil.pth", {"x": Malice(tmp_path / "made")})
    save_legacy(tmp_path / "old.pth", {"x": Malice(tmp_path / "made")})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malice(tmp_path / "made")))
    for name in ("evil.npz", "plain.npz", "evil.pth", "old.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            pretrained.read_state_dict(tmp_path / name)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Malice(tmp_path / "made")))  # the trap works
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_weights_that_unpack_to_more_than_any_backbone_are_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 20, np.uint8))
    (tmp_path / "bomb.npz").rename(tmp_path / f"bomb{suffix}")
    with pytest.raises(UserError, match=f"bomb{suffix}: .*found 10487.. bytes where 1048576 are the limit"):
        pretrained.read_state_dict(tmp_path / f"bomb{suffix}")


def test_a_tensor_of_few_bytes_that_claims_many_is_refused_unread(variables, state):
    huge = np.broadcast_to(np.float32(0), (1 << 20, 1 << 20))
    with pytest.raises(UserError, match=r"of wrong shape: features\.0\.1\.bias \(1048576, 1048576\)"):
        pretrained.merge(variables, state | {"features.0.1.bias": huge}, source="huge")


def test_names_in_a_pth_may_be_of_any_kind(variables, tmp_path):
    save(tmp_path / "numbered.pth", {7: Tensor(np.zeros(2, np.float32))})
    with pytest.raises(UserError, match=r"numbered\.pth: .*unexpected: 7"):
        pretrained.load(variables, tmp_path / "numbered.pth")
