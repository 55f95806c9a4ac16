"""Writes the configuration page of a run on the user's own data, or of an addition to a run, to be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.own_data.choices import Choice
from mtl_jax.own_data.literals import Expression, literal
from mtl_jax.own_data.summary import options
from mtl_jax.workdir.files import replace_text

FILE = "page.py"
MADE_FROM = "# Made from: "
ONE_AFTER_ANOTHER, TOGETHER, ALONE = "one_after_another", "together", "alone_"
TOLERATED_LEAKAGE_PERCENT = 5.0  # a few copies are reported, and do not stop a first run

PAGE = '''"""Training on your own data: {title}.

mtl-jax train --config {place} --workdir runs/edited
"""

{made_from}

from ml_collections import ConfigDict

from mtl_jax.config import base, recipes, stage, stream
from mtl_jax.errors import UserError

PRETRAINED = {pretrained}{pretrained_note}
# In label order.
CLASSES = {classes}
ORDER: tuple[str, ...] = {order}
EPOCHS = {epochs}
RATES = {rates}
STEPS_PER_EPOCH = {steps_per_epoch}
# Work directories of baseline runs; "" is the metric right after the task's own stage.
BASELINES = {baselines}
VARIANTS = ("one_after_another", "together", *(f"alone_{{name}}" for name in ORDER))


def get_config(variant: str = "one_after_another") -> ConfigDict:
    """Returns the configuration: tasks one after another, all together, or a single task."""
    if variant not in VARIANTS:
        raise UserError(f"{{variant}}: expected one of {{', '.join(VARIANTS)}}")
    config = base()
    config.name = {name}
    config.image_size = {image_size}
    config.pretrained = PRETRAINED
    config.tolerated_leakage_percent = {leakage}
    config.model.batch_norm_momentum = 0.9  # few steps: running statistics have to adapt quickly
    config.contract.latency_image_size = {image_size}
    config.contract.baseline_from = dict.fromkeys(ORDER, "") if variant.startswith("alone_") else BASELINES
{task_sections}
    recipes.share_kernels(config)
    (_train_together if variant == "together" else _train_in_turn)(config, variant)
    return config


def _train_in_turn(config: ConfigDict, variant: str) -> None:
    """Keeps ImageNet's kernels fixed; each task trains its own norms and patches, and older tasks are retained."""
    config.order = ORDER if variant == "one_after_another" else (variant.removeprefix("alone_"),)
    stage_settings = recipes.one_after_another(config.order)
    if len(config.order) == 1:  # a single task may train everything
        recipes.without_patches(config)
        stage_settings = {{config.order[0]: {{"backbone_rate": 0.3 if PRETRAINED else 1.0}}}}
    elif not PRETRAINED:  # the first task trains the shared kernels
        stage_settings[config.order[0]].pop("freeze")
    for name in config.order:
        config.stages[name] = stage((name,), epochs=EPOCHS[name], **{{**RATES[name], **stage_settings[name]}})


def _train_together(config: ConfigDict, variant: str) -> None:
    """Trains all kernels, with a batch of every dataset in each step."""
    recipes.without_patches(config)
    steps = {{name: EPOCHS[name] * STEPS_PER_EPOCH[name] for name in ORDER}}
    rates = RATES[max(ORDER, key=lambda name: steps[name])]
    epochs = max(steps.values()) / STEPS_PER_EPOCH[ORDER[0]]  # epochs are counted on the first dataset
    settings = {{"backbone_rate": 0.3 if PRETRAINED else 1.0, **rates}}
    config.stages.together = stage(ORDER, epochs=epochs, **settings)
    config.order = ("together",)
'''
ADDITION = '''"""Labels for a finished run: {title}.

{command}
"""

{made_from}

from ml_collections import ConfigDict

from mtl_jax.config import base, stage, stream

# In label order.
CLASSES = {classes}
ORDER: tuple[str, ...] = {order}
EPOCHS = {epochs}
RATES = {rates}


def get_config() -> ConfigDict:
    """Returns the addition; the network is that of the finished run."""
    config = base()
    config.name = {name}
    config.tolerated_leakage_percent = {leakage}
    config.contract.latency_image_size = {latency_image_size}
{task_sections}
    config.order = ORDER
    for name in ORDER:
        config.stages[name] = stage(
            (name,), epochs=EPOCHS[name], freeze={freeze}, **RATES[name]
        )
    return config
