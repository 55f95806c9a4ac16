"""A detector that gets classes later: seven of the ten classes of the boxes of `configs/seq.py`, then three more.

mtl-jax train --config configs/new_classes.py --workdir runs/seven --config.data_root=data
mtl-jax extend --from runs/seven --workdir runs/ten --config configs/new_classes.py:more --config.data_root=data
mtl-jax extend --from runs/seven --workdir runs/moving --keep 5% --config configs/new_classes.py:moving \\
    --config.data_root=data
mtl-jax train --config configs/new_classes.py:together --workdir runs/together --config.data_root=data

"first" takes the new classes for background. "more" and "moving" name images of the new classes alone, in which the old
ones are not labelled: "more" trains what these classes have of their own, twice as long as "moving" trains all that may
change. "together" learns all ten from the start. benchmarks/new_classes.py compares them. Images have a quarter of the
pixels of the flagship's.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import load_page, stage
from mtl_jax.errors import UserError

LATER = ("more", "moving")
VARIANTS = ("first", *LATER, "together")
NEW = 3  # of the classes, the last


def get_config(variant: str = "first") -> ConfigDict:
    """Returns the configuration of the first run, of what is added to it, or of the run of all classes.

    Raises:
        UserError: another variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"configs/new_classes.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}")
    page = load_page(Path(__file__).with_name("seq.py"))
    config: Any = page.get_config("alone_det-small")
    config.name = "new_classes"
    for name in ("seg", "cls"):
        del config.tasks[name], config.contract.baseline_from[name]
    for name in ("voc", "imagenette"):
        del config.streams[name]
    if variant != "together":
        classes = page.COCO_CLASSES[-NEW:] if variant in LATER else page.COCO_CLASSES[:-NEW]
        config.tasks.det.classes = classes
        config.streams.coco.options = {
            "folder": "mini-coco-det",
            "classes": classes,
            "images_with": classes,
            "other_categories": "ignore",
        }
    if variant in LATER:
        config.streams.coco_more = config.streams.coco
        del config.streams["coco"]
        settings = {"epochs": page.EPOCHS["det"], "backbone_rate": page.FREE_BACKBONE["det"]}
        if variant == "more":
            settings = {"epochs": 2 * page.EPOCHS["det"]}  # little is trained, and from zero
        config.stages.more = stage(("coco_more",), **{**page.RATES, **settings})
        del config.stages["det"]
        config.order = ("more",)
    return config
