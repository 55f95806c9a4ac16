"""A backbone taken stage by stage, so that something may happen between its stages."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models.backbones.backbone import FIRST_TAP_STRIDE
from mtl_jax.models.layers import Norming

STAGES = 5  # stage k ends at stride 2 ** (k + 1)


class StagedBackbone(nn.Module):
    """The stages of one backbone, whose parameters lie where those of the whole backbone would."""

    make_backbone: Callable[..., nn.Module]  # takes `after` and `until`, strides in px

    def setup(self) -> None:
        """Makes the stages."""
        self.sections = [self.make_backbone(after=2**number, until=2 ** (number + 1)) for number in range(STAGES)]
        for section in self.sections:
            nn.share_scope(self, section)

    def __call__(
        self, x: Float[Array, "batch height width channels"], number: int, *, train_batch_norm: Norming
    ) -> Float[Array, "batch _ _ _"]:
        """Applies the stage of a number to the features of the one before, or the first to normalised images."""
        return self.sections[number](x, train_batch_norm=train_batch_norm)[2 ** (number + 1)]


def taps(outputs: list[Array]) -> dict[int, Float[Array, "batch _ _ _"]]:
    """Returns {stride in px: features} of the stages that necks read, from the outputs of all stages in order."""
    strides = {2 ** (number + 1): x for number, x in enumerate(outputs)}
    return {stride: x for stride, x in strides.items() if stride >= FIRST_TAP_STRIDE}
