"""A configuration goes on with finished stages where all that they depend on is unchanged."""

import copy
from pathlib import Path
from typing import Any

import pytest

from mtl_jax import config as config_lib
from mtl_jax.errors import UserError
from mtl_jax.workdir import continuation


def resolved() -> dict[str, Any]:
    config: Any = config_lib.base()
    for name in "ab":
        config.tasks[name] = {"kind": "classification", "classes": ("cat", "dog"), "label_smoothing": 0.0}
        config.streams[f"s{name}"] = config_lib.stream("digits", {name: "classification"})
        config.stages[name] = config_lib.stage((f"s{name}",))
    config.stages.a.keep = {"replay": {"images": 4}}
    config.order = ("a", "b")
    return config_lib.resolve(config).to_dict()


def changed(config: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *above, name = field.split(".")
    section = config
    for component in above:
        section = section[component]
    section[name] = value
    return config


def go_on(field: str, value: Any, **options: Any) -> list[str]:
    before = resolved()
    options = {"stages": 1} | options
    return continuation.refuse_another(Path("run/checkpoints/0-a"), before, changed(before, field, value), **options)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages.b.optimizer", "sgd"),
        ("streams.sb.image_size", 96),
        ("tasks.b.label_smoothing", 0.1),
        ("stages.b.streams", ("sa", "sb")),
        ("stages.b.freeze", ("neck",)),
        ("stages.b.freeze", {"neck": (0, 5)}),
        ("order", ("a",)),
    ],
)
def test_what_follows_a_finished_stage_may_change_and_is_told(field, value):
    (message,) = go_on(field, value)
    assert message.startswith(f"{field} was " if "freeze" not in field else "stages.b.freeze.neck was None, is [0.0, ")


def test_a_task_more_is_refused_with_what_can_be_done():
    with pytest.raises(UserError, match=r"tasks.c.kind was None.*name those of later stages in config.tasks at once"):
        go_on("tasks.c", {"kind": "depth"})


def test_where_things_are_may_change_without_a_word():
    assert go_on("data_root", "elsewhere") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages.a.epochs", 3.0),
        ("streams.sa.options", {"length": 5}),
        ("tasks.a.label_smoothing", 0.1),
        ("tasks.b.classes", ["cat"]),
        ("model.neck_channels", 8),
        ("seed", 1),
        ("order", ("b", "a")),
    ],
)
def test_what_a_finished_stage_depends_on_may_not_change(field, value):
    with pytest.raises(UserError, match=rf"holds a run of another configuration \({field}[^;]* was .*remove run/check"):
        go_on(field, value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stages.b.keep.ewc", {"strength": 1.0}, "stage a was to leave no importance of parameters by ewc "),
        ("stages.b.keep.replay", {"batch_size": 2}, "stage a was to leave no exemplars"),
        ("stages.b.keep.der", {"weight": 2.0}, "stage a was to leave no outputs of exemplars"),
    ],
)
def test_a_later_stage_may_not_ask_for_what_a_finished_one_did_not_keep(field, value, words):
    with pytest.raises(UserError, match=words):
        go_on(field, value)
    go_on(field, value, partly=True)  # a stage in training leaves it at its end


def test_what_is_kept_from_the_first_step_on_may_not_change_in_training():
    before = changed(resolved(), "stages.a.keep.si", {})
    after = changed(before, "stages.b.keep.si", {"strength": 1.0})
    for configs in ((before, after), (after, before)):
        with pytest.raises(UserError, match="importance of parameters"):
            continuation.refuse_another(Path("run/partial/0-a/5"), *configs, stages=1, partly=True)


def test_a_stage_that_was_the_last_kept_nothing_for_one_that_is_added():
    config = resolved()
    alone = changed(changed(config, "order", ("a",)), "stages.a.keep.gpm", {"energy": 0.9})
    both = changed(alone, "order", ("a", "b"))
    with pytest.raises(UserError, match="stage a was to leave no trace of what its kernels read"):
        continuation.refuse_another(Path("run/checkpoints/0-a"), alone, both, stages=1)
    assert continuation.refuse_another(Path("run"), changed(config, "order", ("a",)), config, stages=1) == [
        "order was ['a'], is ['a', 'b']"
    ]
