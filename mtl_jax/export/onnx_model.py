"""Conversion of a JAX function to an ONNX model, by translating its jaxpr; `onnx_ops` translates the primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from mtl_jax.export import onnx_folding, onnx_functions, onnx_layout, onnx_ops
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of

OPSET = 17  # of 2021, supported by every current runtime
IR_VERSION = 8
INLINED = ("jit", "custom_jvp_call", "custom_vjp_call")


def convert(
    function: Callable[..., Mapping[str, Any]],
    image: jax.ShapeDtypeStruct,
    *,
    input_name: str,
    layout: str = "nhwc",
) -> Any:
    """Converts a function of one array to an ONNX model, whose convolutions have the channels first.

    Args:
        function: array -> {name: array}; the arrays that it closes over become initializers.
        image: shape and type of the array; the length of an axis may be a symbol of `jax.export.symbolic_shape`.
        input_name: name of the model's input; its outputs have the names of the function's.
        layout: "nchw": the input, and outputs of four axes, have the channels first too.

    Raises:
        UserError: the function has a primitive that is not translated.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(image)
    graph, shape = Graph(), onnx_layout.integer_shape(image.shape)
    order = CHANNELS_FIRST if layout == "nchw" and len(shape) == 4 else tuple(range(len(shape)))
    image_input = Tensor(input_name, onnx_layout.stored_shape(shape, order), np.dtype(image.dtype))
    _add_dynamic_lengths(graph, image_input)
    image_value = image_input.transpose(order)
    if len(shape) == 4:  # one transposition, before any computation
        image_value = graph.stored_in_order(image_value, CHANNELS_FIRST).transpose(CHANNELS_FIRST)
    results = translate(graph, closed, [image_value])
    names = list(shapes)
    leaves = [shapes[name] for name in sorted(names)]  # JAX sorts a dict's keys
    outputs = {}
    for name, value, leaf in zip(sorted(names), results, leaves, strict=True):
        output: Any = graph.expand(value, onnx_layout.integer_shape(leaf.shape))
        if len(output.shape) == 4 and layout == "nchw":
            output = graph.stored_in_order(output, CHANNELS_FIRST)
        outputs[name] = graph.rename(output, name)
    return _model(graph, image_input, [outputs[name] for name in names])


def _add_dynamic_lengths(graph: Graph, image: Tensor) -> None:
    """Adds nodes that read the dynamic lengths from the shape of the image."""
    for axis, length in enumerate(image.shape):
        if onnx_layout.is_static(length):
            continue
        shape = graph.node("Shape", image, shape=(len(image.shape),), dtype=np.int64)
        size = graph.node(
            "Slice", shape, *(np.array([bound]) for bound in (axis, axis + 1)), shape=(1,), dtype=np.int64
        )
        ((number, (name,)),) = onnx_layout.terms(length)
        if number != 1:
            size = graph.node("Div", size, np.array([number]), shape=(1,), dtype=np.int64)
        graph.symbols[name] = size


def convert_any_batch(
    function: Callable[..., Mapping[str, Any]], image: jax.ShapeDtypeStruct, **settings: str
) -> tuple[Any, bool]:
    """Converts a function for any batch size; returns the model and whether it has a dynamic batch size.

    A user's own module may need a fixed batch size, or a primitive that is translated for fixed sizes only; then the
    model has the batch size of `image`. A dynamic image size needs a dynamic batch size.
    """
    if not all(isinstance(length, int) for length in image.shape):
        return convert(function, image, **settings), True
    (count,) = jax.export.symbolic_shape("batch")
    try:
        return convert(function, jax.ShapeDtypeStruct((count, *image.shape[1:]), image.dtype), **settings), True
    except Exception:
        return convert(function, image, **settings), False


def _model(graph: Graph, image_input: Tensor, outputs: Sequence[Tensor]) -> Any:
    names = [output.name for output in outputs]
    nodes, _ = onnx_folding.required_nodes(graph.nodes, names)
    nodes = onnx_folding.late_transposition(nodes, graph.initializers, image_input)
    nodes, input_names = onnx_folding.required_nodes(nodes, names)
    nodes = onnx_folding.remove_identities(nodes, {image_input.name, *graph.initializers})
    initializers = {name: array for name, array in graph.initializers.items() if name in input_names}
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()]
    declared = [graph.value_info(output) for output in outputs]
    body = graph.helper.make_graph(nodes, "network", [graph.value_info(image_input)], declared, weights)
    opsets = [graph.helper.make_opsetid("", OPSET)]
    model = graph.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mtl_jax")
    onnx.checker.check_model(model)
    return model


