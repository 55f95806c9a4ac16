"""The flagship: PASCAL VOC segmentation, then COCO boxes, then Imagenette classes: one backbone, one neck, one head.

python scripts/train.py --config configs/seq.py --workdir runs/seq --config.data_root=data
python scripts/train.py --config configs/seq.py:alone_det --workdir runs/alone_det --config.data_root=data
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, recipes, stage, stream
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


NARROW = {"neck_channels": 96, "head_channels": 96}  # as wide as each network for one task


def shrink(config: Any) -> None:
    """Brings images to a quarter of their pixels, for pages that compare many runs."""
    config.image_size = 256
    for name, size, train_size in (("voc", 256, 192), ("coco", 256, 192), ("imagenette", 128, 128)):
        config.streams[name].update({"image_size": size, "train_image_size": train_size})


def get_config(variant: str = "shared") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: words joined by "-". A network: "shared", kernels that all tasks use, with batch norms and patches of
            each task's own; "branched", a backbone above stride 8, neck and head for each; "plain" (once "all"),
            nothing of a task's own but its slice of the head; "alone_seg", "alone_det" or "alone_cls", the shared
            network for one task, all its kernels free. With it "small", a quarter of the pixels, and for the shared
            network what is left out of its recipe: "no_" and a key of `WITHOUT`.

    Raises:
        UserError: an unknown variant.
    """
    words = variant.split("-")
    network = next((word for word in words if word in NETWORKS), "shared")
    changes = {"small": shrink}
    if network == "shared":
        changes |= {f"no_{name}": change for name, change in WITHOUT.items()}
    changed = [word for word in words if word != network]
    if not set(changed) <= set(changes) or len(set(words)) < len(words):
        expected = f"one of {', '.join(NETWORKS)}, small, and with shared {', '.join(f'no_{name}' for name in WITHOUT)}"
        raise UserError(f"configs/seq.py:{variant}: expected {expected}, joined by -, found {variant!r}")
    config = _data_and_tasks()
    for change in (NETWORKS[network], *(changes[word] for word in changed)):
        change(config)
    return config


def _data_and_tasks() -> Any:
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

    config.order = ("seg", "det", "cls")
    return config


RATES = {"learning_rate": 2e-3, "ema_decay": 0.995, "eval_every_epochs": 10.0}
EPOCHS = {"seg": 40.0, "det": 100.0, "cls": 24.0}
SQUARES_EPOCHS = 48.0  # of classes that fill the square, in new colours each time
FREE_BACKBONE = {"seg": 0.2, "det": 0.3, "cls": 0.05}  # times the learning rate, where its kernels are trained
STREAM = {"seg": "voc", "det": "coco", "cls": "imagenette"}


def _shared(config: Any) -> None:
    """Boxes may move the kernels of neck and head, held by distillation and replay; classes leave them as they are."""
    _shared_network(config)
    _stages(config, **recipes.one_after_another(config.order))
    config.stages.cls.update({"learning_rate": 3e-3, "epochs": SQUARES_EPOCHS})  # little is trained, and from zero


def _shared_network(config: Any) -> None:
    recipes.share_kernels(config)
    _squares(config)


def _squares(config: Any) -> None:
    # The images of classes fill the square: with frozen kernels, grey bars around them cost several points. Training
    # crops magnify; at 288 px whole squares look as large (Touvron et al., "Fixing the train-test resolution
    # discrepancy", 2019).
    config.streams.imagenette.update({"crop": True, "train_image_size": 224, "image_size": 288})
    colours = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    config.streams.imagenette.augment.update({"scale_min": 1.0, "scale_max": 1.7, **colours})


def _alone(config: Any, task: str) -> None:
    """All kernels free, for the steps that the task has in its turn; a patch would have nothing to add."""
    _shared_network(config)
    recipes.without_patches(config)
    _stages(config, **{task: {"backbone_rate": FREE_BACKBONE[task]}})
    if task == "cls":
        config.stages.cls.epochs = SQUARES_EPOCHS
    config.order = (task,)


