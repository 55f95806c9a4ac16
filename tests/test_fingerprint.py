"""Digests hold all that functions compute with, are equal in all processes, and refuse what they cannot read."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_variables

from mtl_jax import experiment
from mtl_jax.config import load_page, resolve
from mtl_jax.continual import memory, reading
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import convolution, depthwise, multi_task
from mtl_jax.runtime import fingerprint
from mtl_jax.runtime.fingerprint import UnreadableError
from mtl_jax.training import losses, optimizer, stage_plan, stage_setup
from mtl_jax.training.stage_plan import StageResult


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    names: tuple[str, ...] = ("seg",)


class Layer(nn.Module):
    channels: int = 8


def closing_over(value, *, factor=1.0):
    def function(x):
        return x, value, factor

    return function


ALIKE = [
    ("numbers", 1, 2),
    ("kinds of numbers", 1, True),
    ("signs", 0.0, -0.0),
    ("texts", "seg", "det"),
    ("bytes and text", b"a", "a"),
    ("arrays", np.arange(3.0), np.array([0.0, 1.0, 3.0])),
    ("types of arrays", np.zeros(2, np.float32), np.zeros(2, np.int32)),
    ("shapes of arrays", np.zeros((2, 3)), np.zeros((3, 2))),
    ("arrays of a device", jnp.zeros(2), jnp.ones(2)),
    ("keys", jax.random.key(0), jax.random.key(1)),
    ("nesting", (1, (2, 3)), ((1, 2), 3)),
    ("containers", (1, 2), [1, 2]),
    ("orders of names", {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ("sets", {"a", "b"}, {"a", "c"}),
    ("settings", Settings(), Settings(rate=0.2)),
    ("networks", Layer(), Layer(channels=16)),
    ("functions of the package", losses.group_losses, losses.Objective.of),
    ("arguments of partials", functools.partial(closing_over, 1), functools.partial(closing_over, 2)),
    ("inner functions", closing_over(1), closing_over(2)),
    ("defaults", lambda x, y=1: x, lambda x, y=2: x),
    ("code", lambda x: x + 1, lambda x: x - 1),
    ("constants of code", lambda x: x + 1, lambda x: x + 2),
    ("names of code", lambda x: jnp.sin(x), lambda x: jnp.cos(x)),
    ("inner code", lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    ("methods", Settings().__eq__, Settings(rate=0.2).__eq__),
]


@pytest.mark.parametrize(("one", "other"), [case[1:] for case in ALIKE], ids=[case[0] for case in ALIKE])
def test_what_a_function_closes_over_is_in_its_digest(one, other):
    assert fingerprint.of_function(closing_over(one)) == fingerprint.of_function(closing_over(one))
    assert fingerprint.of_function(closing_over(one)) != fingerprint.of_function(closing_over(other))


def test_an_optimizer_s_settings_are_in_the_digest_of_its_update():
    def update(rate, decay):
        settings = {"momentum": 0.9, "rates": {"backbone": 0.2}}
        return optimizer.build(
            "adamw", learning_rate=optax.constant_schedule(rate), weight_decay=decay, **settings
        ).update

    assert fingerprint.of_function(update(0.1, 0.0)) == fingerprint.of_function(update(0.1, 0.0))
    others = [fingerprint.of_function(update(*settings)) for settings in ((0.1, 0.0), (0.2, 0.0), (0.1, 0.1))]
    assert len(set(others)) == 3


def test_a_function_that_refers_to_itself_has_a_digest():
    def countdown(x):
        return countdown(x - 1) if x else 0

    assert len(fingerprint.of_function(countdown)) == 64


PATCHES = {
    "a number": (convolution, "POINTWISE_MIN_CELLS", 3),
    "numbers": (convolution, "WINOGRAD_KERNEL", np.zeros((4, 3))),
    "a function": (losses, "group_losses", closing_over(2)),
    "a library's function for another": (losses, "change_where", losses.itertools.chain),
    "a method": (losses.Objective, "of", closing_over(2)),
    "a default of a class": (losses.Objective, "update", "mask"),
    "an entry of a table": (multi_task.BACKBONES, "another", Layer),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_change_of_the_package_at_run_time_is_in_every_digest(monkeypatch, patch):
    before = fingerprint.of_function(closing_over(1))
    place, name, value = PATCHES[patch]
    (monkeypatch.setitem if isinstance(place, dict) else monkeypatch.setattr)(place, name, value)
    assert fingerprint.of_function(closing_over(1)) != before


def test_a_module_that_can_be_called_is_none_of_the_values_that_are_read():
    from mtl_jax import predict

    assert callable(predict)
    fingerprint.of_function(closing_over(1))


def test_how_a_function_is_traced_is_in_its_digest(monkeypatch):
    function = closing_over(1)
    plain = fingerprint.of_function(function)
    with depthwise.traced_in("shifted"):
        shifted = fingerprint.of_function(function)
    with cpu_kernels.left_out():
        pure = fingerprint.of_function(function)
    with jax.default_matmul_precision("highest"):
        precise = fingerprint.of_function(function)
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", "grouped")
    grouped = fingerprint.of_function(function)
    monkeypatch.delenv("MTL_JAX_DEPTHWISE")
    monkeypatch.setenv("MTL_JAX_DATA", "/elsewhere")
    assert len({plain, shifted, pure, precise, grouped}) == 5
    assert fingerprint.of_function(function) == plain


PROGRAM = """
from mtl_jax.runtime import fingerprint
from mtl_jax.training import optimizer
import optax
def digest():
    rate = optax.constant_schedule(0.1)
    tx = optimizer.build("adamw", learning_rate=rate, weight_decay=0.0, momentum=0.9, rates={"backbone": 0.2})
    return fingerprint.of_function(tx.update, {"b", "a", "c"})
