"""A detector that gets classes later: seven of the ten classes of the boxes of `configs/seq.py`, then three more.

mtl-jax train --config configs/new_classes.py --workdir runs/seven --config.data_root=data
mtl-jax extend --from runs/seven --workdir runs/ten --config configs/new_classes.py:more --config.data_root=data
mtl-jax extend --from runs/seven --workdir runs/moved --keep 5% --config configs/new_classes.py:more \\
    --config.data_root=data
mtl-jax train --config configs/new_classes.py:together --workdir runs/together --config.data_root=data

"more" names images of the new classes alone, in which the old ones are not labelled, and "first" takes the new classes
for background; "together" learns all ten from the start. benchmarks/new_classes.py compares them. Images have a quarter
of the pixels of the flagship's.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import load_page, stage
from mtl_jax.errors import UserError

VARIANTS = ("first", "more", "together")
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
        classes = page.COCO_CLASSES[-NEW:] if variant == "more" else page.COCO_CLASSES[:-NEW]
        config.tasks.det.classes = classes
        config.streams.coco.options = {
            "folder": "mini-coco-det",
            "classes": classes,
            "images_with": classes,
            "other_categories": "ignore",
        }
    if variant == "more":
        config.streams.coco_more = config.streams.coco
        del config.streams["coco"]
        rates = {"backbone_rate": page.FREE_BACKBONE["det"], **page.RATES}  # of a backbone that --keep 5% lets change
        config.stages.more = stage(("coco_more",), epochs=page.EPOCHS["det"], **rates)
        del config.stages["det"]
        config.order = ("more",)
    return config
