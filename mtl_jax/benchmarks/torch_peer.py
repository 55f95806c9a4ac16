"""The same network, joint loss and decoding in PyTorch, written as a PyTorch user would: the peer that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_jax.benchmarks import problem as problem_lib
from mtl_jax.benchmarks.problem import Problem

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
STRIDES = (8, 16, 32)
PRIOR_LOGIT = float(np.log(0.01 / 0.99))
WINDOW, MAX_CELLS = 2, 10


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
        self.mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
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
    own, seen = dict(network.named_parameters()), set()

    def copy(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if hasattr(value, "items"):
                copy(value, (*path, key))
                continue
            name = ".".join((*path, {"kernel": "weight", "scale": "weight"}.get(key, key)))
            if name not in own:
                raise ValueError(f"the peer has no parameter {name}")
            array = np.asarray(value)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            with torch.no_grad():
                own[name].copy_(torch.tensor(array.reshape(own[name].shape)))
            seen.add(name)

    copy(params, ())
    if missing := set(own) - seen:
        raise ValueError(f"the library has no parameter {', '.join(sorted(missing))}")


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Returns the cells' centres [cells, 2] and strides [cells], px."""
    centres, strides = [], []
    for stride in STRIDES:
        axis = torch.arange(size // stride) + 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        centres.append(torch.stack([x, y], -1).reshape(-1, 2) * stride)
        strides.append(torch.full((len(centres[-1]),), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def boxes_of(det: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Returns the cells' boxes as corners, px."""
    centre = centres + det[..., :2] * strides[:, None]
    half = 2 * strides[:, None] * det[..., 2:4].clamp(-4, 4).exp()
    return torch.cat([centre - half, centre + half], -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return common / (area - common).clamp(min=1e-7)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """Zheng et al., "Distance-IoU Loss", 2020."""
    overlap = iou(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    angle = torch.atan(size_a[..., 0] / size_a[..., 1].clamp(min=1e-7))
    aspect = (4 / np.pi**2) * (angle - torch.atan(size_b[..., 0] / size_b[..., 1].clamp(min=1e-7))).square()
    alpha = (aspect / (1 - overlap + aspect).clamp(min=1e-7)).detach()
    return overlap - distance / hull.square().sum(-1).clamp(min=1e-7) - alpha * aspect


@torch.no_grad()
def assign(boxes: Tensor, scores: Tensor, truth: Tensor, label: Tensor, size: int) -> Tensor:
    """SimOTA (Ge et al., "YOLOX", 2021) of one image: the box of each cell, -1 for none.

    Unlike the library's, a box that loses all its cells to others stays without.
    """
    centres, _ = grid(size)
    first, cells, valid = 0, [], []
    step = torch.arange(-WINDOW, WINDOW + 1)
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    for stride in STRIDES:
        side = size // stride
        home = (middle / stride).floor().long()
        x = home[:, :1, None] + step[None, None, :]
        y = home[:, 1:, None] + step[None, :, None]
        inside = ((x >= 0) & (x < side) & (y >= 0) & (y < side)).flatten(1)
        cells.append(torch.where(inside, first + (y * side + x).flatten(1), 0))
        valid.append(inside)
        first += side * side
    cell, candidate = torch.cat(cells, 1), torch.cat(valid, 1)
    overlap = torch.where(candidate, iou(boxes[cell], truth[:, None]), 0.0)
    inside = ((centres[cell] > truth[:, None, :2]) & (centres[cell] < truth[:, None, 2:])).all(-1)
    rest = torch.log(-torch.expm1(scores.clamp(max=-1e-8)))
    cost = (-rest.sum(1, keepdim=True) + rest - scores)[cell, label[:, None]]
    cost = cost - 3.0 * torch.log(overlap + 1e-8) + torch.where(inside, 0.0, 1e4)
    cost = torch.where(candidate, cost, torch.inf)
    wanted = overlap.topk(MAX_CELLS, 1).values.sum(1).int().clamp(min=1)
    lowest, order = cost.topk(MAX_CELLS, 1, largest=False)
    chosen = (torch.arange(MAX_CELLS)[None] < wanted[:, None]) & lowest.isfinite()
    owner = torch.full((len(boxes),), -1)
    best = torch.full((len(boxes),), torch.inf)
    for number in range(len(truth)):
        mine = cell[number, order[number, chosen[number]]]
        price = lowest[number, chosen[number]]
        better = price < best[mine]
        owner[mine[better]], best[mine[better]] = number, price[better]
    return owner


def detection_loss(det: Tensor, labels: Mapping[str, Tensor], size: int) -> Tensor:
    """Complete IoU, quality focal objectness and classes towards the IoU, per assigned cell."""
    centres, strides = grid(size)
    boxes, objectness, classes = boxes_of(det, centres, strides), det[..., 4] + PRIOR_LOGIT, det[..., 5:]
    scores = 0.5 * (functional.logsigmoid(objectness)[..., None] + functional.logsigmoid(classes)).detach()
    quality_all, box_loss, class_loss, count = torch.zeros_like(objectness), 0.0, 0.0, 0
    for b in range(len(det)):
        valid = labels["valid"][b]
        truth, label = labels["boxes_xyxy"][b][valid], labels["label"][b][valid].long()
        owner = assign(boxes[b].detach(), scores[b], truth, label, size)
        positive = owner >= 0
        mine, own = boxes[b][positive], truth[owner[positive]]
        quality = iou(mine, own).detach()
        quality_all[b, positive] = quality
        target = functional.one_hot(label[owner[positive]], classes.shape[-1]) * quality[:, None]
        box_loss = box_loss + (1 - complete_iou(mine, own)).sum()
        class_loss = class_loss + functional.binary_cross_entropy_with_logits(
            classes[b][positive], target, reduction="sum"
        )
        count += int(positive.sum())
    focal = (quality_all - objectness.sigmoid()).abs().square()
    cross_entropy = functional.binary_cross_entropy_with_logits(objectness, quality_all, reduction="none")
    return (5 * box_loss + (focal * cross_entropy).sum() + class_loss) / max(count, 1)


def joint_loss(outputs: tuple[Tensor, Tensor, Tensor], labels: Mapping[str, Any], size: int) -> Tensor:
    """Returns the sum of the three tasks' losses."""
    seg, det, cls = outputs
    stride = problem_lib.LOSS_STRIDE
    logits = functional.interpolate(seg, scale_factor=8 // stride, mode="bilinear")
    mask = labels["seg"]["mask"][:, stride // 2 :: stride, stride // 2 :: stride].long()
    segmentation = functional.cross_entropy(logits, mask, ignore_index=255)
    classification = functional.cross_entropy(cls, labels["cls"]["label"].long())
    return segmentation + detection_loss(det, labels["det"], size) + classification


def decode(outputs: tuple[Tensor, Tensor, Tensor], size: int) -> dict[str, Any]:
    """Returns mask, boxes after non-maximum suppression within each class, and class probabilities."""
    seg, det, cls = outputs
    mask = functional.interpolate(seg, scale_factor=8, mode="bilinear").argmax(1)
    boxes = boxes_of(det, *grid(size))
    scores = (0.5 * (functional.logsigmoid(det[..., 4:5] + PRIOR_LOGIT) + functional.logsigmoid(det[..., 5:]))).exp()
    found = []
    for b in range(len(det)):
        score, index = scores[b].flatten().topk(512)
        label, box = index % scores.shape[-1], boxes[b][index // scores.shape[-1]]
        rivals = (iou(box[:, None], box[None]) > 0.6) & (label[:, None] == label[None])
        rivals = rivals.tril(-1)
        valid = score >= 0.005
        keep, before = valid, torch.zeros_like(valid)
        while not torch.equal(keep, before):
            before, keep = keep, valid & ~(rivals & keep[None]).any(1)
        kept = keep.nonzero()[:100, 0]
        found.append((box[kept], score[kept], label[kept]))
    return {"seg": mask, "det": found, "cls": cls.softmax(-1)}


def build(problem: Problem) -> Callable[[], Any]:
    """Returns a function that computes once; channels last, oneDNN, as many threads as cores."""
    torch.manual_seed(problem.seed)
    size = problem.image_size
    image = torch.from_numpy(problem_lib.images(problem)).permute(0, 3, 1, 2)  # NHWC in memory: channels last
    network: Any = Network()
    network.to(memory_format=torch.channels_last)
    forward: Any = torch.compile(network) if problem.side == "torch_compile" else network
    if problem.what == "infer":
        network.eval()

        @torch.inference_mode()
        def infer() -> Any:
            return decode(forward(image), size)

        return infer
    labels = {
        task: {name: torch.from_numpy(array) for name, array in fields.items()}
        for task, fields in problem_lib.labels(problem).items()
    }
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), problem_lib.LEARNING_RATE, weight_decay=problem_lib.WEIGHT_DECAY
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = joint_loss(forward(image), labels, size)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), problem_lib.CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step
