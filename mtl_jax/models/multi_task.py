"""The multi-task network, from an image to the outputs of the requested tasks: build, initialise, apply."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Key

from mtl_jax.config import former
from mtl_jax.config.checks import require_choice, require_names
from mtl_jax.config.model_settings import IMAGE_STRIDE, ModelSettings
from mtl_jax.config.section import defaults, plain, read
from mtl_jax.errors import UserError
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models.backbones.backbone import BackboneMaker
from mtl_jax.models.backbones.csp_darknet import YoloV8N
from mtl_jax.models.backbones.efficientnet import EfficientNetB0
from mtl_jax.models.backbones.fast_scnn import FastSCNN
from mtl_jax.models.backbones.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from mtl_jax.models.backbones.plain_cnn import PlainCNN
from mtl_jax.models.exchange import EXCHANGES
from mtl_jax.models.head import CONVOLUTIONS, Head
from mtl_jax.models.layers import draw_kernels
from mtl_jax.models.neck import NECKS
from mtl_jax.models.passes import Features as Features
from mtl_jax.models.passes import TrainOutputs as TrainOutputs
from mtl_jax.models.passes import Variables as Variables
from mtl_jax.models.passes import apply_eval as apply_eval
from mtl_jax.models.passes import apply_train as apply_train
from mtl_jax.models.passes import check_image_size
from mtl_jax.models.passes import eval_raw as eval_raw
from mtl_jax.models.passes import train_raw as train_raw
from mtl_jax.models.sharing import wiring
from mtl_jax.models.sharing.wiring import WAYS, Network, once_a_network
from mtl_jax.tasks.base import Task

BACKBONES = {
    "mobilenet_v3_small": MobileNetV3Small,
    "mobilenet_v3_large": MobileNetV3Large,
    "efficientnet_b0": EfficientNetB0,
    "yolov8n": YoloV8N,
    "fast_scnn": FastSCNN,
    "plain_cnn": PlainCNN,
}
INIT_IMAGE_SIZE = 64  # px; parameters do not depend on it
RESERVED = ("scale", "bias", "mean", "var", "shared", "unread")  # no names of tasks


CHOICES = {
    "backbone": BACKBONES,
    "neck": NECKS,
    "sharing": WAYS,
    "head_exchange": EXCHANGES,
    "head_convolution": CONVOLUTIONS,
}


@runtime_checkable
class Settings(Protocol):
    """Values by name: a dict, or a ConfigDict, which is no Mapping."""

    def keys(self) -> Any:
        """Returns the names."""
        ...

    def __getitem__(self, key: str, /) -> Any:
        """Returns the value of a name."""
        ...


def build(model_config: ModelSettings | Settings, tasks: Mapping[str, Task]) -> Network:
    """Makes the network for some tasks.

    Args:
        model_config: Settings, or any of the keys of `default_config`, which stands in for those left out.
        tasks: {task name: task}, all that the network will ever emit.

    Returns:
        The module. Its parameters are made by `init_variables`.

    Raises:
        UserError: The configuration has an unknown key, an unknown name or a value out of range, a task reads
            a level that the neck does not give, or the network has more parameters than `max_params`.
    """
    settings = _settings(model_config)
    neck = NECKS[settings.neck]
    _check_tasks(tasks, neck_name=settings.neck, strides=neck.strides(settings.output_stride))
    dtype = jnp.dtype(settings.compute_dtype)
    sizes = settings.width_multiplier, settings.output_stride, dtype, settings.batch_norm_momentum

    def make_neck(branch_settings: ModelSettings) -> Any:
        return neck(branch_settings.neck_channels, dtype, parent=None)

    def make_head(branch_settings: ModelSettings, records: tuple[Task, ...]) -> Head:
        sizes = {
            "channels": branch_settings.head_channels,
            "layers": branch_settings.head_layers,
            "dropout_rate": branch_settings.dropout_rate,
        }
        layers = {"convolution": settings.head_convolution, "kernel_size": settings.head_kernel}
        return Head(records, **sizes, dtype=dtype, exchange=settings.head_exchange, **layers, parent=None)

    backbone = BackboneMaker(BACKBONES[settings.backbone], sizes)
    makers = wiring.PartFactories(backbone, make_neck, make_head)
    model = wiring.wire(settings, _branches(settings, tasks), makers, tuple(tasks.values()))
    count = parameter_count(jax.eval_shape(lambda key: _init(model, key), jax.random.key(0))["params"])
    total, limit = sum(count.values()), settings.max_params
    if total > limit:
        sizes_text = ", ".join(f"{component} {size:,}" for component, size in count.items())
        raise UserError(
            f"model: expected at most {limit:,} parameters (max_params), found {total:,} ({sizes_text}); lower "
            "width_multiplier, neck_channels, head_channels or head_layers"
        )
    return model


def default_config() -> dict[str, Any]:
    """Returns the value of every key that `build` takes, as `config.base` sets it."""
    return defaults(ModelSettings)


def backbone_name(model: Network) -> str:
    """Returns the key of a network's backbone in `BACKBONES`."""
    return next(name for name, backbone in BACKBONES.items() if type(wiring.whole_backbone(model)) is backbone)


