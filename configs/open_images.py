"""Open Images: which classes an image shows, their boxes and their pixels, with a balancing method of choice.

python scripts/prepare_data.py --data_root data --sets coco,open-images
python scripts/train.py --config configs/open_images.py --workdir runs/open_images --config.data_root=data
python scripts/train.py --config configs/open_images.py:pcgrad --workdir runs/open_images --config.data_root=data
"""

from ml_collections import ConfigDict

from mtl_jax.balance import METHODS
from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError

# Those of the mini set; for the official data, any of its class-descriptions-boxable.csv.
CLASSES = (
    "person", "parking meter", "baseball bat", "surfboard", "banana", "bed", "dining table", "laptop", "mouse",
    "teddy bear",
)  # fmt: skip


def get_config(method: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        method: a key of `mtl_jax.balance.METHODS`.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"configs/open_images.py:{method}: expected one of {', '.join(METHODS)}, found {method!r}")
    config = base()
    config.name = "open_images"
    config.image_size = 256
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9  # 900 steps are too few for running statistics at 0.99
    config.tasks.tags = {"kind": "multi_label", "classes": CLASSES}
    config.tasks.det = {"kind": "detection", "classes": CLASSES}
    # Background is most of the pixels: counted fully, it drowns the classes.
    weights = (0.3, *(1.0,) * len(CLASSES))
    config.tasks.seg = {
        "kind": "segmentation",
        "classes": ("background", *CLASSES),
        "class_weights": weights,
        "dice_weight": 1.0,
    }
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")
    config.streams.open_images = stream(
        "open_images",
        {"tags": "multi_label", "det": "detection", "seg": "segmentation"},
        options={"folder": "open-images-mini", "classes": CLASSES},
        # An image keeps its tags where a crop loses the object, so crops are mild.
        augment={
            "scale_min": 0.8,
            "scale_max": 1.4,
            "random_position": True,
            "flip_probability": 0.5,
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
        },
    )
    config.stages.joint = stage(
        ("open_images",),
        epochs=30.0,
        learning_rate=2e-3,
        backbone_rate=0.3,
        ema_decay=0.995,
        eval_every_epochs=10.0,
        balance=method,
    )
    config.order = ("joint",)
    return config
