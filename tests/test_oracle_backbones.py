"""The published backbones against independent PyTorch networks that carry torchvision's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_backbones import TorchBackbone, randomized, state_dict, torch, torch_taps

from mtl_jax.models.backbones import pretrained
from mtl_jax.models.backbones.backbone import Backbone
from mtl_jax.models.backbones.efficientnet import EfficientNetB0Classifier
from mtl_jax.models.backbones.mobilenet_v3 import (
    MobileNetV3LargeClassifier,
    MobileNetV3Small,
    MobileNetV3SmallClassifier,
)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)


def variables_for(module, image):
    def fresh():
        kwargs = {"train_batch_norm" if isinstance(module, MobileNetV3Small) else "train": False}
        return module.init(jax.random.key(0), jnp.asarray(image), **kwargs)

    shapes = jax.eval_shape(fresh)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def backbone_variables(module, image, network):
    variables = {name: {"backbone": tree} for name, tree in variables_for(module, image).items()}
    loaded = pretrained.merge(variables, state_dict(network), source="the oracle")
    return {name: tree["backbone"] for name, tree in loaded.items()}


@jax.jit
def features_of(variables, image):
    return MobileNetV3Small().apply(variables, image, train_batch_norm=False)


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def test_features_of_random_weights_equal_pytorchs_at_every_tap(image):
    network = randomized(TorchBackbone("mobilenet_v3_small")).eval()
    ours = features_of(backbone_variables(MobileNetV3Small(), image, network), image)
    assert list(ours) == [8, 16, 32]
    for features, expected in zip(ours.values(), torch_taps(network, image), strict=False):
        assert_close(features, expected)


def test_features_dilated_to_stride_16_equal_pytorchs(image):
    network = randomized(TorchBackbone("mobilenet_v3_small", dilated_from="9")).eval()
    module = MobileNetV3Small(output_stride=16)
    variables = backbone_variables(module, image, network)
    ours = jax.jit(lambda x: module.apply(variables, x, train_batch_norm=False))(image)
    stride_8, _, last, _ = torch_taps(network, image)
    assert list(ours) == [8, 16]
    assert_close(ours[8], stride_8)
    assert_close(ours[16], last)


def test_published_features_equal_pytorchs_on_the_same_file(image, data_root):
    weights = data_root.parent / "weights" / "mobilenet_v3_small_features.npz"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there: parity on trained weights is not tested")
    network = TorchBackbone("mobilenet_v3_small").eval()
    tensors = {name: torch.from_numpy(value) for name, value in np.load(weights).items()}
    assert all(name.startswith("classifier.") for name in network.load_state_dict(tensors, strict=False)[0])
    module = MobileNetV3Small()
    variables = {name: {"backbone": tree} for name, tree in variables_for(module, image).items()}
    loaded = {name: tree["backbone"] for name, tree in pretrained.load(variables, weights).items()}
    ours = features_of(loaded, image)
    for features, expected in zip(ours.values(), torch_taps(network, image), strict=False):
        assert_close(features, expected)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenet_v3_small", MobileNetV3SmallClassifier()),
        ("mobilenet_v3_large", MobileNetV3LargeClassifier()),
        ("efficientnet_b0", EfficientNetB0Classifier()),
    ],
)
def test_logits_of_the_whole_network_equal_pytorchs(name, module):
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    network = randomized(TorchBackbone(name)).eval()
    variables = variables_for(module, image)
    loaded = pretrained.merge(variables, state_dict(network), source="the oracle", backbone=name)
    logits, taps = jax.jit(
        lambda x: module.apply(loaded, x, train=False, capture_intermediates=_is_backbone, mutable=["intermediates"])
    )(image)
    *features, expected = torch_taps(network, image)
    tapped = taps["intermediates"]["features"]["__call__"][0]
    for ours, theirs in zip((*tapped.values(), logits), (*features, expected), strict=True):
        largest = np.abs(theirs).max()  # grows with the depth of a network of random weights
        assert_close(ours / largest, theirs / largest)


def _is_backbone(module, method):
    return isinstance(module, Backbone) and method == "__call__"


def test_training_outputs_and_running_statistics_equal_pytorchs(image):
    network = randomized(TorchBackbone("mobilenet_v3_small")).train()
    module = MobileNetV3Small()
    variables = backbone_variables(module, image, network)
    norms = {name: norm for name, norm in network.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    old_var, cells = {name: norm.running_var.clone() for name, norm in norms.items()}, {}
    for name, norm in norms.items():
        norm.register_forward_hook(
            lambda _, inputs, __, name=name: cells.update({name: inputs[0].numel() // inputs[0].shape[1]})
        )
    taps = torch_taps(network, image)
    for name, norm in norms.items():  # PyTorch averages the unbiased variance, we the biased one
        biased = (norm.running_var - 0.99 * old_var[name]) * (cells[name] - 1) / cells[name]
        norm.running_var.copy_(0.99 * old_var[name] + biased)

    @jax.jit
    def train(x):
        return module.apply(variables, x, train_batch_norm=True, mutable=["batch_stats"])

    ours, updated = train(image)
    for features, expected in zip(ours.values(), taps, strict=False):
        assert_close(features, expected, 1e-3)  # 24 batch norms over as few as 24 cells enlarge rounding
    expected = backbone_variables(module, image, network)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), updated["batch_stats"], expected)