def _branched(config: Any) -> None:
    """Shared up to stride 8; above it each task has stages, neck and head of its own.

    No stage changes the shared ones, whose ImageNet features serve every task as well as trained ones would, and so no
    task is forgotten.
    """
    config.model.share_until = 8
    config.model.neck_channels = config.model.head_channels = 64
    config.model.branches = {"seg": {"neck_channels": 128, "head_channels": 128}, "cls": {"head_layers": 2}}
    settings = {name: {"backbone_rate": rate, "freeze": ("backbone",)} for name, rate in FREE_BACKBONE.items()}
    _stages(config, **settings)
    config.stages.det.warm_start = "seg"  # masks teach where things end


def _plain(config: Any) -> None:
    """One pass serves all: ImageNet's kernels stay, and the rest, norms included, keeps what the older tasks need.

    Neck and head are two and a half times as wide, and boxes have half as many steps more: what tasks cannot have for
    themselves, they find among more channels.
    """
    config.model.update({"neck_channels": 256, "head_channels": 256, "head_convolution": "separable", "head_kernel": 5})
    _squares(config)
    retention = {"replay": {"images": recipes.EXEMPLARS, "batch_size": 2}, "lwf": {"weight": 2.0}}
    later = {"freeze": recipes.IMAGENET, "train_batch_norm": "new_levels", "keep": retention}
    first = {"freeze": recipes.IMAGENET, "keep": {"replay": {"images": recipes.EXEMPLARS}}}
    _stages(config, seg=first, det=later, cls=later)
    config.stages.det.epochs = 1.5 * EPOCHS["det"]
    config.stages.cls.update({"learning_rate": 3e-3, "epochs": SQUARES_EPOCHS})


def _stages(config: Any, **changes: dict[str, Any]) -> None:
    for name, settings in changes.items():
        config.stages[name] = stage((STREAM[name],), epochs=EPOCHS[name], **{**RATES, **settings})


NETWORKS: dict[str, Callable[[Any], None]] = {
    "shared": _shared,
    "branched": _branched,
    "plain": _plain,
    "all": _plain,  # its former name
    "alone_seg": partial(_alone, task="seg"),
    "alone_det": partial(_alone, task="det"),
    "alone_cls": partial(_alone, task="cls"),
}


def _no_own_norms(config: Any) -> None:
    """Those of neck and head stay, as patches need them; the backbone's keep their statistics after the first stage."""
    config.model.norms_from = 32
    for name in config.order[1:]:
        config.stages[name].train_batch_norm = "new_levels"


def _no_frozen_backbone(config: Any) -> None:
    for name, rate in FREE_BACKBONE.items():
        frozen = tuple(pattern for pattern in config.stages[name].freeze if pattern not in recipes.IMAGENET)
        config.stages[name].update({"backbone_rate": rate, "freeze": frozen})


def _no_locked_head(config: Any) -> None:
    config.stages.det.keep.replay.images = recipes.EXEMPLARS
    config.stages.cls.update({"freeze": recipes.IMAGENET, "keep": recipes.RETENTION})


def _no_squares(config: Any) -> None:
    uncropped = _data_and_tasks().streams.imagenette
    config.streams.imagenette.update({"crop": False, "augment": uncropped.augment})


def _without(config: Any, method: str) -> None:
    del config.stages.det.keep[method]


WITHOUT: dict[str, Callable[[Any], None]] = {
    "patches": recipes.without_patches,
    "own_norms": _no_own_norms,
    "frozen_backbone": _no_frozen_backbone,
    "locked_head": _no_locked_head,
    "lwf": partial(_without, method="lwf"),
    "replay": partial(_without, method="replay"),
    "separable": lambda config: config.model.update({"head_convolution": "dense", "head_kernel": 3}),
    "squares": _no_squares,
}
