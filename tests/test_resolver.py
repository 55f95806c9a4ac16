"""Every deliberate mistake in a setting, of a later stage above all, is refused before any data is opened."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.continual import reading
from mtl_jax.errors import UserError
from mtl_jax.training import dry_run

DIGITS = tuple("0123456789")
LATER = "stages.cls"
# What is changed, and how the refusal begins and what it holds; the second stage is the one that is wrong.
MISTAKES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "top level": [
        ({"seeed": 1}, "config has no setting seeed; did you mean seed?"),
        ({"seed": -1}, "config.seed: expected at least 0"),
        ({"smoke": "yes"}, "config.smoke: expected True or False"),
        ({"image_size": 100}, "config.image_size: expected a multiple of 32 px"),
        ({"on_nan": "skp"}, "config.on_nan: expected one of stop, skip, found 'skp'; did you mean skip?"),
        ({"order": ("seg", "clss")}, "expected names of config.stages (cls, seg), found clss; did you mean cls?"),
        ({"order": "seg"}, "config.order: expected a tuple of names, such as ('name',)"),
        ({"order": ("seg", "seg")}, "config.order: expected each stage once, found seg twice"),
    ],
    "model": [
        ({"model.bakbone": "tiny"}, "config.model has no setting bakbone; did you mean backbone?"),
        ({"model.backbone": "mobilenet_v3_smal"}, "did you mean mobilenet_v3_small"),
        ({"model.share_until": 12}, "config.model.share_until: expected one of all, 2, 4, 8, 16"),
        ({"model.head_layers": 0}, "config.model.head_layers: expected at least 1 and at most 100"),
        ({"model.dropout_rate": 1.0}, "config.model.dropout_rate: expected at least 0 and at most 0.99"),
        ({"model.head_kernel": 4}, "config.model.head_kernel: expected an odd number of cells"),
        ({"model.patches": {"head": 4}}, "config.model.patches, depthwise_patches: those of head need batch norms"),
        ({"model.patches": {"tail": 4}}, "config.model.patches: expected names of a network (backbone, neck, head)"),
        ({"model.branches": {"seg": {}}}, "config.model.branches: expected none where nothing branches"),
        ({"model": 5}, "config.model: expected a table of settings"),
    ],
    "tasks": [
        ({"tasks.cls.kind": "clasification"}, "config.tasks.cls.kind: expected one of segmentation"),
        ({"tasks.cls.label_smooting": 0.1}, "config.tasks.cls has no setting label_smooting; did you mean label_smoo"),
        ({"tasks.cls.label_smoothing": "high"}, "config.tasks.cls.label_smoothing: expected a number"),
        ({"tasks.cls.classes": "0123"}, "config.tasks.cls.classes: expected a list of names"),
        ({"tasks.cls": {"kind": "classification"}}, "config.tasks.cls.classes: expected a tuple of names"),
        ({"tasks.all": {"kind": "depth"}}, "a meaning of their own, found 'all'; call the task something else"),
        ({"tasks.a b": {"kind": "depth"}}, "config.tasks: expected names of 1 to 64 of the letters"),
    ],
    "streams": [
        ({"streams.single.bach_size": 4}, "config.streams.single has no setting bach_size; did you mean batch_size"),
        ({"streams.single.batch_size": 0}, "config.streams.single.batch_size: expected at least 1"),
        ({"streams.single.source": "digts"}, "config.streams.single.source: expected one of voc_seg"),
        ({"streams.single.options": {"lenght": 9}}, "options has no setting lenght; did you mean length?"),
        ({"streams.single.options": {"length": "9"}}, "config.streams.single.options.length: expected a whole"),
        ({"streams.single.labels": {"clss": "digit"}}, "config.streams.single.labels: expected names of config.tasks"),
        ({"streams.single.labels": {}}, "config.streams.single.labels: expected task -> label name"),
        ({"streams.single.labels": {"cls": 5}}, "config.streams.single.labels.cls: expected text"),
        ({"streams.single.image_size": 100}, "config.streams.single.image_size: expected a multiple of 32 px"),
        ({"streams.single.augment": {"flip_probabilty": 1.0}}, "did you mean flip_probability"),
        ({"streams.single.augment": {"hue": 3.0}}, "config.streams.single.augment.hue: expected at least 0"),
        ({"streams.masks.crop": True}, "config.streams.masks.crop: expected False with task"),
    ],
    "contract": [
        ({"contract.max_drop": 5.0}, "config.contract has no setting max_drop; did you mean max_drop_percent"),
        ({"contract.max_drop_percent": math.nan}, "config.contract.max_drop_percent: expected at least 0"),
        ({"contract.baseline_from": {"clss": ""}}, "config.contract.baseline_from: expected names of config.tasks"),
        ({"contract.latency_image_size": 500}, "config.contract.latency_image_size: expected a multiple of 32"),
    ],
    "stages": [
        ({f"{LATER}.learning_rat": 0.1}, "config.stages.cls has no setting learning_rat; did you mean learning_rate"),
        ({f"{LATER}.learning_rate": -1.0}, "config.stages.cls.learning_rate: expected at least 0"),
        ({f"{LATER}.epochs": math.nan}, "config.stages.cls.epochs: expected more than 0"),
        ({f"{LATER}.epochs": "24"}, "config.stages.cls.epochs: expected a number"),
        ({f"{LATER}.ema_decay": 1.0}, "config.stages.cls.ema_decay: expected at least 0 and less than 1"),
        ({f"{LATER}.streams": "single"}, "config.stages.cls.streams: expected a tuple of names"),
        ({f"{LATER}.streams": ("singel",)}, "cls.streams: expected names of config.streams (masks, single)"),
        ({f"{LATER}.streams": ("single", "single")}, "cls.streams: expected each stream once, found single twice"),
        ({f"{LATER}.optimizer": "adm"}, "cls.optimizer: expected one of adamw, sgd, found 'adm'; did you"),
        ({f"{LATER}.loss_weights": {"dett": 2.0}}, "cls.loss_weights: expected names of config.tasks"),
        ({"stages.seg.loss_weights": {"cls": 2.0}}, "config.stages.seg.loss_weights: expected tasks that"),
        ({f"{LATER}.micro_batches": 3}, "micro_batches: expected a divisor of the 4 images of single, such as 2"),
        # which parameters
        ({f"{LATER}.freeze": ("bakbone",)}, "freeze: expected patterns of parameters in"),
        ({f"{LATER}.freeze": "backbone"}, "config.stages.cls.freeze: expected patterns, such as"),
        ({f"{LATER}.freeze": {"neck": (5, 2)}}, "stages.cls.freeze.neck: expected None, or epochs"),
        ({f"{LATER}.freeze": {"neck": (500, None)}}, "freeze: expected epochs before"),
        ({f"{LATER}.freeze": ("*",)}, "cls.freeze: expected some parameter left to train, found *; freeze less"),
        ({f"{LATER}.rates": {"hed": 1.0}}, "rates: expected patterns of parameters in back"),
        ({f"{LATER}.rates": {"head": -1.0}}, "config.stages.cls.rates.head: expected at least 0"),
        ({"stages.seg.keep": {"gpm": {"layers": ("hed",)}}}, "keep.gpm.layers: expected patterns of parameters"),
        # how gradients meet
        ({f"{LATER}.balance": "pcgrd"}, "config.stages.cls.balance: expected one of sum, mean"),
        (
            {f"{LATER}.balance": "cagrad", f"{LATER}.balance_options": {"d": 1.0}},
            "config.stages.cls.balance_options has no setting d; expected one of c",
        ),
        (
            {f"{LATER}.balance": "sum", f"{LATER}.balance_options": {"d": 1.0}},
            "config.stages.cls.balance_options has no setting d; expected none",
        ),
        (
            {f"{LATER}.balance": "cagrad", f"{LATER}.balance_options": {"c": -4.0}},
            "config.stages.cls.balance_options: expected c >= 0, found -4.0",
        ),
        ({f"{LATER}.gradient_space": "features"}, 'gradient_space: expected "params" with'),
        (
            {f"{LATER}.sampling_temperature": 1.0, f"{LATER}.balance": "pcgrad"},
            "config.stages.cls.sampling_temperature: expected 0 where tasks are balanced",
        ),
        ({f"{LATER}.soft_sharing": 1.0}, "config.stages.cls.soft_sharing: expected 0 without branches"),
        # what earlier stages left
        ({f"{LATER}.warm_start": "sgg"}, "config.stages.cls.warm_start: expected names of config.tasks"),
        ({f"{LATER}.warm_start": "cls"}, "config.stages.cls.warm_start: expected a task of an earlier stage"),
        ({"stages.seg.warm_start": "cls"}, "config.stages.seg.warm_start: expected a task of an earlier"),
        ({f"{LATER}.warm_start": "seg"}, "warm_start: expected a task that has a branch, norms or patches"),
        # what keeps the old tasks
        ({f"{LATER}.lwf_weight": 1.0}, "config.stages.cls has no setting lwf_weight; it is now keep.lwf.weight"),
        ({f"{LATER}.keep": "lwf"}, "config.stages.cls.keep: expected a table of settings"),
        ({f"{LATER}.keep": {"lfw": {}}}, "cls.keep: expected names of methods, found 'lfw'; did you mean lwf?"),
        ({f"{LATER}.keep": {"lwf": {"wieght": 1.0}}}, "keep.lwf has no setting wieght; did you mean weight"),
        ({f"{LATER}.keep": {"lwf": {"weight": "1"}}}, "config.stages.cls.keep.lwf.weight: expected a number"),
        ({f"{LATER}.keep": {"lwf": {"weight": -1.0}}}, "config.stages.cls.keep.lwf.weight: expected at lea"),
        ({"stages.seg.keep": {"lwf": {}}}, "config.stages.seg.keep.lwf.weight: expected 0 where no stage before"),
        ({"stages.seg.keep": {"ewc": {"strength": 1.0}}}, "stages.seg.keep.ewc.strength: expected 0 where no s"),
        ({"stages.seg.keep": {"agem": {}}}, "seg.keep.agem: expected exemplars of an old task, found none"),
        ({f"{LATER}.keep": {"lwf": {"weights": {"cls": 2.0}}}}, "keep.lwf.weights: expected tasks of ear"),
        ({f"{LATER}.keep": {"replay": {"batch_size": 2}}}, "keep.replay.batch_size: expected 0 without exemplars"),
        ({f"{LATER}.keep": {"replay": {"negatives": True}}}, "negatives: expected a stream that labels boxes alone"),
        ({f"{LATER}.keep": {"agem": {}}}, "keep.agem: expected exemplars of an old task, found none; set"),
        ({f"{LATER}.keep": {"der": {}}}, "config.stages.cls.keep.der.weight: expected 0 without exemplars"),
        ({f"{LATER}.keep": {"paste": {}}}, "config.stages.cls.keep.paste.share: expected 0 without exemplars"),
        ({f"{LATER}.keep": {"replay": {"images": "> 10"}}}, "keep.replay.images: expected a whole number"),
        ({f"{LATER}.keep": {"replay": {"selection": "herdin"}}}, "diverse, hard, found 'herdin'; did you mean herding"),
        ({f"{LATER}.keep": {"ewc": {"strength": 1.0, "estimator": "exact"}}}, "a task whose outcomes can be listed"),
        ({f"{LATER}.keep": {"ewc": {}, "si": {}}}, "name one of them: they share anchors"),
    ],
}  # fmt: skip
CASES = [(section, changes, words) for section, mistake in MISTAKES.items() for changes, words in mistake]


def page() -> Any:
    config: Any = config_lib.base()
    config.image_size = config.contract.latency_image_size = 64
    config.model.update(MODEL)
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    config.streams.masks = config_lib.stream("digits", {"seg": "segmentation"}, batch_size=4)
    config.streams.single = config_lib.stream("digits", {"cls": "classification"}, batch_size=4)
    config.stages.seg = config_lib.stage(("masks",))
    config.stages.cls = config_lib.stage(("single",))
    config.order = ("seg", "cls")
    return config


@pytest.fixture(scope="module")
def network(tiny_backbone):
    """The experiment of the page as it is right, and the shapes of its network."""
    setup = experiment.build(config_lib.resolve(page()), data_root=Path("no such folder"))
    return setup, experiment.abstract_variables(setup)


def plan(config: Any, network: Any) -> None:
    """What a run does before it opens data; the network is made only where it is another."""
    setup, variables = network
    settings = reading.complete(config_lib.resolve(config))
    dry_run.check_arguments(settings)
    right = config_lib.resolve(page())
    if (settings.model, settings.tasks) != (right.model, right.tasks):
        setup = experiment.build(settings, data_root=Path("no such folder"))
        variables = experiment.abstract_variables(setup)
    experiment.check_crops(settings.streams, setup.tasks)
    dry_run.rehearse(settings, setup, variables=variables, data=False)


@pytest.mark.parametrize(("section", "changes", "words"), CASES, ids=[words[:60] for _, _, words in CASES])
def test_a_mistake_is_refused_before_data_is_opened(network, section, changes, words):
    del section
    config = page()
    for field, value in changes.items():
        *above, name = field.split(".")
        functools.reduce(lambda component, each: component[each], above, config)[name] = value
    with pytest.raises(UserError, match=re.escape(words)) as error:
        plan(config, network)
    if ": expected" in words:
        assert ", found " in str(error.value)


def test_what_is_right_passes_and_opens_nothing(network):
    config = page()
    config.stages.seg.keep = {"replay": {"images": 3}}
    retained = {"replay": {"batch_size": 2}, "der": {}, "lwf": {}, "ewc": {"strength": 1.0}}
    config.stages.cls.update({"keep": retained, "freeze": ("backbone",)})
    plan(config, network)  # there is no such folder of data
