"""Nodes of ONNX graphs: their order, what reads them, and copies with changes."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from mtl_jax.export.onnx_folding import input_names

helper: Any = onnx.helper
BINARY = ("Add", "Mul")  # operators of two tensors


def by_depth(nodes: Iterable[Any]) -> list[list[Any]]:
    """Returns nodes by the number of nodes on the longest way from an input: parallel layers are of the same depth."""
    depths: dict[str, int] = {}
    levels: dict[int, list[Any]] = collections.defaultdict(list)
    for node in nodes:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
        levels[depth].append(node)
    return [levels[depth] for depth in sorted(levels)]


def readers(nodes: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """Returns tensor -> the operators that read it."""
    operators: dict[str, list[str]] = collections.defaultdict(list)
    for node in nodes:
        for name in node.input:
            operators[name].append(node.op_type)
    return {name: tuple(sorted(names)) for name, names in operators.items()}


def source_count(node: Any) -> int:
    """Returns how many inputs of a node are no parameters."""
    return 2 if node.op_type in BINARY else 1


def group_count(node: Any) -> int:
    """Returns the groups of a convolution."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def changed(model: Any, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    """Returns a node as another one, with other inputs, output and attributes."""
    node = onnx.NodeProto()
    node.CopyFrom(model)
    node.name = output
    node.input[:], node.output[:] = inputs, [output]
    for attribute in [attribute for attribute in node.attribute if attribute.name in attributes]:
        node.attribute.remove(attribute)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def in_order(nodes: Sequence[Any]) -> list[Any]:
    """Returns nodes so that each follows those that it reads."""
    makers = {name: node for node in nodes for name in node.output}
    ordered: dict[int, Any] = {}
    stack = list(reversed(nodes))
    while stack:
        node = stack[-1]
        sources = [makers[name] for name in sorted(input_names(node)) if name in makers]
        missing = [source for source in sources if id(source) not in ordered]
        if missing:
            stack.extend(missing)
            continue
        ordered.setdefault(id(node), stack.pop())
    return list(ordered.values())
