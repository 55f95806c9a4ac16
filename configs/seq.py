"""The flagship: PASCAL VOC segmentation, then COCO boxes, then Imagenette classes, in one network.

python scripts/train.py --config configs/seq.py --workdir runs/seq --config.data_root=data
"""

from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, stage, stream
from mtl_jax.errors import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_CLASSES = (
    "person", "parking meter", "baseball bat", "surfboard", "banana", "bed", "dining table", "laptop", "mouse",
    "teddy bear",
)  # fmt: skip
IMAGENETTE_CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
    "gas pump", "golf ball", "parachute",
)  # fmt: skip


def shrink(config: Any) -> None:
    """Brings images to a quarter of their pixels, for pages that compare many runs."""
    config.image_size = 256
    for name, size, train_size in (("voc", 256, 192), ("coco", 256, 192), ("imagenette", 128, 128)):
        config.streams[name].update({"image_size": size, "train_image_size": train_size})


def get_config(variant: str = "branched") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "branched"; "small", the same at a quarter of the pixels; or "all", one backbone, neck and head for all
            tasks, which `--config configs/seq.py:all` asks for, and which has to keep old tasks by distillation and
            replay.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in ("branched", "small", "all"):
        raise UserError(f"configs/seq.py:{variant}: expected branched, small or all after the colon")
    config = base()
    config.name = "seq"
    config.image_size = 512
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9  # the shortest stage is too short for running statistics at 0.99
    # Background is two thirds of the pixels: counted fully, it drowns the twenty classes.
    weights = (0.3, *(1.0,) * 20)
    config.tasks.seg = {
        "kind": "segmentation",
        "classes": VOC_CLASSES,
        "class_weights": weights,
        "loss_stride": 4,
        "dice_weight": 1.0,
    }
    config.tasks.det = {"kind": "detection", "classes": COCO_CLASSES}
    config.tasks.cls = {"kind": "classification", "classes": IMAGENETTE_CLASSES, "label_smoothing": 0.1}
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")

    # Crops of 384 px from images scaled around 512 px (384 px times 0.8 to 2.0): a step costs half.
    augment = {
        "scale_min": 0.8,
        "scale_max": 2.0,
        "random_position": True,
        "flip_probability": 0.5,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
    }
    config.streams.voc = stream(
        "voc_segmentation",
        {"seg": "segmentation"},
        options={"folder": "mini-voc-seg"},
        train_image_size=384,
        augment=augment,
    )
    # Boxes are sought at the size of the training crops: no crop has ever shown a table that fills 512 px.
    config.streams.coco = stream(
        "coco_detection",
        {"det": "detection"},
        options={"folder": "mini-coco-det", "classes": COCO_CLASSES},
        image_size=384,
        augment={**augment, "mosaic_probability": 0.5},
    )
    # The images are 160 px on their short side: 512 px would show nothing more.
    config.streams.imagenette = stream(
        "image_folder",
        {"cls": "classification"},
        options={"folder": "imagenette-160"},
        image_size=224,
        batch_size=16,
        eval_batch_size=20,
        # Evaluation shows whole images between grey bars, so training must too: crops that fill the input made the
        # network mistake a third of its own training images when it saw them whole.
        augment={"scale_min": 0.8, "scale_max": 1.8, "random_position": True, "aspect": 1.2, "flip_probability": 0.5},
    )

    rates: dict[str, Any] = {"learning_rate": 2e-3, "backbone_rate": 0.2, "ema_decay": 0.995, "eval_every_epochs": 10.0}
    if variant != "all":
        # Shared up to stride 8; above it each task has stages, neck and head of its own. No stage changes the shared
        # ones, whose ImageNet features serve every task as well as trained ones would, and so no task is forgotten.
        config.model.share_until = "stage_2"
        config.model.neck_channels = config.model.head_channels = 64
        config.model.branches = {"seg": {"neck_channels": 128, "head_channels": 128}, "cls": {"head_layers": 2}}
        rates["freeze"] = ("backbone",)
        later = {}
    else:
        # The first stage is free; the later ones keep its statistics, ten of its images, and its outputs.
        rates["replay_images"] = 10
        later = {"train_batch_norm": "new_levels", "replay_batch_size": 2, "lwf_weight": 4.0}
    config.stages.seg = stage(("voc",), epochs=40.0, **rates)
    config.stages.det = stage(("coco",), epochs=100.0, **{**rates, "backbone_rate": 0.3}, **later)
    if variant != "all":
        config.stages.det.warm_start = "seg"  # masks teach where things end
    config.stages.cls = stage(("imagenette",), epochs=24.0, **{**rates, "backbone_rate": 0.05}, **later)
    config.order = ("seg", "det", "cls")
    if variant == "small":
        shrink(config)
    return config
