"""Depthwise convolution in three interchangeable forms, chosen per platform at trace time in `_run`."""

import contextlib
import contextvars
import os
from collections.abc import Iterator

import jax
from jaxtyping import Array, Float

from mtl_jax.errors import UserError
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise_cpu
from mtl_jax.models.bilinear import Pass, bilinear
from mtl_jax.models.depthwise_forms import Window, grouped, shifted

FORMS = {"grouped": grouped, "shifted": shifted, "compiled": depthwise_cpu.run}

_traced_form = contextvars.ContextVar("traced_form", default="")


@contextlib.contextmanager
def traced_in(form: str) -> Iterator[None]:
    """Traces what is inside in one of `FORMS`, whatever the platform and the environment say."""
    token = _traced_form.set(form)
    try:
        yield
    finally:
        _traced_form.reset(token)


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves every channel with its own kernel (cross-correlation, zero padding).

    Both sides are padded by dilation * (kernel_size - 1) // 2 pixels. At stride 2 this differs from "SAME", which pads
    the end more than the start. The environment variable MTL_JAX_DEPTHWISE (auto, grouped, shifted, compiled) forces
    one form of the sum; float32 results of the three agree to 1e-5. Differentiable any number of times in reverse mode.

    Args:
        x: input features.
        kernel: one kernel for each channel, in the layout of a grouped convolution.
        stride: step between outputs in input pixels.
        dilation: step between kernel taps in input pixels.

    Returns:
        The convolved features, in the dtype of x.

    Raises:
        UserError: MTL_JAX_DEPTHWISE names an unknown form, or the compiled form where it is not available.
    """
    window = Window((x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1]), stride, dilation)
    return _forward(window, x, kernel.astype(x.dtype))


def _run(pass_name: Pass, window: Window, first: Array, second: Array) -> Array:
    """Chooses the form. A window that was not compiled is summed tap by tap, even where the compiled form is forced."""
    on_cpu = jax.default_backend() == "cpu"
    form = _traced_form.get() or os.environ.get("MTL_JAX_DEPTHWISE") or "auto"
    if form not in ("auto", *FORMS):
        expected = ", ".join(("auto", *FORMS))
        raise UserError(f"MTL_JAX_DEPTHWISE: expected one of {expected}, found {form!r}; unset it or choose one")
    if form == "compiled" and not cpu_kernels.in_use():
        raise UserError(
            "MTL_JAX_DEPTHWISE=compiled: expected a CPU and a working C++ compiler, found none; "
            "install g++ or unset the variable"
        )
    if form in ("auto", "compiled"):
        compiled = depthwise_cpu.supports(window, first.dtype) and cpu_kernels.in_use()
        form = "compiled" if compiled else "shifted" if on_cpu else "grouped"
    return FORMS[form](pass_name, window, first, second)


_forward = bilinear(_run)
