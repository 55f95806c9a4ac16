"""The same three tasks in one network, shared in one way or another: what docs/sharing.md compares.

python scripts/train.py --config configs/sharing.py:attention --workdir runs/attention --config.data_root=data
python scripts/compare.py --out runs/sharing configs/sharing.py -- --config.data_root=data
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import load_page
from mtl_jax.errors import UserError

# Settings of the network and of its stage.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hard": ({}, {}),
    "own_norms": ({"norms_from": 1}, {}),
    "branches": ({"share_until": 8}, {}),
    "series_adapters": ({"sharing": "series_adapters"}, {}),
    "patches": ({"norms_from": 8, "patches": {"neck": 16, "head": 16}}, {}),
    "attention": ({"sharing": "attention"}, {}),
    "mmoe": ({"sharing": "mmoe"}, {}),
    "cgc": ({"sharing": "cgc"}, {}),
    "cross_stitch": ({"sharing": "cross_stitch"}, {}),
    "progressive": ({"sharing": "progressive"}, {}),
    "soft": ({"sharing": "independent"}, {"soft_sharing": 1.0}),
    "independent": ({"sharing": "independent"}, {}),
}
VARIANTS = tuple(WAYS)
FORMER_NAMES = {"adapters": "series_adapters"}


def get_config(scheme: str = "hard") -> ConfigDict:
    """Returns the configuration.

    Args:
        scheme: a key of `WAYS`; the data, the recipe and the number of steps are those of `configs/joint.py`.

    Raises:
        UserError: an unknown scheme.
    """
    scheme = FORMER_NAMES.get(scheme, scheme)
    if scheme not in WAYS:
        raise UserError(f"configs/sharing.py:{scheme}: expected one of {', '.join(WAYS)}, found {scheme!r}")
    config = load_page(Path(__file__).with_name("joint.py")).get_config("sum")
    config.name = "sharing"
    config.stages.joint.log_conflicts = False  # spares networks that share nothing a backward pass for each task
    model, stage = WAYS[scheme]
    config.model.update(model)
    config.stages.joint.update(stage)
    return config
