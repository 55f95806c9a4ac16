"""The published backbones as torchvision spells them out: blocks, names and shapes, for tests of ours."""

from typing import NamedTuple


class Block(NamedTuple):
    """One inverted residual; `squeeze` is the hidden width of its squeeze-and-excitation, 0 for none."""

    inputs: int
    kernel: int
    expanded: int
    outputs: int
    squeeze: int
    activation: str
    stride: int


class Published(NamedTuple):
    """A network: its blocks by their names below "features", and what comes before and after them."""

    stem: int
    blocks: dict[str, Block]
    last: int  # number of the last convolution
    channels: int  # of it
    classifier: dict[str, tuple[int, int]]  # inputs, outputs of its dense layers
    activation: str
    epsilon: float


# The squeeze widths of torchvision's published files, spelt out instead of computed.
SQUEEZE = {16: 8, 72: 24, 96: 24, 120: 32, 144: 40, 240: 64, 288: 72, 480: 120, 576: 144, 672: 168, 960: 240}

# kernel, expanded, out, squeeze-excite, hard-swish, stride: Howard et al., 2019, tables 2 and 1
SMALL_ROWS = [
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
LARGE_ROWS = [
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
]
# expanded / inputs, kernel, stride, inputs, out, repeats: Tan, Le, 2019, table 1
B0_STAGES = [
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
]


def _mobilenet_v3(rows, channels, hidden):
    blocks, inputs = {}, 16
    for number, (kernel, expanded, outputs, squeeze, hard_swish, stride) in enumerate(rows, start=1):
        activation = "Hardswish" if hard_swish else "ReLU"
        squeezed = SQUEEZE[expanded] if squeeze else 0
        blocks[str(number)] = Block(inputs, kernel, expanded, outputs, squeezed, activation, stride)
        inputs = outputs
    classifier = {"0": (channels, hidden), "3": (hidden, 1000)}
    return Published(16, blocks, len(rows) + 1, channels, classifier, "Hardswish", 1e-3)


def _efficientnet(stages):
    blocks = {}
    for number, (expansion, kernel, stride, inputs, outputs, repeats) in enumerate(stages, start=1):
        for repeat in range(repeats):
            loaded, step = (outputs, 1) if repeat else (inputs, stride)
            blocks[f"{number}.{repeat}"] = Block(loaded, kernel, expansion * loaded, outputs, loaded // 4, "SiLU", step)
    return Published(32, blocks, len(stages) + 1, 1280, {"1": (1280, 1000)}, "SiLU", 1e-5)


NETWORKS = {
    "mobilenet_v3_small": _mobilenet_v3(SMALL_ROWS, 576, 1024),
    "mobilenet_v3_large": _mobilenet_v3(LARGE_ROWS, 960, 1280),
    "efficientnet_b0": _efficientnet(B0_STAGES),
}


def shapes(network: Published) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape in PyTorch's layout} of a whole state dict."""
    result, outputs = _conv_norm("features.0", 3, network.stem, 3), network.stem
    for name, block in network.blocks.items():
        wide, squeeze, outputs = block.expanded, block.squeeze, block.outputs
        sections = [(_conv_norm, block.inputs, wide, 1)] if wide != block.inputs else []
        sections.append((_conv_norm, 1, wide, block.kernel))
        sections += [(_squeeze_excite, wide, squeeze, 1)] if squeeze else []
        sections.append((_conv_norm, wide, outputs, 1))
        for number, (make, *sizes) in enumerate(sections):
            result |= make(f"features.{name}.block.{number}", *sizes)
    result |= _conv_norm(f"features.{network.last}", outputs, network.channels, 1)
    for number, (inputs, outputs) in network.classifier.items():
        result |= {f"classifier.{number}.weight": (outputs, inputs), f"classifier.{number}.bias": (outputs,)}
    return result


def _conv_norm(name, inputs, outputs, kernel):
    norm = {f"{name}.1.{leaf}": (outputs,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.0.weight": (outputs, inputs, kernel, kernel), f"{name}.1.num_batches_tracked": (), **norm}


def _squeeze_excite(name, channels, hidden, kernel):
    layers = {"fc1": (hidden, channels), "fc2": (channels, hidden)}
    weights = {f"{name}.{layer}.weight": (*size, kernel, kernel) for layer, size in layers.items()}
    return weights | {f"{name}.{layer}.bias": size[:1] for layer, size in layers.items()}
