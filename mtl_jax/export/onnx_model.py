"""A JAX function as an ONNX model: its jaxpr, equation by equation. `onnx_ops` knows the primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from mtl_jax.export import onnx_folding, onnx_layout, onnx_named, onnx_ops
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of

OPSET = 17  # of 2021, which every runtime of today reads
IR_VERSION = 8
INLINED = ("jit", "custom_jvp_call", "custom_vjp_call")


def convert(
    function: Callable[..., Mapping[str, Any]],
    image: jax.ShapeDtypeStruct,
    *,
    input_name: str,
    layout: str = "nhwc",
) -> Any:
    """Returns a function of one array as an ONNX model, whose convolutions have the channels first.

    Args:
        function: array -> {name: array}; what it closes over becomes part of the model.
        image: shape and type of the array; the length of an axis may be a symbol of `jax.export.symbolic_shape`.
        input_name: of the model's input; its outputs are called as the function's are.
        layout: "nchw" has input and outputs of four axes with the channels first too.

    Raises:
        UserError: the function has an operation that is not translated.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(image)
    graph, shape = Graph(), onnx_layout.sizes(image.shape)
    order = CHANNELS_FIRST if layout == "nchw" and len(shape) == 4 else tuple(range(len(shape)))
    image_input = Tensor(input_name, onnx_layout.stored(shape, order), np.dtype(image.dtype))
    _read_lengths(graph, image_input)
    image_value = image_input.seen(order)
    if len(shape) == 4:  # once, before anything is computed
        image_value = graph.arranged(image_value, CHANNELS_FIRST).seen(CHANNELS_FIRST)
    results = run(graph, closed, [image_value])
    names = list(shapes)
    leaves = [shapes[name] for name in sorted(names)]  # JAX sorts a dict's keys
    outputs = {}
    for name, value, leaf in zip(sorted(names), results, leaves, strict=True):
        full_value: Any = graph.full(value, onnx_layout.sizes(leaf.shape))
        if len(full_value.shape) == 4 and layout == "nchw":
            full_value = graph.arranged(full_value, CHANNELS_FIRST)
        outputs[name] = graph.named(full_value, name)
    return _model(graph, image_input, [outputs[name] for name in names])


def _read_lengths(graph: Graph, image: Tensor) -> None:
    """Adds what reads the lengths that are not known from the image's shape."""
    for axis, length in enumerate(image.shape):
        if onnx_layout.known(length):
            continue
        shape = graph.node("Shape", image, shape=(len(image.shape),), dtype=np.int64)
        read = graph.node("Slice", shape, *(np.array([at]) for at in (axis, axis + 1)), shape=(1,), dtype=np.int64)
        ((number, (name,)),) = onnx_layout.terms(length)
        if number != 1:
            read = graph.node("Div", read, np.array([number]), shape=(1,), dtype=np.int64)
        graph.symbols[name] = read


def convert_any_batch(
    function: Callable[..., Mapping[str, Any]], image: jax.ShapeDtypeStruct, **settings: str
) -> tuple[Any, bool]:
    """Returns `convert`'s model for any number of images, and that it is; or one for the given number.

    A part of the network that somebody else wrote may need a number, or compute what is translated of numbers only.
    Where the size of the images is not given either, there is no other way.
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
    nodes, names_read = onnx_folding.needed(graph.nodes, names)
    nodes = onnx_folding.without_copies(nodes, {image_input.name, *graph.initializers})
    used = {name: array for name, array in graph.initializers.items() if name in names_read}
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in used.items()]
    declared = [graph.info(output) for output in outputs]
    body = graph.helper.make_graph(nodes, "network", [graph.info(image_input)], declared, weights)
    opsets = [graph.helper.make_opsetid("", OPSET)]
    model = graph.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mtl_jax")
    onnx.checker.check_model(model)
    return model


def without_outputs(model: Any, unwanted: Callable[[str], bool]) -> Any:
    """Returns a model without some of its outputs, and without what only they need."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    graph: Any = reduced.graph
    for output in [output for output in graph.output if unwanted(output.name)]:
        graph.output.remove(output)
    kept_names = [output.name for output in graph.output]
    nodes, names_read = onnx_folding.needed(reduced.graph.node, kept_names)
    weights = [value for value in model.graph.initializer if value.name in names_read]
    taken_names = {*kept_names, *(value.name for value in (*graph.input, *graph.initializer))}
    nodes = onnx_folding.without_copies([_copied(node) for node in nodes], taken_names)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return reduced


