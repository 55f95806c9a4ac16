"""A backbone of three convolutions that compiles in a second, for tests of everything around the network."""

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax.models.layers import BatchNorm, ByBatch


class TinyBackbone(nn.Module):
    """Takes MobileNetV3Small's place: the same fields, the same strides."""

    width_multiplier: float = 1.0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = 0.9
    after: int = 1
    until: int = 32

    @nn.compact
    def __call__(self, image, *, train_batch_norm: ByBatch):
        features, taps = image, {self.after: image} if self.after >= 8 else {}
        for stride, step, channels in ((8, 8, 16), (16, 2, 24), (32, 2, 24)):
            if not self.after < stride <= self.until:
                continue
            features = nn.Conv(channels, (step, step), (step, step), use_bias=False, name=f"conv_{stride}")(features)
            norm = BatchNorm("relu", momentum=self.batch_norm_momentum, name=f"norm_{stride}")
            features = norm(features, by_batch=train_batch_norm)
            taps[stride] = features
        return taps


MODEL = {"backbone": "tiny", "neck_channels": 16, "head_channels": 16, "head_layers": 2}