'''
TASK_SECTION = """
    # {description}
    config.tasks[{name}] = {task}
    config.streams[{name}] = stream(
        "labels",
        {labels},
        options={options},
{settings}
    )"""


def write(
    path: Path,
    choices: Sequence[Choice],
    *,
    name: str,
    made_from: str,
    pretrained: str = "",
    baselines: Mapping[str, str] | None = None,
) -> None:
    """Writes a configuration page for `--config`.

    Args:
        path: path of the page.
        choices: training settings of the datasets, in the order of training.
        name: name of the run.
        made_from: the request of the command line, in one line.
        pretrained: file of backbone features; "" starts from random weights.
        baselines: task -> work directory of its baseline run; by default its own stage.

    Raises:
        UserError: the page cannot be written.
    """
    names, last = [choice.dataset.request.name for choice in choices], len(choices) - 1
    text = PAGE.format(
        **_described(choices, name=name, made_from=made_from),
        place=_escaped(str(path)),
        pretrained=literal(pretrained),
        pretrained_note="" if pretrained else "  # no pretrained features were found: starts from random weights",
        rates=literal(
            {choice.dataset.request.name: _rates(choice, is_last=1 < k == last) for k, choice in enumerate(choices)}
        ),
        image_size=max(choice.image_size for choice in choices),
        baselines=literal(dict(baselines or dict.fromkeys(names, ""))),
        task_sections="\n".join(_choice_text(choice) for choice in choices),
        steps_per_epoch=literal(
            {choice.dataset.request.name: max(1, choice.dataset.train // choice.batch_size) for choice in choices}
        ),
    )
    _write(path, text)


def write_addition(
    path: Path,
    choices: Sequence[Choice],
    *,
    name: str,
    made_from: str,
    command: str,
    latency_image_size: int,
    freeze: Sequence[str] = (),
    known_classes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a page of labels for a finished run, for `mtl-jax extend --config`.

    Args:
        path: path of the page.
        choices: training settings of the datasets, in the order of training.
        name: name of the run.
        made_from: the request of the command line, in one line.
        command: that uses the page, up to its path.
        latency_image_size: size of the image that the network is timed with, px.
        freeze: parameters that the new stages leave as they are.
        known_classes: name in data -> class of the old run's task that gets the labels, in its order.

    Raises:
        UserError: the page cannot be written.
    """
    text = ADDITION.format(
        **_described(choices, name=name, made_from=made_from),
        command=_escaped(f"{command} --config {path}"),
        rates=literal({choice.dataset.request.name: _rates(choice, is_last=False) for choice in choices}),
        latency_image_size=latency_image_size,
        freeze=literal(tuple(freeze)),
        task_sections="\n".join(_choice_text(choice, known_classes) for choice in choices),
    )
    _write(path, text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another --workdir") from error


def made_from(path: Path) -> str | None:
    """Returns the request that a page was made from; None without a page of this module.

    Raises:
        UserError: the page cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it or name another --workdir") from error
    return next((line.removeprefix(MADE_FROM) for line in lines if line.startswith(MADE_FROM)), None)


def _described(choices: Sequence[Choice], *, name: str, made_from: str) -> dict[str, Any]:
    """Returns what a page of either kind says of its datasets."""
    names = [choice.dataset.request.name for choice in choices]
    return {
        "title": ", ".join(names),
        "made_from": f"{MADE_FROM}{made_from}",
        "classes": literal(
            {choice.dataset.request.name: choice.dataset.classes for choice in choices if choice.dataset.classes}
        ),
        "order": literal(tuple(names)),
        "epochs": literal({choice.dataset.request.name: choice.epochs for choice in choices}),
        "name": literal(name),
        "leakage": TOLERATED_LEAKAGE_PERCENT,
    }


def _escaped(text: str) -> str:
    """Returns text for the docstring of a page."""
    return text.encode("unicode_escape").decode().replace('"', "'")


def _rates(choice: Choice, *, is_last: bool) -> dict[str, Any]:
    """Returns rates of a stage: short averages for few steps, a high rate if a last stage trains no shared kernel."""
    steps = choice.steps
    decay = next((decay for min_steps, decay in ((1000, 0.995), (300, 0.99), (60, 0.95)) if steps >= min_steps), 0.0)
    return {"learning_rate": 6e-3 if is_last else choice.learning_rate, "ema_decay": decay}


def _choice_text(choice: Choice, known_classes: Mapping[str, str] = MappingProxyType({})) -> str:
    dataset = choice.dataset
    task, source_options = dict(choice.task), options(dataset.request)
    if dataset.classes:
        table = Expression(f"CLASSES[{literal(dataset.request.name)}]")
        task["classes"], source_options["classes"] = table, {dataset.label: table}
        if known_classes:  # a trained readout has its order
            names = (known_classes.get(name, name) for name in dataset.classes)
            task["classes"] = tuple(dict.fromkeys((*known_classes.values(), *names)))
    settings = {
        "image_size": choice.image_size,
        "train_image_size": choice.train_image_size,
        "crop": choice.crop,
        "batch_size": choice.batch_size,
        "eval_batch_size": choice.eval_batch_size,
        "max_boxes": choice.max_boxes,
        "augment": choice.augment,
    }
    if not dataset.most_boxes:
        del settings["max_boxes"]
    images = f"{dataset.train} training and {dataset.val} validation images"
    return TASK_SECTION.format(
        description=f"{dataset.request.kind}: {dataset.format}, {images}",
        name=literal(dataset.request.name),
        task=literal(task, indent=4),
        labels=literal({dataset.request.name: dataset.label}),
        options=literal(source_options, indent=8),
        settings="\n".join(f"        {key}={literal(value, indent=8)}," for key, value in settings.items()),
    )
