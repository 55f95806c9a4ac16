"""PASCAL VOC segmentation, COCO boxes and Imagenette classes at once, in one fully shared network at 256 px.

python scripts/train.py --config configs/joint.py:pcgrad --workdir runs/joint --config.data_root=data
python scripts/compare.py --out runs/joint configs/joint.py -- --config.data_root=data
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.balance import METHODS
from mtl_jax.config import load_page, stage
from mtl_jax.errors import UserError

VARIANTS = tuple(METHODS)


def get_config(method: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        method: a key of `mtl_jax.balance.METHODS`.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"configs/joint.py:{method}: expected one of {', '.join(METHODS)}")
    page = load_page(Path(__file__).with_name("seq.py"))
    config: Any = page.get_config("all")
    config.name = "joint"
    page.shrink(config)  # many methods are to be compared
    config.stages = ConfigDict(
        {
            "joint": stage(
                ("voc", "coco", "imagenette"),
                epochs=30.0,  # of the first stream's images
                learning_rate=2e-3,
                backbone_rate=0.3,
                ema_decay=0.995,
                eval_every_epochs=10.0,
                balance=method,
                log_conflicts=True,  # costs nothing where every task has its own images
            )
        }
    )
    config.order = ("joint",)
    return config
