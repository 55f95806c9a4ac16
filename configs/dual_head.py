"""Two detectors on two datasets: people in one, other things in another, and neither labels the other's.

python scripts/train.py --config configs/dual_head.py --workdir runs/dual_head --config.data_root=data
python scripts/train.py --config configs/dual_head.py:staged --workdir runs/dual_head_staged --config.data_root=data

Both sets are images of the COCO mini set: those that show a person, and the rest. What the other task looks for is left
unlabelled on purpose, and every step trains one head, on a batch of its own dataset. A third detector is one more call
of `add`.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, load_page, stage, stream
from mtl_jax.errors import UserError

VARIANTS = ("together", "staged", "people", "things")


def get_config(variant: str = "together") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "together"; "staged", people alone first, then things with the shared part thawing stage by stage;
            or "people" or "things", one detector alone with as many steps of its own.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"configs/dual_head.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}")
    coco = load_page(Path(__file__).with_name("seq.py")).COCO_CLASSES
    config = base()
    config.name = "dual_head"
    config.image_size = 256
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    config.contract.baseline_from = ConfigDict()
    add(config, "people", ("person",), images_with=("person",))
    add(config, "things", coco[1:], images_without=("person",))
    epochs_alone = {"people": 100.0, "things": 52.6}  # epochs of 1000 steps
    if variant in epochs_alone:
        config.stages[variant] = stage((variant,), epochs=epochs_alone[variant], **OPTIMIZER)
        config.order = (variant,)
    elif variant == "together":
        # Half of the steps are each dataset's, though things have almost twice the images.
        even = {"sampling_temperature": float("inf")}
        config.stages.both = stage(("people", "things"), epochs=100.0, **even, **OPTIMIZER)
        config.order = ("both",)
    else:
        config.stages.people = stage(("people",), epochs=50.0, **OPTIMIZER)
        thaw = {"freeze": {"backbone/until_8": None, "backbone/stride_16": (0, 10), "backbone/stride_32": (0, 5)}}
        by_root = {"sampling_temperature": 2.0}
        config.stages.both = stage(("people", "things"), epochs=50.0, **by_root, **thaw, **OPTIMIZER)
        config.order = ("people", "both")
    return config


OPTIMIZER: dict[str, Any] = {"learning_rate": 2e-3, "backbone_rate": 0.3, "ema_decay": 0.995}


def add(config: Any, name: str, classes: tuple[str, ...], **images: Any) -> None:
    """Adds a detector with a dataset of its own: images of the COCO mini set, chosen by what they show."""
    config.tasks[name] = {"kind": "detection", "classes": classes}
    config.contract.baseline_from[name] = ""
    augment = {
        "scale_min": 0.8,
        "scale_max": 2.0,
        "random_position": True,
        "flip_probability": 0.5,
        "mosaic_probability": 0.5,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
    }
    config.streams[name] = stream(
        "coco_detection",
        {name: "detection"},
        options={"folder": "mini-coco-det", "classes": classes, "other_categories": "ignore", **images},
        train_image_size=192,
        augment=augment,
    )
