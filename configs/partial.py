"""Two datasets that label different classes of one task: each half of the images labels half of the classes.

python scripts/train.py --config configs/partial.py:det/partial --workdir runs/partial --config.data_root=data
python scripts/compare.py --out runs/partial configs/partial.py -- --config.data_root=data

Each half of the mini sets is what a dataset collected for its own classes looks like: the second has the images that
show one of `SECOND`'s classes, and their labels alone; the first has the other images, and the labels of the other
classes. So a tenth to a half of the objects of classes that occur with others, people most of all, are not labelled.
"full" keeps all labels, "naive" believes that what is not labelled is background, "partial" knows which classes each
half labels, and "pseudo" fills in the others where the network is sure of them. Every variant sees the same images in
the same order, and is measured on all classes. Images have a quarter of the flagship's pixels.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import base, load_page, recipes, stage, stream
from mtl_jax.errors import UserError

KNOWLEDGE = ("full", "naive", "partial", "pseudo")
VARIANTS = tuple(f"{task}/{knowledge}" for task in ("det", "seg") for knowledge in KNOWLEDGE)
SECOND = {
    "det": ("parking meter", "surfboard", "bed", "laptop", "mouse"),
    "seg": ("bicycle", "boat", "bus", "cat", "cow", "dog", "motorbike", "pottedplant", "sofa", "tvmonitor"),
}
EPOCHS = {"det": 60.0, "seg": 30.0}
AUGMENT = {
    "scale_min": 0.8,
    "scale_max": 2.0,
    "random_position": True,
    "flip_probability": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
}


def get_config(variant: str = "det/partial") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "det", boxes, or "seg", masks; "/"; and one of `KNOWLEDGE`.

    Raises:
        UserError: another variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"configs/partial.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}")
    task, _, knowledge = variant.partition("/")
    config: Any = base()
    config.name = "partial"
    config.image_size = config.contract.latency_image_size = 256
    config.example_images = 1
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    page = load_page(Path(__file__).with_name("seq.py"))
    classes = page.VOC_CLASSES if task == "seg" else page.COCO_CLASSES
    foreground = classes[1:] if task == "seg" else classes
    if task == "seg":
        config.tasks.seg = {"kind": "segmentation", "classes": classes, "class_weights": (0.3, *(1.0,) * 20)}
    else:
        config.tasks.det = {"kind": "detection", "classes": classes}
    second = SECOND[task]
    first = tuple(name for name in foreground if name not in second)
    for half, half_names, option in (("first", first, "images_without"), ("second", second, "images_with")):
        config.streams[half] = _half(task, classes, foreground if knowledge == "full" else half_names, knowledge)
        config.streams[half].options[option] = second
        config.streams[half].val_options[option] = ()
    config.stages.both = stage(
        ("first", "second"),
        epochs=EPOCHS[task],
        learning_rate=2e-3,
        freeze=recipes.IMAGENET,
        ema_decay=0.995,
        pseudo_labels=knowledge == "pseudo",
    )
    config.order = ("both",)
    return config


def _half(task: str, classes: tuple[str, ...], labelled: tuple[str, ...], knowledge: str) -> Any:
    """A stream whose training images have the labels of some classes; its validation images have all."""
    if task == "seg":
        hidden_names = tuple(name for name in classes[1:] if name not in labelled)
        settings: dict[str, Any] = {
            "options": {"folder": "mini-voc-seg", "as_background": hidden_names},
            "val_options": {"as_background": ()},
        }
        half = stream("voc_segmentation", {"seg": "segmentation"}, augment=AUGMENT, train_image_size=192, **settings)
    else:
        settings = {
            "options": {"folder": "mini-coco-det", "classes": labelled, "other_categories": "ignore"},
            "val_options": {"classes": classes},
        }
        half = stream("coco_detection", {"det": "detection"}, augment=AUGMENT, train_image_size=192, **settings)
        half.max_boxes = 24
    if knowledge == "naive":
        half.labelled_classes = {task: classes}
    return half
