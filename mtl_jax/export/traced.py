"""Tracing for other compilers: products over channels as 1x1 convolutions, cells repeated axis by axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise

LAYOUT = ("NHWC", "HWIO", "NHWC")
INLINED = ("jit", "custom_jvp_call", "custom_vjp_call")


def export_function(
    function: Callable[..., Mapping[str, Any]], image: jax.ShapeDtypeStruct
) -> tuple[Any, tuple[str, ...]]:
    """Exports a function of one array by `jax.export`; returns it and the names of its outputs in order."""
    with cpu_kernels.left_out(), depthwise.traced_in("grouped"):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(image)
        names = tuple(sorted(shapes))  # as JAX sorts a dict's keys

        def with_convolutions(image: Any) -> tuple[Any, ...]:
            return tuple(_evaluate(closed.jaxpr, closed.consts, [image]))

        return jax.export.export(jax.jit(with_convolutions), platforms=("cpu",))(image), names


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr, with products over the channels of a map as 1x1 convolutions, and arrays of fewer axes."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def value_of(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, params = [value_of(variable) for variable in equation.invars], equation.params
        if equation.primitive.name in INLINED and params.get("name") == "upsample_2x":
            results = [_repeat_cells(*inputs)]
        elif equation.primitive.name in INLINED:
            inner = params.get("jaxpr") or params["call_jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif _is_pointwise(equation):
            x, kernel = inputs
            results = [jax.lax.conv_general_dilated(x, kernel[None, None], (1, 1), "VALID", dimension_numbers=LAYOUT)]
        else:
            results = equation.primitive.bind(*inputs, **params)
            results = results if equation.primitive.multiple_results else [results]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]


def _repeat_cells(x: Any) -> Any:
    """Repeats every cell to 2 x 2 cells, one axis at a time: Core ML arrays have at most five axes."""
    for axis in (1, 2):
        shape = (*x.shape[: axis + 1], 2, *x.shape[axis + 1 :])
        axes = [position for position in range(5) if position != axis + 1]
        x = jax.lax.broadcast_in_dim(x, shape, axes)
        x = x.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 2 :])
    return x


def _is_pointwise(equation: Any) -> bool:
    if equation.primitive.name != "dot_general" or equation.invars[0].aval.ndim != 4:
        return False
    return equation.params["dimension_numbers"] == (((3,), (0,)), ((), ()))
