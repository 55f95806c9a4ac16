"""How close each layer comes to the machine: its measured time against its operations and bytes over the ceilings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.models import batch_norm
from mtl_jax.models.backbones.mobilenet_v3 import STEM_CHANNELS, layer_table
from mtl_jax.models.layers import ConvNorm

COPY_FLOATS = 2**26  # far beyond the caches
MATRIX = 2048
# Passes over a layer's input and output that a training step cannot do without: the convolution reads its input and
# writes, batch norm reads twice and writes; going back, batch norm reads both features and gradient twice and writes,
# and the two gradients of the convolution read the gradient twice, the input once, and write.
INPUT_PASSES, OUTPUT_PASSES = 3, 11


def measure(*, batch_size: int, image_size: int, repeats: int) -> list[dict[str, Any]]:
    """Times forward and backward of every convolution with its batch norm, each layer compiled by itself.

    Args:
        batch_size: images.
        image_size: px.
        repeats: timed runs, of which the median counts.

    Returns:
        One row per layer: GFLOP, MB, what the ceilings allow and what it took (ms), and the share reached; first the
        ceilings themselves.
    """
    flops, bandwidth = _peak_flops(repeats), _peak_bandwidth(repeats)
    rows: list[dict[str, Any]] = [
        {"layer": "ceiling", "gflop_per_second": flops / 1e9, "gb_per_second": bandwidth / 1e9}
    ]
    for name, count, side, channels, settings in _layers(image_size):
        stride, size = settings["stride"], settings["kernel_size"]
        features, depthwise = settings["features"], settings["features"] is None
        out_side, outputs = -(-side // stride), channels if depthwise else features
        cells = batch_size * out_side**2
        operations = 3 * 2 * cells * size**2 * outputs * (1 if depthwise else channels)
        bytes_moved = 4 * (INPUT_PASSES * batch_size * side**2 * channels + OUTPUT_PASSES * cells * outputs)
        bound_seconds = max(operations / flops, bytes_moved / bandwidth)
        seconds_taken = _layer_seconds(settings, (batch_size, side, side, channels), repeats)
        rows.append(
            {
                "layer": name,
                "count": count,
                "gflop": operations / 1e9,
                "mb": bytes_moved / 1e6,
                "bound": "operations" if operations / flops > bytes_moved / bandwidth else "memory",
                "allowed_ms": 1e3 * bound_seconds,
                "taken_ms": 1e3 * seconds_taken,
                "share": bound_seconds / seconds_taken,
            }
        )
    return rows


def _layers(image_size: int) -> list[tuple[str, int, int, int, dict[str, Any]]]:
    """Returns name, count, side of the input in px, its channels, and the layer's settings."""

    def settings(features: int | None, size: int, stride: int, activation: str) -> dict[str, Any]:
        return {"features": features, "kernel_size": size, "stride": stride, "activation": activation}

    layers = [("stem", 1, image_size, 3, settings(STEM_CHANNELS, 3, 2, "hard_swish"))]
    side, channels = image_size // 2, STEM_CHANNELS
    for number, block in enumerate(layer_table(), start=1):
        if block.expanded != channels:
            expand = settings(block.expanded, 1, 1, block.activation)
            layers.append((f"block_{number} expand", 1, side, channels, expand))
        depthwise = settings(None, block.kernel_size, block.stride, block.activation)
        layers.append((f"block_{number} depthwise", 1, side, block.expanded, depthwise))
        side //= block.stride
        project = settings(block.features, 1, 1, "identity")
        layers.append((f"block_{number} project", 1, side, block.expanded, project))
        channels = block.features
    layers.append(("last", 1, side, channels, settings(576, 1, 1, "hard_swish")))
    layers += [
        (f"head 3x3 at stride {stride}", 2, image_size // stride, 96, settings(96, 3, 1, "relu"))
        for stride in (8, 16, 32)
    ]
    return layers


def _layer_seconds(settings: dict[str, Any], shape: tuple[int, ...], repeats: int) -> float:
    module = ConvNorm(**settings)
    key = jax.random.key(0)
    x = jax.random.normal(key, shape)
    variables: Any = module.init(key, x, train_batch_norm=False)

    def run(params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        def forward(params: Any, x: jax.Array) -> jax.Array:
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            return module.apply(state, x, train_batch_norm=True, mutable=["batch_stats"])[0]

        return jax.vjp(forward, params, x)[1](cotangent)

    result = jax.eval_shape(lambda x: module.apply(variables, x, train_batch_norm=False), x)
    return _seconds(jax.jit(run), repeats, variables["params"], x, jnp.ones(result.shape))


def _peak_flops(repeats: int) -> float:
    matrix = jnp.ones((MATRIX, MATRIX))
    return 2 * MATRIX**3 / _seconds(jax.jit(jnp.matmul), repeats, matrix, matrix)


def _peak_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of the same kernel that batch norm runs: one pass over much memory."""
    x = jnp.ones((1, COPY_FLOATS // 64, 64))
    ones = jnp.ones(64)

    def scale(x: jax.Array) -> jax.Array:
        return batch_norm.by_statistics(x, ones, ones, ones, ones, epsilon=0.0, activation="identity")

    return 8 * COPY_FLOATS / _seconds(jax.jit(scale), repeats, x)


def _seconds(function: Callable[..., Any], repeats: int, *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)
