"""Tracing for other compilers: products over channels as 1x1 convolutions, functions that they have operators for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise

LAYOUT = ("NHWC", "HWIO", "NHWC")
INLINED = ("jit", "custom_jvp_call", "custom_vjp_call")

# (shape of the result, *inputs) -> the result of a named function; None where its own equations are to compute it
Replacement = Callable[..., Any]


def export_function(
    function: Callable[..., Mapping[str, Any]],
    image: jax.ShapeDtypeStruct,
    replacements: Mapping[str, Replacement] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Exports a function of one array by `jax.export`.

    Args:
        function: returns name -> array.
        image: shape of its input.
        replacements: name of a jitted function that it calls -> what computes that instead.

    Returns:
        The exported function, of a tuple of arrays, and the names of its outputs in order.
    """
    replacements = {"upsample_2x": _repeat_cells, **(replacements or {})}
    with cpu_kernels.left_out(), depthwise.traced_in("grouped"):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(image)
        names = tuple(sorted(shapes))  # as JAX sorts a dict's keys

        def with_convolutions(image: Any) -> tuple[Any, ...]:
            return tuple(_evaluate(closed.jaxpr, closed.consts, [image], replacements))

        return jax.export.export(jax.jit(with_convolutions), platforms=("cpu",))(image), names


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], replacements: Mapping[str, Replacement]
) -> list[Any]:
    """Evaluates a jaxpr, with products over the channels of a map as 1x1 convolutions, and some functions replaced."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def value_of(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, params = [value_of(variable) for variable in equation.invars], equation.params
        if equation.primitive.name in INLINED:
            replacement = replacements.get(params.get("name", ""))
            result = replacement and replacement(equation.outvars[0].aval.shape, *inputs)
            inner = params.get("jaxpr") or params["call_jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, inputs, replacements) if result is None else [result]
        elif _is_pointwise(equation):
            x, kernel = inputs
            results = [jax.lax.conv_general_dilated(x, kernel[None, None], (1, 1), "VALID", dimension_numbers=LAYOUT)]
        else:
            results = equation.primitive.bind(*inputs, **params)
            results = results if equation.primitive.multiple_results else [results]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]


def _repeat_cells(shape: Sequence[int], x: Any) -> Any:
    """Repeats every cell to 2 x 2 cells, one axis at a time: Core ML arrays have at most five axes.

    LiteRT concatenates in XNNPACK, which has no broadcast.
    """
    del shape
    for axis in (1, 2):
        cells = jax.numpy.expand_dims(x, axis + 1)
        cells = jax.lax.concatenate([cells, cells], axis + 1)
        x = cells.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


def _is_pointwise(equation: Any) -> bool:
    if equation.primitive.name != "dot_general" or equation.invars[0].aval.ndim != 4:
        return False
    return equation.params["dimension_numbers"] == (((3,), (0,)), ((), ()))
