"""A JAX function as an ONNX model: its jaxpr, equation by equation. `onnx_ops` knows the primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from mtl_jax.export import onnx_folding, onnx_ops
from mtl_jax.export.onnx_graph import Graph, Tensor, Value

OPSET = 17  # of 2021, which every runtime of today reads
IR_VERSION = 8
INLINED = ("jit", "custom_jvp_call", "custom_vjp_call")


def convert(function: Callable[..., Mapping[str, Any]], image: jax.ShapeDtypeStruct, *, input_name: str) -> Any:
    """Returns a function of one array as an ONNX model.

    Args:
        function: array -> {name: array}; what it closes over becomes part of the model.
        image: shape and type of the array.
        input_name: of the model's input; its outputs are called as the function's are.

    Raises:
        UserError: the function has an operation that is not translated.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(image)
    graph = Graph()
    given = Tensor(input_name, image.shape, np.dtype(image.dtype))
    results = run(graph, closed, [given])
    names = list(shapes)
    leaves = [shapes[name] for name in sorted(names)]  # JAX sorts a dict's keys
    outputs = {
        name: graph.named(graph.full(value, leaf.shape), name)
        for name, value, leaf in zip(sorted(names), results, leaves, strict=True)
    }
    nodes, read = onnx_folding.needed(graph.nodes, names)
    used = {name: array for name, array in graph.initializers.items() if name in read}
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in used.items()]
    declared = [graph.info(outputs[name]) for name in names]
    body = graph.helper.make_graph(nodes, "network", [graph.info(given)], declared, weights)
    opsets = [graph.helper.make_opsetid("", OPSET)]
    model = graph.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mtl_jax")
    onnx.checker.check_model(model)
    return model


def without_outputs(model: Any, unwanted: Callable[[str], bool]) -> Any:
    """Returns a model without some of its outputs."""
    less = onnx.ModelProto()
    less.CopyFrom(model)
    parts: Any = (less.graph.output, less.graph.node)
    for part in parts:
        for entry in [entry for entry in part if unwanted(entry.name)]:
            part.remove(entry)
    return less


def run(graph: Graph, closed: Any, arguments: Sequence[Value]) -> list[Value]:
    """Adds what a jaxpr computes to the graph; what depends on known arrays alone is computed at once."""
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = {at: np.asarray(each) for at, each in zip(jaxpr.constvars, closed.consts, strict=True)}
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return known[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        name = equation.primitive.name
        if name in INLINED and not onnx_ops.has_name(equation):
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            results = run(graph, inner, inputs)
        elif name == "while":
            whole = [graph.full(x, variable.aval.shape) for x, variable in zip(inputs, equation.invars, strict=True)]
            results = _loop(graph, equation, *whole)
        elif name not in (*INLINED, "broadcast_in_dim") and all(isinstance(each, np.ndarray) for each in inputs):
            results = _computed(equation, inputs, elementwise=name in onnx_ops.ELEMENTWISE)
        else:
            results = onnx_ops.add(graph, equation, inputs)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _computed(equation: Any, inputs: Sequence[Any], *, elementwise: bool) -> list[Value]:
    shapes = [variable.aval.shape for variable in equation.invars]
    if elementwise:
        shapes = [np.broadcast_shapes(*(each.shape for each in inputs))] * len(inputs)
    arrays = [np.broadcast_to(each, shape) for each, shape in zip(inputs, shapes, strict=True)]
    results = equation.primitive.bind(*arrays, **equation.params)
    return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]


def _loop(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
    """A loop that ends for every example of a batch by itself: what has ended stays as it is."""
    given, truth = equation.params, np.dtype(np.bool_)
    first, second = given["cond_nconsts"], given["cond_nconsts"] + given["body_nconsts"]
    cond_consts, body_consts, start = inputs[:first], inputs[first:second], inputs[second:]

    def goes_on(graph: Graph, state: Sequence[Value]) -> tuple[Value, Tensor]:
        (each,) = run(graph, given["cond_jaxpr"], [*cond_consts, *state])
        return each, graph.any(each, list(range(len(each.shape))))

    body = Graph(graph)
    state = [
        Tensor(body.fresh("state"), variable.aval.shape, np.dtype(variable.aval.dtype)) for variable in equation.outvars
    ]
    after = run(body, given["body_jaxpr"], [*body_consts, *state])
    open_still, _ = goes_on(body, state)
    if open_still.shape:
        after = [body.chosen(_as_rows(body, open_still, x), x, old) for x, old in zip(after, state, strict=True)]
    after = [body.full(value, each.shape) for value, each in zip(after, state, strict=True)]
    ends = [body.named(value, body.fresh("result")) for value in (goes_on(body, after)[1], *after)]
    begins = [Tensor(body.fresh("round"), (), np.dtype(np.int64)), Tensor(body.fresh("goes_on"), (), truth), *state]
    declared = [[body.info(each) for each in side] for side in (begins, ends)]
    subgraph = graph.helper.make_graph(body.nodes, body.fresh("body"), *declared)
    controls = np.array(np.iinfo(np.int64).max), goes_on(graph, start)[1]
    found = graph.node("Loop", *controls, *start, shape=(), dtype=truth, outputs=len(state), body=subgraph)
    names = [found.name, *(f"{found.name}.{number}" for number in range(1, len(state)))]
    return [each._replace(name=name) for each, name in zip(state, names, strict=True)]


def _as_rows(graph: Graph, of_examples: Value, x: Value) -> Value:
    """Gives one value per example as many axes as `x` has."""
    return graph.reshaped(of_examples, (*of_examples.shape, *[1] * (len(x.shape) - len(of_examples.shape))))
