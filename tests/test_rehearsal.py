"""Mistakes of any stage are found before the first is trained, from shapes alone."""

from pathlib import Path
from typing import Any

import pytest
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment, rehearsal
from mtl_jax.errors import UserError

DIGITS = tuple("0123456789")
KEPT = {"replay_images": 3}


def rehearse(
    first: dict[str, Any], second: dict[str, Any], *, batch_norm_per_task: bool = False, **stream: Any
) -> None:
    config: Any = config_lib.base()
    config.image_size = config.contract.latency_image_size = 64
    with config.ignore_type():
        config.model.update(MODEL | {"batch_norm_per_task": batch_norm_per_task})
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    options = {"labels": "segmentation", "size": 64, "length": 16}
    config.streams.masks = config_lib.stream("digits", {"seg": "segmentation"}, options=options, batch_size=4)
    settings = {"options": options | {"labels": "classification"}, "batch_size": 4} | stream
    label = settings.pop("label", "classification")
    config.streams.single = config_lib.stream("digits", {"cls": label}, **settings)
    config.stages.seg = config_lib.stage(("masks",), **first)
    config.stages.cls = config_lib.stage(("single",), **second)
    config.order = ("seg", "cls")
    config_lib.resolve(config)
    parts = experiment.build(config.to_dict(), data_root=Path())
    rehearsal.rehearse(config, parts)


@pytest.mark.usefixtures("tiny_backbone")
def test_what_fits_passes():
    rehearse(KEPT, {"replay_batch_size": 2, "der_weight": 1.0, "lwf_weight": 1.0, "agem": True, "ewc_strength": 1.0})
    rehearse({"gpm_energy": 0.9}, {"train_batch_norm": "new_levels"})  # a level that the first stage did not read
    rehearse({"gpm_energy": 0.9}, {}, batch_norm_per_task=True)


@pytest.mark.parametrize(
    ("first", "second", "stream", "words"),
    [
        ({}, {"balance": "pcgrd"}, {}, "config.stages.cls.balance is 'pcgrd'"),
        ({}, {"balance": "cagrad", "balance_options": {"d": 1}}, {}, "config.stages.cls.balance_options has d"),
        ({}, {"freeze": ("bakbone",)}, {}, "config.stages.cls.freeze has 'bakbone'"),
        ({}, {"rates": {"hed": 1.0}}, {}, "config.stages.cls.rates has 'hed'"),
        ({}, {"warm_start": "seg"}, {}, "config.stages.cls.warm_start is 'seg'"),
        ({}, {"micro_batches": 3}, {}, "config.stages.cls.micro_batches is 3"),
        ({}, {"gradient_space": "features"}, {}, "config.stages.cls.gradient_space"),
        ({}, {"soft_sharing": 1.0}, {}, "config.stages.cls.soft_sharing needs branches"),
        ({"gpm_energy": 0.9}, {}, {}, "config.stages.cls moves the running statistics"),
        ({"gpm_energy": 0.9, "gpm_layers": ("head",)}, {}, {}, "config.stages.cls trains backbone"),
        (
            KEPT,
            {"replay_batch_size": 2, "replay_paste": 0.5, "der_weight": 1.0},
            {},
            "config.stages.cls.der_weight comp",
        ),
        ({}, {"agem": True}, {}, "config.stages.cls.agem needs exemplars"),
        ({"ewc_importance": "exact"}, {"ewc_strength": 1.0}, {}, 'ewc_importance="exact" needs a task whose'),
        ({}, {}, {"image_size": 100}, "config.streams.single.image_size is 100; expected a multiple of 32 px"),
        ({}, {}, {"augment": {"flip": 1.0}}, "config.streams.single.augment: .*flip"),
        ({}, {}, {"augment": {"flip_probability": 3.0}}, "expected flip_probability between 0 and 1"),
        (
            {},
            {},
            {"options": {"labels": "segmentation", "size": 64, "length": 16}, "label": "segmentation"},
            "task cls has classes",
        ),
    ],
)
@pytest.mark.usefixtures("tiny_backbone")
def test_a_mistake_of_the_second_stage_is_told_before_the_first(first, second, stream, words):
    with pytest.raises(UserError, match=words):
        rehearse(first, second, **stream)
