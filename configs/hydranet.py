"""HydraNet: age, gender and ethnicity of a face from one body, with a balancing method of choice.

python scripts/train.py --config configs/hydranet.py --workdir runs/hydranet --config.data_root=data
python scripts/train.py --config configs/hydranet.py:gradnorm --workdir runs/hydranet --config.data_root=data
"""

from ml_collections import ConfigDict

from mtl_jax.balance import METHODS
from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError


def get_config(method: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        method: a key of `mtl_jax.balance.METHODS`.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"configs/hydranet.py:{method}: expected one of {', '.join(METHODS)}, found {method!r}")
    config = base()
    config.name = "hydranet"
    config.image_size = 128
    config.tolerated_leakage_percent = 0.5  # UTKFace has some faces twice, under two names
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    config.model.head_layers = 1  # a face fills the image: what the heads share is the body
    # Ages lie around 33 years and spread by 20: in these units a year's error weighs like the other tasks' losses.
    config.tasks.age = {"kind": "regression", "center": 33.0, "scale": 20.0, "unit": "years"}
    config.tasks.gender = {"kind": "classification", "classes": ("male", "female")}
    config.tasks.ethnicity = {"kind": "classification", "classes": ("White", "Black", "Asian", "Indian", "other")}
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")
    config.streams.faces = stream(
        "utkface",
        {"age": "age", "gender": "gender", "ethnicity": "ethnicity"},
        batch_size=32,
        eval_batch_size=50,
        augment={
            "scale_min": 0.9,
            "scale_max": 1.2,
            "random_position": True,
            "flip_probability": 0.5,
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
        },
    )
    config.stages.faces = stage(
        ("faces",),
        epochs=20.0,
        learning_rate=2e-3,
        # Faces are not ImageNet's objects: at 0.3, on a split of the training faces, ages were half a year less exact.
        backbone_rate=1.0,
        ema_decay=0.995,
        eval_every_epochs=5.0,
        balance=method,
    )
    config.order = ("faces",)
    return config
