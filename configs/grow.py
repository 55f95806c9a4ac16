"""A finished run that grows: masks of handwritten digits first, later which digit a scene shows (docs/grow.md).

Both take a minute together, which is too short to learn anything: it is how to write such pages.

mtl-jax train --config configs/grow.py --workdir runs/digits
mtl-jax extend --from runs/digits --workdir runs/digits-2 --config configs/grow.py:more
"""

from typing import Any

from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError

VARIANTS = ("first", "more")
DIGITS = tuple("0123456789")
OPTIONS = {"size": 64, "length": 400}


def get_config(variant: str = "first") -> Any:
    """Returns the first run, or what is added to it: it says of the network only what every page says."""
    if variant not in VARIANTS:
        raise UserError(f"configs/grow.py:{variant}: expected one of {', '.join(VARIANTS)}")
    config = base()
    config.name, config.image_size, config.contract.latency_image_size = "grow", 64, 64
    config.model.backbone = "plain_cnn"  # small, and for random weights
    config.model.batch_norm_momentum = 0.9
    config.model.norms_from = 8  # above it each task has norms, and so statistics, of its own
    config.model.patches = {"neck": 4, "head": 4}
    config.model.neck_channels = config.model.head_channels = 32
    if variant == "first":
        weights = (0.2, *(1.0,) * 10)
        config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS), "class_weights": weights}
        add(config, "seg", "segmentation", epochs=6.0)
    else:
        config.tasks.cls = {"kind": "classification", "classes": DIGITS}
        add(config, "cls", "classification", epochs=6.0)
    return config


def add(config: Any, task: str, label: str, **settings: Any) -> None:
    """Adds a task's stream and stage."""
    config.streams[task] = stream(
        "digits", {task: label}, options={"labels": label, **OPTIONS}, batch_size=16, eval_batch_size=50
    )
    config.stages[task] = stage((task,), learning_rate=3e-3, **settings)
    config.order = (task,)
