"""Settings of the network: `config.model`, and the argument of `models.multi_task.build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mtl_jax.config.checks import require_names
from mtl_jax.config.section import Section, read, setting
from mtl_jax.errors import UserError

IMAGE_STRIDE = 32  # px; the backbone halves the image five times
SHARE_ALL = "all"
STRIDES = (2, 4, 8, 16)  # px, at which parts of the backbone end, but for the last
COMPONENTS = ("backbone", "neck", "head")
BRANCH_KEYS = ("neck_channels", "head_channels", "head_layers", "dropout_rate")
MAX_LAYERS = 100  # beyond, it takes minutes to find that the network is too large
MAX_KERNEL = 15  # cells


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """The network: backbone, neck, head, and what of them tasks share."""

    backbone: str = setting(
        "mobilenet_v3_small",
        'or "mobilenet_v3_large", "efficientnet_b0", "yolov8n", "fast_scnn"; "plain_cnn" for small images and random '
        "weights",
    )
    width_multiplier: float = setting(1.0, "of the backbone's channels", least=0.1, most=10.0)
    output_stride: int = setting(
        32, '16 or 8 keep resolution by dilation (neck "two_conv")', unit="px", choices=(8, 16, 32)
    )
    sharing: str = setting(
        "hard",
        "the same layers for all tasks, as far as share_until says; or a backbone, neck and head for each task: "
        '"independent", "cross_stitch" or "progressive"; or one network that each task reads in its own way: '
        '"series_adapters", "attention", "mmoe", "cgc" (docs/sharing.md)',
    )
    experts: int = setting(3, 'necks that tasks mix, of "mmoe" and "cgc"', least=1, most=MAX_LAYERS)
    share_until: int | str = setting(
        SHARE_ALL,
        "up to this stride of the backbone tasks share all; above it each has its own layers, neck and head; "
        '"all" shares everything but each task\'s slice of the head',
        unit="px",
        choices=(SHARE_ALL, *STRIDES),
    )
    neck: str = setting("fpn", 'one FPN layer at strides 8, 16, 32, or "two_conv" at the output stride')
    neck_channels: int = setting(96, "of every level", least=1)
    head_channels: int = setting(96, "of the shared layers", least=1)
    head_layers: int = setting(
        3, "the shared layers and the last 1x1, which is split by task", least=1, most=MAX_LAYERS
    )
    head_convolution: str = setting(
        "dense",
        'of the head\'s shared layers; or "separable", a depthwise convolution and a 1x1 one: an eighth of the '
        "operations, with head_kernel 5",
    )
    head_kernel: int = setting(3, "side of the shared layers' window, odd", unit="cells", least=1, most=MAX_KERNEL)
    head_exchange: str = setting(
        "none",
        'what tasks exchange in place of the head\'s last shared layer: "attention" lets every task take in '
        'the others\' features, "refinement" corrects its outputs by theirs',
    )
    dropout_rate: float = setting(0.1, "before the head's last layer", least=0.0, most=0.99)
    branches: Mapping[str, Mapping[str, Any]] = setting(
        {}, f"task -> {', '.join(BRANCH_KEYS[:-1])} or {BRANCH_KEYS[-1]} of its branch; not where all is shared"
    )
    norms_from: int = setting(
        0,
        "above this stride of the backbone, and in neck and head, every batch norm is a task's own, and so each task a "
        "pass of its own; up to it one pass serves all. 0: no norm is; 1: all are; 32: neck's and head's",
        unit="px",
        choices=(0, 1, *STRIDES, 32),
    )
    patches: Mapping[str, int] = setting(
        dict.fromkeys(COMPONENTS, 0),
        "rank of what each task adds of its own to every shared 1x1 and dense kernel above norms_from, by part; it is "
        "zero at first, so that a new task starts from what is shared. Rank 0 adds nothing",
        least=0,
    )
    depthwise_patches: Mapping[str, bool] = setting(
        dict.fromkeys(COMPONENTS, False),
        "the same for full depthwise kernels of the backbone and of a separable head",
    )
    batch_norm_momentum: float = setting(
        0.99,
        "share of the backbone's running statistics that a step keeps: torchvision's. A network that starts from "
        "random weights and trains a few hundred steps wants 0.9",
        least=0.0,
        most=0.9999,
    )
    compute_dtype: str = setting(
        "float32", "parameters and statistics stay float32 in any case", choices=("float32", "bfloat16")
    )
    max_params: int = setting(8_000_000, "a larger network is refused", least=1)

    former: ClassVar[Mapping[str, str]] = {"batch_norm_per_task": "norms_from=1"}

    def check(self) -> None:
        """Checks what the settings mean for each other.

        Raises:
            UserError: settings that exclude each other, or a part that a network does not have.
        """
        if self.head_kernel % 2 == 0:
            raise UserError(f"head_kernel: expected an odd number of cells, such as 3 or 5, found {self.head_kernel}")
        if self.head_exchange != "none" and self.head_layers < 2:
            raise UserError(
                f"head_layers: expected at least 2 with head_exchange, which takes the place of a layer, found "
                f"{self.head_layers}"
            )
        for name in ("patches", "depthwise_patches"):
            require_names(name, getattr(self, name), "a network", COMPONENTS)
        for task, branch_settings in self.branches.items():
            require_names(f"branches.{task}", branch_settings, "a branch", BRANCH_KEYS)
        self._check_patches()

    def _check_patches(self) -> None:
        patched_components = [name for name in COMPONENTS if self.patches.get(name) or self.depthwise_patches.get(name)]
        if patched_components and not self.norms_from:
            raise UserError(
                f"patches, depthwise_patches: those of {', '.join(patched_components)} need batch norms of each task's "
                "own, as "
                "each task then passes through the layers by itself; set norms_from (8 px, or 32 for those of "
                "neck and head alone)"
            )
        if "backbone" in patched_components and self.norms_from >= self.output_stride:
            raise UserError(
                f"patches.backbone: expected layers above norms_from, {self.norms_from} px, found none; lower it, or "
                "patch no backbone"
            )

    def of_branch(self, task: str) -> ModelSettings:
        """Returns the settings with those of a task's branch in their place.

        Raises:
            UserError: a value of the branch does not fit.
        """
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return read(ModelSettings, shared | dict(self.branches.get(task, {})), f"config.model.branches.{task}")
