"""One task alone, with the network, data and number of steps of `configs/joint.py`: what a joint run is measured by.

python scripts/train.py --config configs/single.py:seg --workdir runs/single_seg --config.data_root=data
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax.config import load_page
from mtl_jax.errors import UserError

STREAMS = {"seg": "voc", "det": "coco", "cls": "imagenette"}
VARIANTS = tuple(STREAMS)


def get_config(task: str = "seg") -> ConfigDict:
    """Returns the configuration.

    Args:
        task: "seg", "det" or "cls".

    Raises:
        UserError: another task.
    """
    if task not in STREAMS:
        raise UserError(f"configs/single.py:{task}: expected one of {', '.join(STREAMS)}, found {task!r}")
    config = load_page(Path(__file__).with_name("joint.py")).get_config("sum")
    config.name = "single"
    stage = config.stages.joint
    steps_share = config.streams[STREAMS[task]].batch_size / config.streams.voc.batch_size
    stage.epochs = stage.epochs * steps_share  # an epoch is one of the stage's first stream
    stage.streams = (STREAMS[task],)
    config.stages = ConfigDict({task: stage})
    config.order = (task,)
    return config
