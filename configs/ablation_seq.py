"""What each method against forgetting is worth: none of them, each, every pair, all, in one fully shared network.

python scripts/compare.py --out runs/ablation --seeds 0,1,2 configs/ablation_seq.py
python scripts/compare.py --out runs/minis configs/ablation_seq.py:minis/none configs/ablation_seq.py:minis/lwf+replay
python scripts/train.py --config configs/ablation_seq.py:ewc --workdir runs/ewc
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import load_page
from mtl_jax.errors import UserError

METHODS = ("ewc", "lwf", "replay")
MORE = ("gpm", "balanced")  # which no page without a choice trains; "balanced" is LwF with classes balanced
VARIANTS = ("none", "ewc", "lwf", "replay", "ewc+lwf", "ewc+replay", "lwf+replay", "ewc+lwf+replay")
DATA = ("digits", "minis")


def get_config(variant: str = "ewc+lwf+replay") -> ConfigDict:
    """Returns the configuration.

    Args:
        variant: "none" or methods joined by "+", on the embedded digits; "minis/…" for the same on the three real
            mini sets.

    Raises:
        UserError: an unknown method or set of data.
    """
    data, _, methods = variant.rpartition("/")
    method_names = () if methods == "none" else tuple(methods.split("+"))
    if set(method_names) - {*METHODS, *MORE} or (data or "digits") not in DATA:
        expected = f"none or some of {', '.join((*METHODS, *MORE))} joined by +, after minis/ for the real sets"
        raise UserError(f"configs/ablation_seq.py:{variant}: expected {expected}, found {variant!r}")
    page = load_page(Path(__file__).with_name("seq.py" if data == "minis" else "quickstart.py"))
    config: Any = page.get_config("plain")
    config.name = "ablation_seq"
    if data == "minis":  # shorter and smaller than configs/seq.py: eight variants are to be trained
        page.shrink(config)
        config.model.update(page.NARROW)
        for name, epochs in (("seg", 20.0), ("det", 25.0), ("cls", 8.0)):
            rate = page.FREE_BACKBONE[name]  # its kernels are trained here, which the page leaves as they are
            lengths = {"epochs": epochs, "eval_every_epochs": 0.0}
            config.stages[name].update({**page.RATES, **lengths, "backbone_rate": rate})
    switch(config, method_names)
    return config


def switch(config: Any, methods: tuple[str, ...]) -> None:
    """Switches every method against forgetting off, and those named on, in the stages of `config.order`."""
    for name in config.order:
        config.stages[name].update({"train_batch_norm": "everywhere", "freeze": ()})
        config.stages[name].keep = ConfigDict()
    for name in config.order[1:]:
        _add(config.stages[name].keep, methods, LATER)
        if methods:  # statistics that follow the new images undo whatever holds the parameters
            config.stages[name].train_batch_norm = "new_levels"
    for name in config.order[:-1]:
        _add(config.stages[name].keep, methods, EARLIER)


def _add(keep: Any, methods: tuple[str, ...], settings: dict[str, dict[str, Any]]) -> None:
    for method in methods:
        for name, method_settings in settings.get(method, {}).items():
            keep[name] = {**keep.get(name, {}), **method_settings}


# Of the stages that are to keep the old tasks.
LATER: dict[str, dict[str, Any]] = {
    # A mask's loss is the mean of its pixels', whose squared gradient is smaller by their number than the Fisher
    # information of all of them, about 2,000 here.
    "ewc": {"ewc": {"strength": 1e4}},
    "lwf": {"lwf": {"weight": 4.0}},
    "balanced": {"lwf": {"weight": 4.0, "balance": "classes"}},
    "replay": {"replay": {"batch_size": 4}},
}
# Of the stages whose tasks are to be kept.
EARLIER: dict[str, dict[str, Any]] = {"replay": {"replay": {"images": 10}}, "gpm": {"gpm": {"energy": 0.95}}}
