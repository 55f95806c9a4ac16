"""The published backbones in PyTorch, with torchvision's names; tests that import it are skipped without torch."""

import pytest
from published_backbones import NETWORKS

torch = pytest.importorskip("torch")
nn = torch.nn


def conv_norm(inputs, outputs, kernel, epsilon, stride=1, groups=1, dilation=1, activation=None):
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs, eps=epsilon, momentum=0.01)]
    return nn.Sequential(*layers, *([getattr(nn, activation)()] if activation else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed, silu):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.functional.silu if silu else torch.relu
        self.gate = torch.sigmoid if silu else nn.functional.hardsigmoid

    def forward(self, x):
        return x * self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    def __init__(self, block, epsilon, dilation):
        super().__init__()
        wide, activation = block.expanded, block.activation
        self.residual = block.stride == 1 and block.inputs == block.outputs
        stride = 1 if dilation > 1 else block.stride
        layers = [conv_norm(wide, wide, block.kernel, epsilon, stride, wide, dilation, activation)]
        if wide != block.inputs:
            layers.insert(0, conv_norm(block.inputs, wide, 1, epsilon, activation=activation))
        layers += [SqueezeExcite(wide, block.squeeze, activation == "SiLU")] if block.squeeze else []
        layers.append(conv_norm(wide, block.outputs, 1, epsilon))
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class TorchBackbone(nn.Module):
    """Returns the deepest features of strides 8 and 16, the last features, and the logits."""

    def __init__(self, name, dilated_from=None):
        super().__init__()
        network = NETWORKS[name]
        layers = {"0": conv_norm(3, network.stem, 3, network.epsilon, 2, activation=network.activation)}
        dilation = 1
        for at, block in network.blocks.items():
            dilation = 2 if at == dilated_from else dilation
            residual = InvertedResidual(block, network.epsilon, dilation)
            stage, _, repeat = at.partition(".")
            if repeat:
                layers.setdefault(stage, nn.Sequential()).append(residual)
            else:
                layers[stage] = residual
        inputs = list(network.blocks.values())[-1].outputs
        layers[str(network.last)] = conv_norm(
            inputs, network.channels, 1, network.epsilon, activation=network.activation
        )
        self.features = nn.Sequential(*layers.values())
        if "0" in network.classifier:
            dense = [nn.Linear(*sizes) for sizes in network.classifier.values()]
            self.classifier = nn.Sequential(dense[0], nn.Hardswish(), nn.Dropout(0.2), dense[1])
        else:
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(*network.classifier["1"]))

    def forward(self, x):
        size, taps = x.shape[2], {}
        for layer in self.features:
            x = layer(x)
            taps[size // x.shape[2]] = x
        return taps[8], taps[16], x, self.classifier(x.mean((2, 3)))


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


def torch_taps(network, image):
    with torch.no_grad():
        taps = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    return [tap.permute(0, 2, 3, 1).numpy() if tap.ndim == 4 else tap.numpy() for tap in taps]