"""


def test_another_process_has_the_same_digest_until_a_source_of_a_user_s_part_changes(tmp_path):
    part, main = tmp_path / "part.py", "import digests, part; print(digests.digest(part.scale)) "
    (tmp_path / "digests.py").write_text(PROGRAM.replace("digest():", "digest(part):").replace('{"b"', 'part, {"b"'))

    def digest():
        command = [sys.executable, "-B", "-c", main]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    part.write_text("FACTOR = 2\ndef scale(x):\n    return FACTOR * x\n")
    first = digest()
    assert digest() == first
    part.write_text("FACTOR = 3\ndef scale(x):\n    return FACTOR * x\n")
    assert digest() != first


def test_the_steps_of_the_shipped_stages_have_digests(tmp_path):
    """Closures over a whole experiment, with its folders, would leave them none."""
    config = load_page(Path(__file__).parents[1] / "configs" / "quickstart.py").get_config()
    for name in config.order:
        config.stages[name].keep = {}  # it needs what the stages before have left
    settings = reading.complete(resolve(config))
    setup = experiment.build(settings, data_root=tmp_path)
    learnt = StageResult(random_variables(setup.model), memory.nothing(), stages=[], train_seconds=0.0, step=0)
    digests = set()
    for index in range(len(settings.order)):
        plan = stage_plan.plan(settings, setup, index, learnt)
        _, steps, _ = stage_setup.prepare(setup, plan, learnt, seed=0)
        digests |= {fingerprint.of_function(step) for step in steps.values()}
        learnt = learnt._replace(stages=[*learnt.stages, {"name": plan.name, "metrics": {}}])
    assert len(digests) == 3


def test_what_cannot_be_read_has_no_digest(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(UnreadableError, match="TextIOWrapper"):
        fingerprint.of_function(closing_over(file))
    with pytest.raises(UnreadableError, match="array of objects"):
        fingerprint.of_function(closing_over(np.array([object()])))
    with pytest.raises(UnreadableError, match="Device"):  # which holds its contents where Python does not see them
        fingerprint.of_function(closing_over(jax.devices()[0]))
    names = {"__name__": "typed_at_the_prompt"}
    exec("def function(x): return x", names)
    with pytest.raises(UnreadableError, match=r"typed_at_the_prompt\.function is of no file"):
        fingerprint.of_function(names["function"])
    with pytest.raises(UnreadableError, match="traced"):
        jax.jit(lambda x: fingerprint.of_function(closing_over(x)))(1.0)
