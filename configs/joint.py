"""All tasks at once in one fully shared network, with a balancing method of choice.

python scripts/train.py --config configs/joint.py:pcgrad --workdir runs/joint --config.data_root=data
python scripts/train.py --config configs/joint.py:scenes/pcgrad --workdir runs/scenes
python scripts/compare.py --out runs/joint configs/joint.py -- --config.data_root=data

The first: PASCAL VOC masks, COCO boxes and Imagenette classes at 256 px, each from images of its own. The second, with
scenes/ before the method: embedded scenes of handwritten digits, each labelled with mask, boxes and class.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.balance import METHODS
from mtl_jax.config import load_page, stage, stream
from mtl_jax.errors import UserError

VARIANTS = tuple(METHODS)


def get_config(method: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        method: a key of `mtl_jax.balance.METHODS`; after "scenes/", on embedded images that carry all labels.

    Raises:
        UserError: an unknown method or set of data.
    """
    data, _, name = method.rpartition("/")
    if name not in METHODS or data not in ("", "scenes"):
        expected = f"one of {', '.join(METHODS)}, after scenes/ for the embedded data"
        raise UserError(f"configs/joint.py:{method}: expected {expected}, found {method!r}")
    config = _scenes() if data else _minis()
    config.name = "joint"
    config.stages.joint.balance = name
    config.order = ("joint",)
    return config


def _minis() -> Any:
    page = load_page(Path(__file__).with_name("seq.py"))
    config: Any = page.get_config("plain")
    page.shrink(config)  # many methods are to be compared
    config.model.update(page.NARROW)
    settings = stage(
        ("voc", "coco", "imagenette"),
        epochs=30.0,  # of the first stream's images
        learning_rate=2e-3,
        backbone_rate=0.3,
        ema_decay=0.995,
        eval_every_epochs=10.0,
        log_conflicts=True,  # costs little where every task has its own images
    )
    config.stages = ConfigDict({"joint": settings})
    return config


def _scenes() -> Any:
    page = load_page(Path(__file__).with_name("quickstart.py"))
    config: Any = page.get_config("plain")
    labels = {"seg": "segmentation", "det": "detection", "cls": "classification"}
    options = {"labels": tuple(labels.values()), "size": 96}  # with a class among its labels, a scene holds one digit
    sizes = {"batch_size": 32, "eval_batch_size": 50, "max_boxes": 8}
    config.streams = ConfigDict({"scenes": stream("digits", labels, options=options, augment=page.AUGMENT, **sizes)})
    config.stages = ConfigDict({"joint": stage(("scenes",), epochs=8.0, learning_rate=3e-3, log_conflicts=True)})
    return config
