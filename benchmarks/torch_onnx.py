"""The file that `torch.onnx` makes of the PyTorch peer, decoding as the library's files do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_losses import CANDIDATES, MAX_BOXES, PRIOR_LOGIT, STRIDES, boxes_of, grid, iou
from benchmarks.torch_peer import Network, load_jax_params

OPSET = 17
IOU_THRESHOLD, SCORE_THRESHOLD, VOTING_IOU = 0.5, 0.005, 0.6


class _Suppression(torch.autograd.Function):
    """ONNX's operator, of which PyTorch has no counterpart: [found, 3], image, class and box."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx, scores
        return torch.zeros(boxes.shape[0], 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any) -> Any:
        limits = (g.op("Constant", value_t=torch.tensor(value)) for value in (CANDIDATES, IOU_THRESHOLD, 0.0))
        return g.op("NonMaxSuppression", boxes, scores, *limits)


class Served(nn.Module):
    """The peer and its decoding: none of it, or all."""

    def __init__(self, network: Network, size: int, decode: str) -> None:
        super().__init__()
        self.network, self.decode = network, decode
        self.centres, self.strides = grid(size, torch.device("cpu"))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        seg, det, cls = self.network(image)
        seg = functional.interpolate(seg, scale_factor=float(STRIDES[0]), mode="bilinear")
        if self.decode == "all":
            return seg.argmax(1), *self._detections(det), cls.softmax(-1)
        centre = self.centres + det[..., :2] * self.strides[:, None]
        size = 4 * self.strides[:, None] * det[..., 2:4].clamp(-4, 4).exp()
        return seg, torch.cat([centre, size, det[..., 4:5] + PRIOR_LOGIT, det[..., 5:]], -1), cls

    def _detections(self, det: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores and classes, best first, and which are there."""
        boxes = boxes_of(det, self.centres, self.strides)
        logits = functional.logsigmoid(det[..., 4:5] + PRIOR_LOGIT) + functional.logsigmoid(det[..., 5:])
        scores = (0.5 * logits).exp()
        classes = scores.shape[-1]
        score, index = scores.flatten(1).topk(CANDIDATES, 1)
        label, cell = index % classes, index // classes
        box = boxes.gather(1, cell[..., None].expand(-1, -1, 4))
        rank = torch.arange(CANDIDATES, 0, -1) / CANDIDATES
        ranked = torch.where(score >= SCORE_THRESHOLD, rank, 0.0)
        of_class = torch.where(label[:, None] == torch.arange(classes)[:, None], ranked[:, None], 0.0)
        suppressed = _Suppression.apply(box, of_class)
        keep = torch.zeros_like(score).index_put((suppressed[:, 0], suppressed[:, 2]), torch.tensor(1.0))
        place = torch.arange(CANDIDATES, dtype=torch.float32)
        first = torch.where(keep > 0, place, float(CANDIDATES)).topk(MAX_BOXES, 1, largest=False).values
        kept_cells = first.clamp(max=CANDIDATES - 1).long()
        box = _voted(box, score, label).gather(1, kept_cells[..., None].expand(-1, -1, 4))
        return box, score.gather(1, kept_cells), label.gather(1, kept_cells), first < CANDIDATES


def _voted(box: Tensor, score: Tensor, label: Tensor) -> Tensor:
    """Replaces each box by the mean, weighted by score, of the boxes of its class that overlap it."""
    near = (iou(box[:, :, None], box[:, None]) > VOTING_IOU) & (label[:, :, None] == label[:, None])
    near = near & (score >= SCORE_THRESHOLD)[:, None]
    weight = torch.where(near, score[:, None], torch.eye(CANDIDATES))
    return weight @ box / weight.sum(-1, keepdim=True)


def write(path: Path, variables: Any, *, image_size: int, decode: str) -> None:
    """Writes the peer with the library's weights, for any number of images with the channels first.

    Args:
        path: of the file.
        variables: of the library's network.
        image_size: px.
        decode: "none" or "all".
    """
    network = Network().eval()
    load_jax_params(network, variables["params"])
    _copy_statistics(network, variables["batch_stats"])
    served = Served(network, image_size, decode).eval()
    names = ("seg", "det", "cls") if decode == "none" else ("mask", "boxes_xyxy", "score", "label", "valid", "cls")
    axes = {name: {0: "batch"} for name in ("image", *names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            served,
            (torch.zeros(1, 3, image_size, image_size),),
            str(path),
            input_names=["image"],
            output_names=list(names),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _copy_statistics(network: Network, batch_stats: Any) -> None:
    buffers = dict(network.named_buffers())

    def copy(tree: Any, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if hasattr(value, "items"):
                copy(value, (*path, key))
                continue
            name = ".".join((*path, {"mean": "running_mean", "var": "running_var"}[key]))
            buffers[name].copy_(torch.tensor(np.asarray(value)))

    copy(batch_stats, ())
