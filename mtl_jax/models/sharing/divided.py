"""A backbone in two parts: one computed once for all tasks, and one computed for each task under its own norms."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models.backbones.backbone import OUTPUT_STRIDES, BackboneMaker
from mtl_jax.models.layers import ByBatch, Norming

Levels = dict[int, Float[Array, "batch _ _ _"]]  # by stride in px


class DividedBackbone(nn.Module):
    """A backbone up to a stride, and the same backbone after it; the parameters lie where those of the whole would."""

    make_backbone: BackboneMaker
    stride: int  # px; 1 leaves nothing to the lower part, 32 nothing to the upper

    def setup(self) -> None:
        """Makes the parts."""
        undivided = self.stride in (1, max(OUTPUT_STRIDES))
        stages = ({},) if undivided else ({"until": self.stride}, {"after": self.stride})
        self.sections = [self.make_backbone(**span) for span in stages]
        for section in self.sections:
            nn.share_scope(self, section)

    def __call__(self, image: Float[Array, "batch height width 3"], *, train_batch_norm: ByBatch) -> Levels:
        """Returns {stride in px: features} of the whole, for all tasks."""
        return self.upper(self.lower(image, train_batch_norm=train_batch_norm), train_batch_norm=train_batch_norm)

    def lower(self, image: Float[Array, "batch height width 3"], *, train_batch_norm: ByBatch) -> Levels:
        """Returns {stride in px: features} up to the division; at 1 px it is the image itself."""
        return {1: image} if self.stride == 1 else self.sections[0](image, train_batch_norm=train_batch_norm)

    def upper(self, shared: Mapping[int, Float[Array, "batch _ _ _"]], *, train_batch_norm: Norming) -> Levels:
        """Returns {stride in px: features} of all levels, from those up to the division."""
        if self.stride == max(OUTPUT_STRIDES):
            return dict(shared)
        task_levels = self.sections[-1](shared[max(shared)], train_batch_norm=train_batch_norm)
        return {stride: x for stride, x in shared.items() if stride in OUTPUT_STRIDES} | task_levels
