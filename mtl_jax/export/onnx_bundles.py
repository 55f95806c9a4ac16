"""Tensors that hold others of equal height and width, such as those of parallel passes, and the nodes for them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from mtl_jax.export.onnx_folding import input_names
from mtl_jax.export.onnx_nodes import changed

BLOCK = 16  # channels of each member are padded with zeros to a multiple of it: runtimes compute vectors of 16

helper: Any = onnx.helper


class Bundle(NamedTuple):
    """A tensor that holds the channels of tensors of equal height and width, one tensor after another."""

    name: str
    members: tuple[str, ...]  # the tensors, in the order in which it holds them
    channels: tuple[int, ...]  # of each
    width: int  # channels that each takes; kernels have zeros for those behind its own


def padded_width(channels: Iterable[int]) -> int:
    """Returns the channels that each tensor of a bundle takes."""
    return -(-max(channels) // BLOCK) * BLOCK


class Bundles:
    """The bundles of a graph."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        """Starts without bundles.

        Args:
            weights: name -> initializer of the graph; receives those of new nodes.
        """
        self.weights = weights
        self.by_member: dict[str, Bundle] = {}  # member -> the bundle that holds it
        self.nodes: dict[str, list[Any]] = {}  # name of a bundle -> the nodes that compute it
        self.readers: collections.Counter[str] = collections.Counter()  # name of a bundle -> joined layers that read it

    def __contains__(self, member: str) -> bool:
        return member in self.by_member

    def __getitem__(self, member: str) -> Bundle:
        return self.by_member[member]

    def add(self, bundle: Bundle, nodes: list[Any], sources: Sequence[Bundle]) -> None:
        """Adds a bundle with the nodes that compute it, the first of which reads other bundles."""
        self.nodes[bundle.name] = nodes
        self.by_member.update(dict.fromkeys(bundle.members, bundle))
        self.readers.update(source.name for source in sources)

    def holding(self, names: Sequence[str]) -> Bundle | None:
        """Returns the bundle of some tensors, which may be a part of a larger one; None where there is none."""
        bundle = self.by_member.get(names[0])
        if bundle is None:
            return None
        start = bundle.members.index(names[0])
        if bundle.members[start : start + len(names)] != tuple(names):
            return None
        self.readers[bundle.name] += 1
        return bundle if len(names) == len(bundle.members) else self.part(bundle, start, len(names))

    def part(self, bundle: Bundle, start: int, count: int) -> Bundle:
        """Returns a part of a bundle: some members, one after another."""
        members = bundle.members[start : start + count]
        stop = start * bundle.width + bundle.channels[start] if count == 1 else (start + count) * bundle.width
        name = members[0] if count == 1 else f"{bundle.name}.{start}-{start + count - 1}"
        if name not in self.nodes:
            self.nodes[name] = self._slice(bundle.name, name, start * bundle.width, stop)
        return bundle._replace(name=name, members=members, channels=bundle.channels[start : start + count])

    def _slice(self, source: str, name: str, start: int, stop: int) -> list[Any]:
        """Adds a slice of the channels of a bundle, before its dequantisation if it has one; returns the nodes."""
        maker = self.nodes[source][0] if source in self.nodes else None
        if maker is not None and maker.op_type == "DequantizeLinear":  # runtimes make it part of what reads it
            levels = [f"{name}.{kind}" for kind in ("scale", "zero")]
            for level, whole in zip(levels, maker.input[1:], strict=True):
                self.weights[level] = self.weights[whole][start:stop]
            integers = f"{name}.integers"
            nodes = self._slice(maker.input[0], integers, start, stop)
            return [*nodes, changed(maker, [integers, *levels], name)]
        bounds = {"start": start, "stop": stop, "axis": 1}
        arrays = {f"{name}.{key}": np.array([value], np.int64) for key, value in bounds.items()}
        self.weights.update(arrays)
        return [helper.make_node("Slice", [source, *arrays], [name], name)]

    def drop_single_layers(self) -> None:
        """Leaves layers as they are that begin at one tensor and that no joined layer follows."""
        for bundle in set(self.by_member.values()):
            if not self.readers[bundle.name] and self.nodes[bundle.name][0].input[0] not in self.nodes:
                del self.nodes[bundle.name]
                for name in bundle.members:
                    del self.by_member[name]

    def remaining(self, nodes: Iterable[Any], outputs: Sequence[str]) -> list[Any]:
        """Returns the joined nodes, those that are as they were, and what takes their inputs out of bundles."""
        kept = [node for node in nodes if not any(name in self for name in node.output)]
        for name in [*(name for node in kept for name in sorted(input_names(node))), *outputs]:
            if name in self:
                bundle = self[name]
                self.part(bundle, bundle.members.index(name), 1)
        return [*kept, *(node for nodes_of in self.nodes.values() for node in nodes_of)]
