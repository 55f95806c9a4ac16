"""A plain convolutional backbone: learns small images from random weights in minutes, where MobileNetV3 takes hours."""

from __future__ import annotations

from functools import partial

from mtl_jax.models.backbones.backbone import Backbone, Layers

# Channels and stride of each 3x3 convolution.
LAYERS = ((16, 2), (32, 2), (64, 2), (64, 1), (96, 2), (96, 1), (128, 2))


class PlainCNN(Backbone):
    """3x3 convolutions with batch norm and ReLU, in the manner of VGG (Simonyan and Zisserman, 2015); strides 8 to 32.

    About 0.31 M parameters at full width; its parts are layer_0 … layer_6. Its one output stride is 32.
    """

    def layers(self) -> Layers:
        """The layers, in order."""
        self.refuse_dilation("plain_cnn")
        return [
            (stride, partial(self.conv_norm, self.width(channels), "relu", 3, stride, name=f"layer_{number}"))
            for number, (channels, stride) in enumerate(LAYERS)
        ]
