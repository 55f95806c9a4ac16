"""Segmentation, then detection, then classification of handwritten digits: no download, minutes on two CPU cores.

python scripts/train.py --config configs/quickstart.py --workdir runs/quickstart
"""

from ml_collections import ConfigDict

from mtl_jax.config import base, stage, stream

DIGITS = tuple("0123456789")
AUGMENT = {"scale_min": 0.8, "scale_max": 1.25, "random_position": True}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = base()
    config.name = "quickstart"
    config.image_size = 96
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS), "loss_stride": 2}
    config.tasks.det = {"kind": "detection", "classes": DIGITS}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}

    for name, task, label in (
        ("scenes_masks", "seg", "segmentation"),
        ("scenes_boxes", "det", "detection"),
        ("scenes_single", "cls", "classification"),
    ):
        config.streams[name] = stream(
            "digits",
            {task: label},
            options={"labels": label, "size": 96},
            batch_size=32,
            eval_batch_size=50,
            max_boxes=8,
            augment=AUGMENT,
        )
    keep = {"lwf_weight": 2.0, "replay_batch_size": 8}
    config.stages.seg = stage(("scenes_masks",), epochs=4.0, learning_rate=3e-3, replay_images=10)
    config.stages.det = stage(("scenes_boxes",), epochs=4.0, learning_rate=2e-3, replay_images=10, **keep)
    config.stages.cls = stage(("scenes_single",), epochs=2.0, learning_rate=1e-3, **keep)
    config.order = ("seg", "det", "cls")
    return config