def init_variables(model: Network, *, key: Key[Array, ""], image_size: int = 512) -> dict[str, dict[str, Any]]:
    """Makes fresh parameters and running statistics.

    Args:
        model: The network.
        key: Source of the random weights.
        image_size: Height and width in px of the images to come; only checked, as no parameter depends on it.

    Returns:
        {"params": {"backbone", "neck", "head"}, "batch_stats": likewise}; below `share_until`, each task has its
        own {"backbone", "neck", "head"} under "branch_<task>", and "backbone" holds the shared stages.

    Raises:
        UserError: The network cannot take images of this size.
    """
    check_image_size(image_size, image_size)
    return _init(model, key) if isinstance(key, Tracer) else _init_once(model, key)


def parameter_count(params: Mapping[str, Any]) -> dict[str, int]:
    """Counts the parameters of each part.

    Args:
        params: {part: pytree of arrays or of their shapes}.

    Returns:
        {part: number of parameters}.
    """
    return {
        component: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for component, tree in params.items()
    }


@once_a_network  # every stage of every plan asks
def backbone_stages(model: Network) -> Mapping[str, tuple[str, ...]]:
    """Returns {"stride_2" and so on: the names of the backbone's layers that end at this stride}."""
    backbone, stages, known_paths = wiring.whole_backbone(model), {}, set()
    image = jax.ShapeDtypeStruct((1, INIT_IMAGE_SIZE, INIT_IMAGE_SIZE, 3), jnp.float32)
    for number in range(int(math.log2(IMAGE_STRIDE))):
        partial_backbone = backbone.clone(until=2 ** (number + 1))
        init = functools.partial(partial_backbone.init, train_batch_norm=False)
        with cpu_kernels.left_out():
            layers = jax.eval_shape(init, jax.random.key(0), image).get("params", {})
        stages[f"stride_{2 ** (number + 1)}"] = tuple(name for name in layers if name not in known_paths)
        known_paths |= set(layers)
    return stages


# What runs once is not worth optimising: compiling it takes longer than all the rest.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _init_once(model: Network, key: Array) -> dict[str, Any]:
    return _init(model, key)


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Network, key: Array) -> dict[str, Any]:
    image = jnp.zeros((1, INIT_IMAGE_SIZE, INIT_IMAGE_SIZE, 3))
    names = tuple(task.name for task in model.tasks)
    with cpu_kernels.left_out():  # which give the same shapes, and may still be compiling
        variables: Any = model.init(key, image, tasks=names, train=False, train_batch_norm=False)
    return variables | {"params": draw_kernels(variables["params"], key=key)}


def _settings(section: ModelSettings | Settings) -> ModelSettings:
    """The settings, which name parts that there are."""
    settings = (
        section
        if isinstance(section, ModelSettings)
        else read(ModelSettings, former.renamed_model(plain(section)), "config.model")
    )
    for name, choices in CHOICES.items():
        require_choice(f"config.model.{name}", getattr(settings, name), choices)
    return settings


def _branches(settings: ModelSettings, tasks: Mapping[str, Task]) -> dict[str, ModelSettings]:
    """The settings of each task's branch."""
    require_names("config.model.branches", settings.branches, "config.tasks", tasks)
    if settings.branches and not wiring.has_branches(settings):
        raise UserError(
            "config.model.branches: expected none where nothing branches, with share_until "
            f"{settings.share_until!r}, found "
            f'{", ".join(settings.branches)}; set share_until to a stride in px, or sharing="independent"'
        )
    return {name: settings.of_branch(name) for name in tasks}


def _check_tasks(tasks: Mapping[str, Task], *, neck_name: str, strides: tuple[int, ...]) -> None:
    if not tasks:
        raise UserError("tasks: expected at least one task, found none; name one in the configuration")
    for name, task in tasks.items():
        if name != task.name or name.startswith(("conv_", "norm_", "patch_")) or name in RESERVED:
            raise UserError(
                "tasks: expected the task's own name, not beginning with conv_, norm_ or patch_ (the head's "
                f"layers), found {name!r} for the task {task.name!r}; rename it"
            )
        missing = [stride for stride in task.strides if stride not in strides]
        if missing or not task.strides:
            raise UserError(
                f"tasks.{name}.strides: expected some of {strides}, which the neck {neck_name!r} gives at "
                f"this output_stride, found {task.strides}; change them, the neck or output_stride"
            )
