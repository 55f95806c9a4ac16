"""Joint loss and decoding of the peer in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import problem as problem_lib

STRIDES = (8, 16, 32)


PRIOR_LOGIT = float(np.log(0.01 / 0.99))
WINDOW, MAX_CELLS = 2, 10
CANDIDATES, MAX_BOXES = 512, 100  # of an image: before and after suppression


def grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the cells' centres [cells, 2] and strides [cells], px."""
    centres, strides = [], []
    for stride in STRIDES:
        axis = torch.arange(size // stride, device=device) + 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        centres.append(torch.stack([x, y], -1).reshape(-1, 2) * stride)
        strides.append(torch.full((len(centres[-1]),), float(stride), device=device))
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
def assign(boxes: Tensor, scores: Tensor, labels: Mapping[str, Tensor], size: int) -> Tensor:
    """SimOTA (Ge et al., "YOLOX", 2021): the number of the box that each cell [batch, cells] learns, -1 for none.

    Unlike the library's, a box that loses all its cells to others stays without.
    """
    truth, device = labels["boxes_xyxy"], boxes.device
    centres, _ = grid(size, device)
    cell, candidate = _window_cells(truth, size)
    candidate &= labels["valid"][..., None]
    image = torch.arange(len(boxes), device=device)[:, None, None]
    overlap = torch.where(candidate, iou(boxes[image, cell], truth[:, :, None]), 0.0)
    is_inside = ((centres[cell] > truth[:, :, None, :2]) & (centres[cell] < truth[:, :, None, 2:])).all(-1)
    log_complement = torch.log(-torch.expm1(scores.clamp(max=-1e-8)))
    cost = (-log_complement.sum(-1, keepdim=True) + log_complement - scores)[
        image, cell, labels["label"].long()[..., None]
    ]
    cost = cost - 3.0 * torch.log(overlap + 1e-8) + torch.where(is_inside, 0.0, 1e4)
    cost = torch.where(candidate, cost, torch.inf)
    match_counts = overlap.topk(MAX_CELLS, -1).values.sum(-1).int().clamp(min=1)
    lowest, order = cost.topk(MAX_CELLS, -1, largest=False)
    is_match = (torch.arange(MAX_CELLS, device=device) < match_counts[..., None]) & lowest.isfinite()
    price = torch.where(is_match, lowest, torch.inf).flatten(1)
    own_cells = cell.gather(-1, order).flatten(1)
    best = torch.full(boxes.shape[:2], torch.inf, device=device).scatter_reduce(1, own_cells, price, "amin")
    number = torch.arange(truth.shape[1], device=device).repeat_interleave(MAX_CELLS)
    wins = is_match.flatten(1) & (price <= best.gather(1, own_cells))
    no_object = truth.shape[1]
    owner = torch.full(boxes.shape[:2], no_object, device=device)
    owner = owner.scatter_reduce(1, own_cells, torch.where(wins, number, no_object), "amin")
    return torch.where(owner == no_object, -1, owner)


def _window_cells(truth: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the cells around the middle of each box [batch, boxes, cells], and which of them lie on the map."""
    first, cells, inside_masks = 0, [], []
    step = torch.arange(-WINDOW, WINDOW + 1, device=truth.device)
    middle = (truth[..., :2] + truth[..., 2:]) / 2
    for stride in STRIDES:
        side = size // stride
        home = (middle / stride).floor().long()
        x, y = home[..., :1, None] + step, home[..., 1:, None] + step[:, None]
        on_grid = ((x >= 0) & (x < side) & (y >= 0) & (y < side)).flatten(2)
        cells.append(torch.where(on_grid, first + (y * side + x).flatten(2), 0))
        inside_masks.append(on_grid)
        first += side * side
    return torch.cat(cells, -1), torch.cat(inside_masks, -1)


def detection_loss(det: Tensor, labels: Mapping[str, Tensor], size: int) -> Tensor:
    """Complete IoU, quality focal objectness and classes towards the IoU, per assigned cell."""
    centres, strides = grid(size, det.device)
    boxes, objectness, classes = boxes_of(det, centres, strides), det[..., 4] + PRIOR_LOGIT, det[..., 5:]
    scores = 0.5 * (functional.logsigmoid(objectness)[..., None] + functional.logsigmoid(classes)).detach()
    owner = assign(boxes.detach(), scores, labels, size)
    image, cell = (owner >= 0).nonzero(as_tuple=True)
    number = owner[image, cell]
    predicted, target_boxes = boxes[image, cell], labels["boxes_xyxy"][image, number]
    quality = iou(predicted, target_boxes).detach()
    quality_all = torch.zeros_like(objectness).index_put((image, cell), quality)
    target = functional.one_hot(labels["label"].long()[image, number], classes.shape[-1]) * quality[:, None]
    box_loss = (1 - complete_iou(predicted, target_boxes)).sum()
    class_loss = functional.binary_cross_entropy_with_logits(classes[image, cell], target, reduction="sum")
    focal = (quality_all - objectness.sigmoid()).abs().square()
    cross_entropy = functional.binary_cross_entropy_with_logits(objectness, quality_all, reduction="none")
    return (5 * box_loss + (focal * cross_entropy).sum() + class_loss) / max(len(image), 1)


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
    """Returns mask, the first boxes after non-maximum suppression within each class, and class probabilities."""
    seg, det, cls = outputs
    mask = functional.interpolate(seg, scale_factor=8, mode="bilinear").argmax(1)
    boxes = boxes_of(det, *grid(size, det.device))
    scores = (0.5 * (functional.logsigmoid(det[..., 4:5] + PRIOR_LOGIT) + functional.logsigmoid(det[..., 5:]))).exp()
    score, index = scores.flatten(1).topk(CANDIDATES, 1)
    label, cell = index % scores.shape[-1], index // scores.shape[-1]
    box = boxes.gather(1, cell[..., None].expand(-1, -1, 4))
    rivals = (iou(box[:, :, None], box[:, None]) > 0.6) & (label[:, :, None] == label[:, None])
    rivals = rivals.tril(-1)
    valid = score >= 0.005
    keep, before = valid, torch.zeros_like(valid)
    while not torch.equal(keep, before):
        before, keep = keep, valid & ~(rivals & keep[:, None]).any(-1)
    place = torch.arange(CANDIDATES, device=keep.device)
    first = torch.where(keep, place, CANDIDATES).topk(MAX_BOXES, 1, largest=False).values
    kept_cells = first.clamp(max=CANDIDATES - 1)
    detections = (
        box.gather(1, kept_cells[..., None].expand(-1, -1, 4)),
        score.gather(1, kept_cells),
        label.gather(1, kept_cells),
    )
    return {"seg": mask, "det": (*detections, first < CANDIDATES), "cls": cls.softmax(-1)}
