"""MobileNetV3-Small against an independent PyTorch network that carries torchvision's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import pretrained
from mtl_jax.models.mobilenet_v3 import MobileNetV3Small, MobileNetV3SmallClassifier

torch = pytest.importorskip("torch")
nn = torch.nn

# kernel, expanded, out, squeeze-excite, hard-swish, stride: Howard et al., 2019, table 2
ROWS = [
    (3, 16, 16, 1, 0, 2),
    (3, 72, 24, 0, 0, 2),
    (3, 88, 24, 0, 0, 1),
    (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1),
    (5, 120, 48, 1, 1, 1),
    (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2),
    (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
]
# The squeeze widths of torchvision's published file, spelt out instead of computed.
SQUEEZE = {16: 8, 96: 24, 240: 64, 120: 32, 144: 40, 288: 72, 576: 144}


def conv_norm(inputs, outputs, kernel, stride=1, groups=1, dilation=1, activation=None):
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, SQUEEZE[channels], 1)
        self.fc2 = nn.Conv2d(SQUEEZE[channels], channels, 1)

    def forward(self, x):
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(weights)


class InvertedResidual(nn.Module):
    def __init__(self, inputs, row, dilation):
        super().__init__()
        kernel, expanded, outputs, squeeze, hard_swish, stride = row
        activation = nn.Hardswish if hard_swish else nn.ReLU
        self.residual = stride == 1 and inputs == outputs
        stride = 1 if dilation > 1 else stride
        layers = [] if expanded == inputs else [conv_norm(inputs, expanded, 1, activation=activation)]
        layers.append(conv_norm(expanded, expanded, kernel, stride, expanded, dilation, activation))
        layers += [SqueezeExcite(expanded)] if squeeze else []
        layers.append(conv_norm(expanded, outputs, 1))
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class TorchMobileNetV3Small(nn.Module):
    def __init__(self, dilated=False):
        super().__init__()
        layers, inputs = [conv_norm(3, 16, 3, 2, activation=nn.Hardswish)], 16
        for number, row in enumerate(ROWS):
            layers.append(InvertedResidual(inputs, row, 2 if dilated and number >= 8 else 1))
            inputs = row[2]
        layers.append(conv_norm(inputs, 576, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, 1000))

    def forward(self, x):
        taps = []
        for layer in self.features:
            taps.append(x)
            x = layer(x)
        return taps[4], taps[9], x, self.classifier(x.mean((2, 3)))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)


def randomized(network, seed=0):
    """Weights at the scale of a trained network, and running statistics that are neither 0 nor 1."""
    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.ndim >= 2:
            fan_in = tensor[0].numel()
            tensor.normal_(0, (2 / fan_in) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2)
    return network


def state_dict(network):
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def variables_for(module, image):
    def fresh():
        kwargs = {"train": False} if isinstance(module, MobileNetV3SmallClassifier) else {}
        kwargs = kwargs or {"train_batch_norm": False}
        return module.init(jax.random.key(0), jnp.asarray(image), **kwargs)

    shapes = jax.eval_shape(fresh)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def backbone_variables(module, image, network):
    variables = {name: {"backbone": tree} for name, tree in variables_for(module, image).items()}
    loaded = pretrained.merge(variables, state_dict(network), source="the oracle")
    return {name: tree["backbone"] for name, tree in loaded.items()}


def torch_taps(network, image):
    with torch.no_grad():
        taps = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    return [tap.permute(0, 2, 3, 1).numpy() if tap.ndim == 4 else tap.numpy() for tap in taps]


@jax.jit
def features_of(variables, image):
    return MobileNetV3Small().apply(variables, image, train_batch_norm=False)


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def test_features_of_random_weights_equal_pytorchs_at_every_tap(image):
    network = randomized(TorchMobileNetV3Small()).eval()
    ours = features_of(backbone_variables(MobileNetV3Small(), image, network), image)
    assert list(ours) == [8, 16, 32]
    for features, expected in zip(ours.values(), torch_taps(network, image), strict=False):
        assert_close(features, expected)


def test_features_dilated_to_stride_16_equal_pytorchs(image):
    network = randomized(TorchMobileNetV3Small(dilated=True)).eval()
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
    network = TorchMobileNetV3Small().eval()
    tensors = {name: torch.from_numpy(value) for name, value in np.load(weights).items()}
    assert all(name.startswith("classifier.") for name in network.load_state_dict(tensors, strict=False)[0])
    module = MobileNetV3Small()
    variables = {name: {"backbone": tree} for name, tree in variables_for(module, image).items()}
    loaded = {name: tree["backbone"] for name, tree in pretrained.load(variables, weights).items()}
    ours = features_of(loaded, image)
    for features, expected in zip(ours.values(), torch_taps(network, image), strict=False):
        assert_close(features, expected)


def test_logits_of_the_whole_network_equal_pytorchs(image):
    network = randomized(TorchMobileNetV3Small()).eval()
    module = MobileNetV3SmallClassifier()
    loaded = pretrained.merge(variables_for(module, image), state_dict(network), source="the oracle")
    logits = jax.jit(lambda x: module.apply(loaded, x, train=False))(image)
    assert_close(logits, torch_taps(network, image)[-1])


def test_training_outputs_and_running_statistics_equal_pytorchs(image):
    network = randomized(TorchMobileNetV3Small()).train()
    module = MobileNetV3Small()
    variables = backbone_variables(module, image, network)
    norms = {name: norm for name, norm in network.named_modules() if isinstance(norm, nn.BatchNorm2d)}
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
