"""Segmentation, then detection, then classification of handwritten digits: no download, minutes on two CPU cores.

python scripts/train.py --config configs/quickstart.py --workdir runs/quickstart
"""

from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, recipes, stage, stream
from mtl_jax.errors import UserError

DIGITS = tuple("0123456789")
AUGMENT = {"scale_min": 0.8, "scale_max": 1.25, "random_position": True}
RATE = 3e-3
SHARED_RATE = 1.5e-2  # with norms and patches of its own a task bears five times as much, and learns in fewer epochs


def get_config(variant: str = "shared") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "shared", the recipe of `configs/seq.py`: kernels that all tasks use, with batch norms and patches of
            each task's own; or "plain", nothing of a task's own but its slice of the head.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in NETWORKS:
        raise UserError(f"configs/quickstart.py:{variant}: expected one of {', '.join(NETWORKS)}, found {variant!r}")
    config = _data_and_tasks()
    NETWORKS[variant](config)
    return config


def _data_and_tasks() -> Any:
    config = base()
    config.name = "quickstart"
    config.image_size = 96
    config.survey_images = 500  # of each split: scenes are drawn, and some show what all do
    config.held_out_percent = 5.0  # 100 scenes, on which the scores that count are chosen
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
    config.order = ("seg", "det", "cls")
    return config


def _shared(config: Any) -> None:
    """The first stage trains the backbone's kernels, which start from random weights, and the later ones keep them."""
    config.model.norms_from = 8
    config.model.patches.update({"neck": 8, "head": 8})
    stage_changes = recipes.one_after_another(config.order)
    stage_changes["seg"].pop("freeze")
    stage_changes["det"]["keep"]["replay"]["batch_size"] = 4
    settings: dict[str, Any] = {"learning_rate": SHARED_RATE}
    config.stages.seg = stage(("scenes_masks",), epochs=6.0, **settings, **stage_changes["seg"])
    settings["warm_start"] = "seg"
    config.stages.det = stage(("scenes_boxes",), epochs=5.0, **settings, **stage_changes["det"])
    config.stages.cls = stage(("scenes_single",), epochs=8.0, **settings, **stage_changes["cls"])


def _plain(config: Any) -> None:
    """All kernels and norms may move in every stage; distillation and replay keep what the older tasks need."""
    later_settings = {"learning_rate": RATE, "train_batch_norm": "new_levels"}
    old = {"batch_size": 4}  # replayed images of each old stream in a step
    distilled = {"weight": 4.0}
    config.stages.seg = stage(("scenes_masks",), epochs=7.0, learning_rate=RATE, keep={"replay": {"images": 10}})
    keep_settings = {"replay": {"images": 10, **old}, "lwf": distilled}
    config.stages.det = stage(("scenes_boxes",), epochs=6.0, keep=keep_settings, **later_settings)
    config.stages.cls = stage(("scenes_single",), epochs=3.0, keep={"replay": old, "lwf": distilled}, **later_settings)


NETWORKS = {"shared": _shared, "plain": _plain}
