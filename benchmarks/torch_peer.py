"""The same network, joint loss and decoding in PyTorch, written as a PyTorch user would: the peer that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import problem as problem_lib
from benchmarks.problem import Problem
from benchmarks.torch_losses import STRIDES, decode, joint_loss

# kernel, expanded, outputs, squeeze, activation, stride: Howard et al., "Searching for MobileNetV3", 2019, table 2.
RE, HS = nn.ReLU, nn.Hardswish
ROWS = (
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)
TAPS = {"block_4": 8, "block_9": 16}  # before these blocks, px


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.activation = activation() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Weighs every channel by what the whole map holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = max(8, int(channels / 4 + 4) // 8 * 8)
        self.reduce = nn.Conv2d(channels, quarter, 1)
        self.expand = nn.Conv2d(quarter, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.expand(torch.relu(self.reduce(pooled))))


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, row: tuple[Any, ...]) -> None:
        super().__init__()
        kernel, expanded, outputs, squeeze, activation, stride = row
        self.expand = ConvNorm(inputs, expanded, 1, 1, 1, activation) if expanded != inputs else nn.Identity()
        self.depthwise = ConvNorm(expanded, expanded, kernel, stride, expanded, activation)
        self.squeeze_excite = SqueezeExcite(expanded) if squeeze else nn.Identity()
        self.project = ConvNorm(expanded, outputs, 1, 1, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Network(nn.Module):
    """MobileNetV3-Small, one FPN layer, a head of two 3x3 convolutions and 1x1 readouts; named as in the library."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        inputs, blocks = 16, {}
        for number, row in enumerate(ROWS, start=1):
            blocks[f"block_{number}"] = Block(inputs, row)
            inputs = row[2]
        self.backbone = nn.ModuleDict(
            {"stem": ConvNorm(3, 16, 3, 2, 1, HS), **blocks, "last": ConvNorm(inputs, 576, 1, 1, 1, HS)}
        )
        self.neck = nn.ModuleDict(
            {
                "context": nn.Linear(576, width),
                **{f"lateral_{s}": nn.Conv2d(c, width, 1) for s, c in zip(STRIDES, (24, 48, 576), strict=True)},
            }
        )
        self.head = nn.ModuleDict(
            {
                **{f"conv_{n}": nn.Conv2d(width, width, 3, padding=1, bias=False) for n in range(2)},
                **{f"norm_{n}_stride_{s}": nn.BatchNorm2d(width) for n in range(2) for s in STRIDES},
                "seg": nn.Conv2d(width, problem_lib.SEG_CLASSES, 1),
                "det": nn.Conv2d(width, 5 + problem_lib.DET_CLASSES, 1),
                "cls": nn.Linear(width, problem_lib.CLS_CLASSES),
            }
        )
        for name, channels in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
            self.register_buffer(name, torch.tensor(channels)[None, :, None, None], persistent=False)
        self.dropout_rate = 0.1

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = (image - self.mean) / self.std, []
        for name, layer in self.backbone.items():
            if name in TAPS:
                taps.append(x)
            x = layer(x)
        levels = [self.neck[f"lateral_{s}"](tap) for s, tap in zip(STRIDES, (*taps, x), strict=True)]
        levels[2] = levels[2] + self.neck["context"](x.mean((2, 3)))[:, :, None, None]
        levels[1] = levels[1] + functional.interpolate(levels[2], scale_factor=2)
        levels[0] = levels[0] + functional.interpolate(levels[1], scale_factor=2)
        for n in range(2):
            conv = self.head[f"conv_{n}"]
            levels = [
                torch.relu(self.head[f"norm_{n}_stride_{s}"](conv(x))) for s, x in zip(STRIDES, levels, strict=True)
            ]
        levels = [functional.dropout2d(x, self.dropout_rate, self.training) for x in levels]
        det = torch.cat([self.head["det"](x).permute(0, 2, 3, 1).flatten(1, 2) for x in levels], dim=1)
        return self.head["seg"](levels[0]), det, self.head["cls"](levels[2].mean((2, 3)))


def load_jax_params(network: Network, params: Mapping[str, Any]) -> None:
    """Copies the library's parameters, by name.

    Raises:
        ValueError: a parameter of one side is missing on the other.
    """
    named_params, assigned = dict(network.named_parameters()), set()

    def copy(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if hasattr(value, "items"):
                copy(value, (*path, key))
                continue
            name = ".".join((*path, {"kernel": "weight", "scale": "weight"}.get(key, key)))
            if name not in named_params:
                raise ValueError(f"the peer has no parameter {name}")
            array = np.asarray(value)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            with torch.no_grad():
                named_params[name].copy_(torch.tensor(array.reshape(named_params[name].shape)))
            assigned.add(name)

    copy(params, ())
    if missing := set(named_params) - assigned:
        raise ValueError(f"the library has no parameter {', '.join(sorted(missing))}")


def build(problem: Problem) -> Callable[[], Any]:
    """Returns a function that computes once, on the first GPU where there is one: channels last, TF32 as XLA does."""
    torch.manual_seed(problem.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.backends.cudnn.benchmark = True
    # NHWC in memory: channels last
    image = torch.from_numpy(problem_lib.images(problem)).to(device).permute(0, 3, 1, 2)
    network: Any = Network()
    network.to(device=device, memory_format=torch.channels_last)
    compiled: Any = torch.compile(network) if problem.side == "torch_compile" else network

    def forward(image: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=problem.dtype == "bfloat16"):
            outputs = compiled(image)
        return tuple(output.float() for output in outputs)

    compute = _infer(network, forward, image) if problem.what == "infer" else _step(problem, network, forward, image)

    def run() -> Any:
        result = compute()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def device_peak_mb() -> float:
    """Returns the most memory that was in use on the GPU, or NaN where there is none."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else float("nan")


def _infer(network: Any, forward: Callable[[Tensor], Any], image: Tensor) -> Callable[[], Any]:
    network.eval()

    @torch.inference_mode()
    def infer() -> Any:
        return decode(forward(image), image.shape[-1])

    return infer


def _step(problem: Problem, network: Any, forward: Callable[[Tensor], Any], image: Tensor) -> Callable[[], float]:
    labels = {
        task: {name: torch.from_numpy(array).to(image.device) for name, array in fields.items()}
        for task, fields in problem_lib.labels(problem).items()
    }
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(),
        problem_lib.LEARNING_RATE,
        weight_decay=problem_lib.WEIGHT_DECAY,
        fused=True if image.is_cuda else None,
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = joint_loss(forward(image), labels, image.shape[-1])
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), problem_lib.CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step