def _copied(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


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
        results = _results(graph, equation, [read(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _results(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Sequence[Value]:
    name = equation.primitive.name
    if name in INLINED:
        if (named := onnx_named.results(graph, equation, inputs)) is not None:
            return named
        return run(graph, equation.params.get("jaxpr") or equation.params["call_jaxpr"], inputs)
    if name == "while":
        shapes = [shape_of(variable) for variable in equation.invars]
        return _loop(graph, equation, *map(graph.full, inputs, shapes))
    if all(isinstance(each, np.ndarray) for each in inputs) and name not in ("broadcast_in_dim", "dim_as_value"):
        elementwise = name in onnx_ops.ELEMENTWISE
        variables = (*equation.invars, *equation.outvars)
        if elementwise or onnx_layout.known(*(length for variable in variables for length in shape_of(variable))):
            return _computed(equation, inputs, elementwise=elementwise)
    return onnx_ops.add(graph, equation, inputs)


def _computed(equation: Any, inputs: Sequence[Any], *, elementwise: bool) -> list[Value]:
    if elementwise:
        shapes = [np.broadcast_shapes(*(each.shape for each in inputs))] * len(inputs)
    else:
        shapes = [variable.aval.shape for variable in equation.invars]
    arrays = [np.broadcast_to(each, shape) for each, shape in zip(inputs, shapes, strict=True)]
    results = equation.primitive.bind(*arrays, **equation.params)
    return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]


def _loop(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
    """A loop that ends for every example of a batch by itself: what has ended stays as it is."""
    params, truth = equation.params, np.dtype(np.bool_)
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    # The loop's graph reads arrays as they are; what puts their axes into order has to come before it.
    inputs = tuple(graph.plain(each) if isinstance(each, Tensor) else each for each in inputs)
    cond_consts, body_consts, start = inputs[:first], inputs[first:second], inputs[second:]

    def goes_on(graph: Graph, state: Sequence[Value]) -> tuple[Value, Tensor]:
        (each,) = run(graph, params["cond_jaxpr"], [*cond_consts, *state])
        return each, graph.any(each, list(range(len(each.shape))))

    body = Graph(graph)
    state = [
        Tensor(body.fresh("state"), shape_of(variable), np.dtype(variable.aval.dtype)) for variable in equation.outvars
    ]
    after = run(body, params["body_jaxpr"], [*body_consts, *state])
    open_still, _ = goes_on(body, state)
    if open_still.shape:
        after = [body.chosen(_as_rows(body, open_still, x), x, old) for x, old in zip(after, state, strict=True)]
    after = [body.full(value, each.shape) for value, each in zip(after, state, strict=True)]
    ends = [body.named(value, body.fresh("result")) for value in (goes_on(body, after)[1], *after)]
    begins = [Tensor(body.fresh("round"), (), np.dtype(np.int64)), Tensor(body.fresh("goes_on"), (), truth), *state]
    declared = [[body.info(each) for each in side] for side in (begins, ends)]
    subgraph = graph.helper.make_graph(body.nodes, body.fresh("body"), *declared)
    controls = np.array(np.iinfo(np.int64).max), goes_on(graph, start)[1]
    loop = graph.node("Loop", *controls, *start, shape=(), dtype=truth, outputs=len(state), body=subgraph)
    names = [loop.name, *(f"{loop.name}.{number}" for number in range(1, len(state)))]
    return [each._replace(name=name) for each, name in zip(state, names, strict=True)]


def _as_rows(graph: Graph, of_examples: Value, x: Value) -> Value:
    """Gives one value per example as many axes as `x` has."""
    return graph.reshaped(of_examples, (*of_examples.shape, *[1] * (len(x.shape) - len(of_examples.shape))))
