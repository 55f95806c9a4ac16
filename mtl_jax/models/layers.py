"""Convolution, batch norm and activation: the blocks of which every part of the network is made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from mtl_jax.models import batch_norm, inference, quantisation
from mtl_jax.models.inference import Convolution, Gated
from mtl_jax.models.patches import NO_PATCHES, Patches, patched

BLOCK = 512  # numbers of noise that a key gives; most kernels are smaller, or a multiple

# Where batch norm normalises by the batch and moves its running statistics: everywhere, nowhere, or in the layers whose
# path, such as "backbone/block_4/expand/norm", the function accepts.
ByBatch = bool | Callable[[str], bool]


class PerTask(NamedTuple):
    """Stands in for `ByBatch` in a pass for one task alone: which batch norms and patches to use, and how."""

    task: str
    by_batch: ByBatch
    patches: Patches = NO_PATCHES  # of the part of the network that is passed


Norming = ByBatch | PerTask


def branch_name(task: str) -> str:
    """Returns the name of the part of a network that is one task's own."""
    return f"branch_{task}"


def spread(variance: float) -> nn.initializers.Initializer:
    """Initializes a kernel to its standard deviation everywhere: `draw_kernels` makes the noise.

    Drawing every kernel inside its own layer compiles one generator per kernel, which takes 20 s for this
    network on a CPU; one generator for all takes two or three.

    Args:
        variance: Of the fresh weights.

    Returns:
        The initializer.
    """
    return nn.initializers.constant(math.sqrt(variance))


def draw_kernels(params: Mapping[str, Any], *, key: Key[Array, ""]) -> dict[str, Any]:
    """Multiplies every kernel by standard normal noise, which depends on the key and the kernel's own path alone.

    So another task, or another layer, changes no other parameter's start.

    Args:
        params: Parameters as the modules initialize them, kernels by `spread`.
        key: Source of the noise.

    Returns:
        Fresh parameters.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    blocks = [-(-leaf.size // BLOCK) if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    names = np.repeat(np.array([_path_number(path) for path, _ in leaves], np.uint32), blocks)
    numbers = np.concatenate([np.arange(count, dtype=np.uint32) for count in blocks])
    noise, drawn_leaves, start = _noise(key, names, numbers), [], 0
    for count, (_, leaf) in zip(blocks, leaves, strict=True):
        leaf_noise = noise[start : start + count].reshape(-1)[: leaf.size]
        drawn_leaves.append(leaf * leaf_noise.reshape(leaf.shape) if count else leaf)
        start += count
    return jax.tree_util.tree_unflatten(structure, drawn_leaves)


def _path_number(path: tuple[Any, ...]) -> int:
    """A number of a parameter's path, the same in every process."""
    text = "/".join(str(key.key) for key in path)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _noise(
    key: Key[Array, ""], names: UInt32[np.ndarray, " blocks"], numbers: UInt32[np.ndarray, " blocks"]
) -> Float[Array, "blocks block"]:
    """Blocks of noise, each of its own key; one generator makes them all, as many would take long to compile."""

    def block(position: tuple[Array, Array]) -> Array:
        name, number = position
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, name), number), (BLOCK,))

    # A loop, because its body is compiled alike for any number of blocks, and so rounds alike.
    return jax.lax.map(block, (jnp.asarray(names), jnp.asarray(numbers)))


def make_divisible(channels: float | int, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, at least `divisor`, and never more than 10 % below `channels`.

    Args:
        channels: The wanted number of channels.
        divisor: What the result is a multiple of.

    Returns:
        The number of channels to use.

    References:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Conv(nn.Module):
    """A convolution without bias; `features=None` makes it depthwise, with as many outputs as inputs.

    Passed for one task, it adds that task's patch to its kernel.
    """

    features: int | None
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"] | Gated, *, norming: Norming = False
    ) -> Convolution:
        """Returns the convolution of `x`, in `dtype` and not computed yet; `norming` says for which task."""
        arrays = x if isinstance(x, Gated) else (x,)
        size, channels = self.kernel_size, arrays[0].shape[-1]
        pointwise = self.features is not None and size == 1 and self.stride == 1
        if self.features is None:
            shape, fan_out = (size, size, 1, channels), size * size
        else:
            shape = (channels, self.features) if pointwise else (size, size, channels, self.features)
            fan_out = size * size * self.features
        # He et al., "Delving Deep into Rectifiers", 2015, in the fan-out form that torchvision uses.
        kernel = self.param("kernel", spread(2 / fan_out), shape)
        kernel = _for_task(kernel, norming, depthwise=self.features is None).astype(self.dtype)
        arrays = [array.astype(self.dtype) for array in arrays]
        x = Gated(*arrays) if isinstance(x, Gated) else arrays[0]
        x, kernel = _rounded(self, x, kernel, norming)
        return Convolution(x, kernel, self.stride, self.dilation, depthwise=self.features is None)