def remove_outputs(model: Any, is_removed: Callable[[str], bool]) -> Any:
    """Returns a model without some of its outputs and the nodes and initializers that only they use."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph: Any = result.graph
    for output in [output for output in graph.output if is_removed(output.name)]:
        graph.output.remove(output)
    output_names = [output.name for output in graph.output]
    nodes, input_names = onnx_folding.required_nodes(result.graph.node, output_names)
    weights = [value for value in model.graph.initializer if value.name in input_names]
    reserved = {*output_names, *(value.name for value in (*graph.input, *graph.initializer))}
    nodes = onnx_folding.remove_identities([_copy(node) for node in nodes], reserved)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return result


def _copy(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def translate(graph: Graph, closed: Any, arguments: Sequence[Value]) -> list[Value]:
    """Translates a jaxpr and returns its outputs; equations of constants alone are evaluated at export."""
    jaxpr = closed.jaxpr
    constants = zip(jaxpr.constvars, closed.consts, strict=True)
    values: dict[Any, Value] = {variable: np.asarray(array) for variable, array in constants}
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value_of(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        results = _translate_equation(graph, equation, [value_of(variable) for variable in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]


def _translate_equation(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Sequence[Value]:
    name = equation.primitive.name
    if name in INLINED:
        if (results := onnx_functions.translate(graph, equation, inputs)) is not None:
            return results
        return translate(graph, equation.params.get("jaxpr") or equation.params["call_jaxpr"], inputs)
    if name == "while":
        shapes = [shape_of(variable) for variable in equation.invars]
        return _loop(graph, equation, *map(graph.expand, inputs, shapes))
    if all(isinstance(value, np.ndarray) for value in inputs) and name not in ("broadcast_in_dim", "dim_as_value"):
        elementwise = name in onnx_ops.ELEMENTWISE
        variables = (*equation.invars, *equation.outvars)
        if elementwise or onnx_layout.is_static(*(length for variable in variables for length in shape_of(variable))):
            return _evaluate(equation, inputs, elementwise=elementwise)
    return onnx_ops.add(graph, equation, inputs)


def _evaluate(equation: Any, inputs: Sequence[Any], *, elementwise: bool) -> list[Value]:
    if elementwise:
        shapes = [np.broadcast_shapes(*(value.shape for value in inputs))] * len(inputs)
    else:
        shapes = [variable.aval.shape for variable in equation.invars]
    arrays = [np.broadcast_to(value, shape) for value, shape in zip(inputs, shapes, strict=True)]
    results = equation.primitive.bind(*arrays, **equation.params)
    return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]


def _loop(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
    """Translates a while loop; each example of a batch stops by itself and keeps its state from then on."""
    params, truth = equation.params, np.dtype(np.bool_)
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    # The loop body uses arrays in value order, so any transposition has to be outside it.
    inputs = tuple(graph.in_value_order(value) if isinstance(value, Tensor) else value for value in inputs)
    cond_consts, body_consts, start = inputs[:first], inputs[first:second], inputs[second:]

    def continues(graph: Graph, state: Sequence[Value]) -> tuple[Value, Tensor]:
        (condition,) = translate(graph, params["cond_jaxpr"], [*cond_consts, *state])
        return condition, graph.any(condition, list(range(len(condition.shape))))

    body = Graph(graph)
    state = [
        Tensor(body.unique_name("state"), shape_of(variable), np.dtype(variable.aval.dtype))
        for variable in equation.outvars
    ]
    next_state = translate(body, params["body_jaxpr"], [*body_consts, *state])
    active, _ = continues(body, state)
    if active.shape:
        pairs = zip(next_state, state, strict=True)
        next_state = [body.select(_add_trailing_axes(body, active, x), x, previous) for x, previous in pairs]
    next_state = [body.expand(value, entry.shape) for value, entry in zip(next_state, state, strict=True)]
    body_outputs = [
        body.rename(value, body.unique_name("result")) for value in (continues(body, next_state)[1], *next_state)
    ]
    body_inputs = [
        Tensor(body.unique_name("round"), (), np.dtype(np.int64)),
        Tensor(body.unique_name("continues"), (), truth),
        *state,
    ]
    declared = [[body.value_info(tensor) for tensor in side] for side in (body_inputs, body_outputs)]
    subgraph = graph.helper.make_graph(body.nodes, body.unique_name("body"), *declared)
    controls = np.array(np.iinfo(np.int64).max), continues(graph, start)[1]
    loop = graph.node("Loop", *controls, *start, shape=(), dtype=truth, outputs=len(state), body=subgraph)
    names = [loop.name, *(f"{loop.name}.{number}" for number in range(1, len(state)))]
    return [entry._replace(name=name) for entry, name in zip(state, names, strict=True)]


def _add_trailing_axes(graph: Graph, of_examples: Value, x: Value) -> Value:
    """Appends axes of length 1 to a value per example, up to the rank of `x`."""
    return graph.reshape(of_examples, (*of_examples.shape, *[1] * (len(x.shape) - len(of_examples.shape))))
