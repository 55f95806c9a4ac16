"""Age, then gender, then ethnicity of a face: the recipe of `configs/seq.py`, unchanged, on three other tasks.

python scripts/train.py --config configs/faces.py --workdir runs/faces --config.data_root=data
python scripts/train.py --config configs/faces.py:alone_age --workdir runs/alone_age --config.data_root=data
"""

from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, recipes, stage, stream
from mtl_jax.errors import UserError

TASKS = {
    # Ages lie around 33 years and spread by 20: in these units a year's error weighs like the other tasks' losses.
    "age": {"kind": "regression", "center": 33.0, "scale": 20.0, "unit": "years"},
    "gender": {"kind": "classification", "classes": ("male", "female")},
    "ethnicity": {"kind": "classification", "classes": ("White", "Black", "Asian", "Indian", "other")},
}
ALONE = {f"alone_{name}": name for name in TASKS}
VARIANTS = ("shared", *ALONE)
AUGMENT = {
    "scale_min": 0.9,
    "scale_max": 1.2,
    "random_position": True,
    "flip_probability": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
}


def get_config(variant: str = "shared") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "shared", one network for the three; or "alone_age", "alone_gender", "alone_ethnicity", the same
            network for one task, all its kernels free, for as many steps.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"configs/faces.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}")
    config: Any = base()
    config.name = "faces"
    config.image_size = 128
    config.tolerated_leakage_percent = 0.5  # UTKFace has some faces twice, under two names
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    config.contract.baseline_from = dict.fromkeys(TASKS, "")
    for name, task in TASKS.items():
        config.tasks[name] = task
        options = {"batch_size": 32, "eval_batch_size": 50, "augment": AUGMENT}
        config.streams[f"faces_{name}"] = stream("utkface", {name: name}, **options)
    recipes.share_kernels(config)
    config.order = tuple(TASKS)
    stage_changes = recipes.one_after_another(config.order)
    if variant in ALONE:
        recipes.without_patches(config)
        config.order = (ALONE[variant],)
        stage_changes = {ALONE[variant]: {"backbone_rate": 1.0}}
    for name, settings in stage_changes.items():
        rates = {"learning_rate": 2e-3, "ema_decay": 0.995, "eval_every_epochs": 5.0}
        config.stages[name] = stage((f"faces_{name}",), epochs=20.0, **rates, **settings)
    return config