class Dense(nn.Module):
    """A matrix product over the last axis, with bias: a fully connected layer, or a 1x1 convolution."""

    features: int
    dtype: jnp.dtype = jnp.dtype("float32")
    output_dtype: jnp.dtype | None = None  # `dtype` where None
    variance: float | None = None  # of the fresh kernel; 1 / channels where None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*cells channels"],
        *,
        norming: Norming = False,
        residual: Float[Array, "*cells features"] | None = None,
    ) -> Float[Array, "*cells features"]:
        """Applies the layer in `dtype` and adds `residual`; passed for one task, `norming`, with that task's patch."""
        channels = x.shape[-1]
        # LeCun et al., "Efficient BackProp", 1998: what goes in at variance 1 comes out at variance 1.
        variance = 1 / channels if self.variance is None else self.variance
        kernel = self.param("kernel", spread(variance), (channels, self.features))
        kernel = _for_task(kernel, norming)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        output_dtype = self.output_dtype or self.dtype
        x, kernel = _rounded(self, x.astype(self.dtype), kernel.astype(self.dtype), norming)
        return inference.dense(x, kernel, bias, residual, output_dtype=output_dtype)


def _for_task(kernel: Array, norming: Norming, *, depthwise: bool = False) -> Array:
    """A shared kernel in a task's pass."""
    if not isinstance(norming, PerTask):
        return kernel
    return patched(kernel, norming.patches, task=norming.task, depthwise=depthwise)


def _rounded(module: nn.Module, x: Any, kernel: Array, norming: Norming) -> tuple[Any, Array]:
    """What a layer reads and its kernel, in eight bits where the variables say so."""
    name = norming.task if isinstance(norming, PerTask) else "all"
    if not quantisation.concerns(module, name):
        return x, kernel
    return quantisation.rounded(module, x.outputs() if isinstance(x, Gated) else x, kernel, name=name)


class SeparableConv(nn.Module):
    """A depthwise convolution and a 1x1 convolution, in place of a dense one.

    References:
        Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017.
    """

    features: int
    kernel_size: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], *, norming: Norming = False) -> Convolution:
        """Returns the second convolution, not computed yet; as `Conv`."""
        x = Conv(None, self.kernel_size, dtype=self.dtype, name="depthwise")(x, norming=norming).outputs()
        return Conv(self.features, dtype=self.dtype, name="pointwise")(x, norming=norming)


class BatchNorm(nn.Module):
    """Batch norm and the activation after it; given `PerTask`, one for each task, named by it.

    Statistics are taken in float32 whatever the features are. The running variance averages the biased variance of
    each batch, the one that the batch itself was normalised with; PyTorch averages n / (n - 1) times it.
    """

    activation: str = "identity"  # one of `batch_norm.ACTIVATIONS`
    epsilon: float = 1e-5
    momentum: float = 0.9  # share of the running statistics that a step keeps: PyTorch's 1 - momentum

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space channels"] | Convolution,
        *,
        by_batch: Norming,
        residual: Float[Array, "batch *space channels"] | None = None,
    ) -> Float[Array, "batch *space channels"]:
        """Applies the layer, and adds `residual`; `by_batch` normalises by the batch and moves the running statistics.

        References:
            Bilen, Vedaldi, "Universal representations: The missing link between faces, text, planktons, and cat
            breeds", 2017 (batch norm by domain).
        """
        if isinstance(by_batch, PerTask):
            task_norm = BatchNorm(self.activation, self.epsilon, self.momentum, name=by_batch.task)
            return task_norm(x, by_batch=by_batch.by_batch, residual=residual)
        channels = (x.kernel if isinstance(x, Convolution) else x).shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        means = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variances = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not (by_batch("/".join(self.path)) if callable(by_batch) else by_batch):
            statistics = jnp.asarray(means.value), jnp.asarray(variances.value)
            factor, shift = batch_norm.coefficients(scale, bias, *statistics, epsilon=self.epsilon)
            if isinstance(x, Convolution):
                return x.normalised(factor, shift, activation=self.activation, residual=residual)
            return _sum(batch_norm.affine(x, factor, shift, activation=self.activation), residual)
        x = x.outputs() if isinstance(x, Convolution) else x
        y, mean, variance = batch_norm.by_batch(x, scale, bias, epsilon=self.epsilon, activation=self.activation)
        if not self.is_initializing():
            means.value = self.momentum * means.value + (1 - self.momentum) * mean
            variances.value = self.momentum * variances.value + (1 - self.momentum) * variance
        return _sum(y, residual)


def _sum(x: Array, residual: Array | None) -> Array:
    return x if residual is None else x + residual


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation."""

    features: int | None
    activation: str
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"] | Gated,
        *,
        train_batch_norm: Norming,
        residual: Float[Array, "batch height width features"] | None = None,
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the block and adds `residual`; `train_batch_norm` normalises by the batch and moves statistics."""
        conv = Conv(self.features, self.kernel_size, self.stride, self.dilation, self.dtype, name="conv")
        norm = BatchNorm(self.activation, self.epsilon, self.momentum, name="norm")
        return norm(conv(x, norming=train_batch_norm), by_batch=train_batch_norm, residual=residual)
