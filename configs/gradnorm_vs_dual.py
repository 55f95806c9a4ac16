"""Interference fixed two ways: boxes and tags of the same images by the plain sum, by GradNorm, or by two networks.

python scripts/train.py --config configs/gradnorm_vs_dual.py:gradnorm --workdir runs/gradnorm --config.data_root=data
python scripts/compare.py --out runs/interference --seeds 0,1,2 configs/gradnorm_vs_dual.py -- --config.data_root=data

Images stay as they are, as medical ones must: no augmentation. The comparison sets accuracy against parameters,
operations, step time and memory; `training_history.json` holds the course of losses, weights and gradient norms. Those
of the plain sum cost it a backward pass for each task, and are logged with --config.stages.both.log_conflicts=True.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax.config import base, load_page, stage, stream
from mtl_jax.errors import UserError

VARIANTS = ("sum", "gradnorm", "dual")


def get_config(variant: str = "sum") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "sum" or "gradnorm", one network with that balancing; or "dual", a network and an optimizer for each
            task.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(
            f"configs/gradnorm_vs_dual.py:{variant}: expected one of {', '.join(VARIANTS)}, found {variant!r}"
        )
    classes = load_page(Path(__file__).with_name("seq.py")).COCO_CLASSES
    config = base()
    config.name = "gradnorm_vs_dual"
    config.image_size = 256
    config.pretrained = "mobilenet_v3_small_features.npz"
    config.model.batch_norm_momentum = 0.9
    config.model.sharing = "independent" if variant == "dual" else "hard"
    config.tasks.det = {"kind": "detection", "classes": classes}
    config.tasks.tags = {"kind": "multi_label", "classes": classes}
    config.contract.baseline_from = dict.fromkeys(config.tasks, "")
    labels = {"det": "detection", "tags": "multi_label"}
    config.streams.coco = stream("coco_detection", labels, options={"folder": "mini-coco-det", "classes": classes})
    config.stages.both = stage(
        ("coco",),
        epochs=20.0,
        learning_rate=1e-3,
        backbone_rate=0.3,
        ema_decay=0.995,
        eval_every_epochs=5.0,
        balance="gradnorm" if variant == "gradnorm" else "sum",
    )
    config.order = ("both",)
    return config
