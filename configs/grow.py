"""A finished run that grows: boxes of five handwritten digits first, five more later, then a task more (docs/grow.md).

mtl-jax train --config configs/grow.py --workdir runs/digits
mtl-jax extend --from runs/digits --workdir runs/digits-2 --config configs/grow.py:more
mtl-jax extend --from runs/digits-2 --workdir runs/digits-3 --config configs/grow.py:task

The first two take a minute together on two CPU cores. Scenes of the first run show no digit that comes later, and those
of the second none that was there.
"""

from typing import Any

from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError

FIRST, LATER = tuple("01234"), tuple("56789")
AUGMENT = {"scale_min": 0.8, "scale_max": 1.25, "random_position": True}
RATE = 3e-3


def get_config(variant: str = "first") -> Any:
    """Returns the first run, or what is added to it: of the network it says only what the first one says.

    Args:
        variant: "first", boxes of five digits; "more", of the five others; or "task", which digit a scene shows.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"configs/grow.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}")
    config = base()
    config.name, config.image_size, config.contract.latency_image_size = "grow", 64, 64
    config.model.backbone = "plain_cnn"  # learns from random weights in a minute
    config.model.batch_norm_momentum = 0.9
    config.model.norms_from = 8  # above it each task has norms, and so statistics, of its own
    config.model.patches = {"neck": 8, "head": 8}
    config.model.neck_channels = config.model.head_channels = 64
    VARIANTS[variant](config)
    return config


def _first(config: Any) -> None:
    config.tasks.det = {"kind": "detection", "classes": FIRST, "strides": (8, 16)}
    _add(config, "first", {"det": "detection"}, FIRST, epochs=8.0)


def _add_classes(config: Any) -> None:
    config.tasks.det = {"kind": "detection", "classes": LATER}
    _add(config, "more", {"det": "detection"}, LATER, epochs=8.0)


def _task(config: Any) -> None:
    config.tasks.cls = {"kind": "classification", "classes": (*FIRST, *LATER)}
    _add(config, "single", {"cls": "classification"}, (*FIRST, *LATER), epochs=8.0)


def _add(config: Any, name: str, labels: dict[str, str], digits: tuple[str, ...], *, epochs: float) -> None:
    """Adds a stream, and a stage that learns from it."""
    options = {"labels": tuple(labels.values()), "size": 64, "length": 1000, "digits": digits}
    settings = {"batch_size": 32, "eval_batch_size": 50, "max_boxes": 8, "augment": AUGMENT}
    config.streams[name] = stream("digits", labels, options=options, val_options={"length": 200}, **settings)
    config.stages[name] = stage((name,), epochs=epochs, learning_rate=RATE)
    config.order = (name,)


VARIANTS = {"first": _first, "more": _add_classes, "task": _task}
