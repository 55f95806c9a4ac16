"""Low-rank patches that each task adds to shared kernels; zero at first."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float


class Patches(NamedTuple):
    """Which patches a task has in a part of the network."""

    rank: int = 0  # of what is added to dense and 1x1 kernels; 0 adds nothing
    depthwise: bool = False  # add to depthwise kernels too


NO_PATCHES = Patches()


def patch_name(task: str) -> str:
    """Returns the name of a task's patch, next to the kernel that it is added to."""
    return f"patch_{task}"


class Patch(nn.Module):
    """Patch of one task on a kernel: the product of two thin ones, or a full kernel where it is depthwise.

    It is added to the kernel, not to the outputs: a cell costs no more than without it, and the gradient is the same.

    References:
        Rebuffi, Bilen, Vedaldi, "Efficient parametrization of multi-domain deep neural networks", 2018 (parallel
        adapters).
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022.
    """

    shape: tuple[int, ...]  # of the kernel, outputs last
    rank: int  # 0 makes it as large as the kernel

    @nn.compact
    def __call__(self) -> Float[Array, "..."]:
        """Returns what is added."""
        if not self.rank:
            return Kernel(self.shape, 0.0, name="whole")()
        *inputs, features = self.shape
        # LeCun et al., "Efficient BackProp", 1998: the channels between the two kernels have the inputs' variance.
        down = Kernel((*inputs, self.rank), 1 / math.prod(inputs), name="down")()
        return down @ Kernel((self.rank, features), 0.0, name="up")()


class Kernel(nn.Module):
    """A kernel by itself."""

    shape: tuple[int, ...]
    variance: float  # when fresh

    @nn.compact
    def __call__(self) -> Float[Array, "..."]:
        """Returns the kernel."""
        return self.param("kernel", nn.initializers.constant(math.sqrt(self.variance)), self.shape)


def patched(kernel: Float[Array, "..."], patches: Patches, *, task: str, depthwise: bool) -> Float[Array, "..."]:
    """Returns a shared kernel with a task's patch, inside the layer whose kernel it is.

    Args:
        kernel: What all tasks share, outputs last.
        patches: What each task adds in this part of the network.
        task: Whose pass it is.
        depthwise: Whether the kernel convolves every channel by itself.
    """
    if not (patches.depthwise if depthwise else patches.rank):
        return kernel
    shape = tuple(kernel.shape)
    return kernel + Patch(shape, 0 if depthwise else patches.rank, name=patch_name(task))()
