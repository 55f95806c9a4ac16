"""Indoor scenes: the class and the depth of every pixel from one network, with a balancing method of choice.

python scripts/train.py --config configs/nyuv2.py:seg --workdir runs/nyuv2/seg --config.data_root=data
python scripts/train.py --config configs/nyuv2.py:depth --workdir runs/nyuv2/depth --config.data_root=data
python scripts/train.py --config configs/nyuv2.py:sum --workdir runs/nyuv2/sum --config.data_root=data
python scripts/compare.py --out runs/compared configs/nyuv2.py -- --config.data_root=data

The first two train the same network for as many steps, on one of the two labels; the third has delta_m against them
with --config.contract.baseline_from.seg=runs/nyuv2/seg and --config.contract.baseline_from.depth=runs/nyuv2/depth.
"""

from ml_collections import ConfigDict

from mtl_jax.balance import METHODS
from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError

NYUV2_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture",
)  # fmt: skip
LABELS = {"seg": "segmentation", "depth": "depth"}
VARIANTS = (*LABELS, *METHODS)


def get_config(method: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        method: a key of `mtl_jax.balance.METHODS`; or "seg" or "depth", one task alone.

    Raises:
        UserError: neither a method nor a task.
    """
    if method not in VARIANTS:
        raise UserError(f"configs/nyuv2.py:{method}: expected one of {', '.join(VARIANTS)}, found {method!r}")
    config = base()
    config.name = "nyuv2"
    config.image_size = 256
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    config.tasks.seg = {"kind": "segmentation", "classes": NYUV2_CLASSES, "dice_weight": 1.0}
    config.tasks.depth = {"kind": "depth", "cost": "l1", "center": 2.5, "min_depth": 0.5, "max_depth": 10.0}
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")
    config.streams.rooms = stream(
        "nyuv2",
        {method: LABELS[method]} if method in LABELS else LABELS,
        train_image_size=192,
        eval_batch_size=10,
        # Crops of 192 px, scaled near the 256 px of evaluation (192 px times 1.33): depth stays as labelled, so a much
        # larger image would say that what looks near is far.
        augment={
            "scale_min": 1.2,
            "scale_max": 1.5,
            "random_position": True,
            "flip_probability": 0.5,
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
        },
    )
    config.stages.rooms = stage(
        ("rooms",),
        epochs=40.0,
        learning_rate=2e-3,
        backbone_rate=0.3,
        ema_decay=0.995,
        eval_every_epochs=10.0,
        balance=method if method in METHODS else "sum",
    )
    config.order = ("rooms",)
    return config
