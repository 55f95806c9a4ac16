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
    config.model.backbone = "plain_cnn"  # learns from random weights in a minute
    config.model.batch_norm_momentum = 0.9
    config.model.neck_channels = config.model.head_channels = 64
    # Most pixels are background: counted fully, it drowns the ten digits.
    weights = (0.2, *(1.0,) * 10)
    config.tasks.seg = {
        "kind": "segmentation",
        "classes": ("background", *DIGITS),
        "class_weights": weights,
        "loss_stride": 2,
    }
    config.tasks.det = {"kind": "detection", "classes": DIGITS}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")

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
    rates = {"learning_rate": 3e-3}
    later = rates | {"train_batch_norm": "new_levels"}
    old = {"batch_size": 4}  # replayed images of each old stream in a step
    distilled = {"weight": 4.0}
    config.stages.seg = stage(("scenes_masks",), epochs=7.0, keep={"replay": {"images": 10}}, **rates)
    kept = {"replay": {"images": 10, **old}, "lwf": distilled}
    config.stages.det = stage(("scenes_boxes",), epochs=6.0, keep=kept, **later)
    config.stages.cls = stage(("scenes_single",), epochs=3.0, keep={"replay": old, "lwf": distilled}, **later)
    config.order = ("seg", "det", "cls")
    return config
