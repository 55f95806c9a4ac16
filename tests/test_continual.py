"""What keeps old tasks is one table: how a stage names it, where it acts, and how a method is added."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import continual
from mtl_jax.continual import memory, reading
from mtl_jax.continual.ewc import EWC
from mtl_jax.continual.method import Method, StageTasks, Starting, setting
from mtl_jax.continual.si import SI
from mtl_jax.errors import UserError
from mtl_jax.workdir import continuation

WHERE = "config.stages.det.keep"


def order(*keeps):
    return tuple(reading.read(keep, location=WHERE, tasks=("seg",)) for keep in keeps)


@pytest.mark.parametrize("name", continual.METHODS)
def test_a_method_is_a_file_of_its_name_and_frozen_settings_with_defaults(name):
    kind = continual.METHODS[name]
    assert kind.__module__ == f"mtl_jax.continual.{name}"
    assert dataclasses.is_dataclass(kind)
    assert reading.read({name: {}}, location=WHERE) == {name: kind()}
    slots = memory.nothing()
    assert kind.slot in {"", *slots}
    if kind.slot:
        assert kind.from_tree(kind.to_tree(kind.nothing)) == kind.from_tree({}) == kind.nothing


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"lfw": {}}, f"{WHERE}: expected names of methods, found 'lfw'; did you mean lwf?"),
        ({"lwf": {"wieght": 2}}, f"{WHERE}.lwf has no setting wieght; did you mean weight or weights?"),
        ({"lwf": 4.0}, f"{WHERE}.lwf: expected a table of settings, such as {{'weight': 1.0}}, found 4.0"),
        ({"lwf": {"weight": "much"}}, f"{WHERE}.lwf.weight: expected a number, found 'much'"),
        ({"lwf": {"weight": -1}}, f"{WHERE}.lwf.weight: expected at least 0"),
        ({"lwf": {"weight": float("inf")}}, "lwf.weight: expected at least 0 and at most 1e+09"),
        ({"lwf": {"weight": float("nan")}}, "lwf.weight: expected at least 0 and at most 1e+09, found nan"),
        (
            {"lwf": {"weights": {"sge": 1.0}}},
            f"{WHERE}.lwf.weights: expected names of tasks, found 'sge'; did you mean seg?",
        ),
        ({"lwf": {"weights": {"seg": "high"}}}, f"{WHERE}.lwf.weights.seg: expected a number, found 'high'"),
        ({"lwf": {"balance": "clases"}}, "balance: expected one of mean, classes"),
        ({"replay": {"images": 2.5}}, "replay.images: expected a whole number"),
        ({"replay": {"max_side": 0}}, "replay.max_side: expected at least 1"),
        ({"replay": {"selection": "bst"}}, "selection: expected one of random, reservoir"),
        ({"gpm": {"energy": 1.5}}, "gpm.energy: expected at least 0 and at most 1"),
        ({"ewc": {"estimator": "guess"}}, "estimator: expected one of empirical, sampled, exact"),
        ({"ewc": {}, "si": {}}, f"{WHERE}.ewc is combined with si; name one of them: they share anchors"),
        ({"paste": {}, "der": {}}, f"{WHERE}.der compares replayed images"),
    ],
)
def test_a_mistake_is_told_with_what_was_expected(table, words):
    with pytest.raises(UserError) as raised:
        reading.read(table, location=WHERE, tasks=("seg", "det"))
    assert words in str(raised.value)


def test_settings_have_the_types_of_their_fields_however_they_were_written():
    keep = reading.read(
        {"lwf": {"weight": 2, "weights": {"seg": 3}}, "gpm": {"layers": "neck, head"}}, location=WHERE, tasks=("seg",)
    )
    assert keep["gpm"].layers == ("neck", "head")
    numbers = (keep["lwf"].weight, keep["lwf"].weights["seg"])
    assert numbers == (2.0, 3.0)
    assert all(isinstance(number, float) for number in numbers)


def test_a_stage_is_measured_as_it_says_or_else_as_the_next_one_that_holds():
    keeps = order({}, {"ewc": {"mode": "separate"}}, {"si": {"strength": 2.0}})
    assert reading.in_stage(keeps, 0) == {"si": SI()}
    assert reading.in_stage(keeps, 1) == {"ewc": EWC(mode="separate")}
    assert reading.in_stage(keeps, 2) == {"si": SI(strength=2.0)}
    assert reading.in_stage(order({}, {"si": {}}), 0) == {}
    (message,) = reading.in_stage(keeps, 1)["ewc"].leaves(keeps, 1)
    assert message == "importance of parameters by ewc(mode='separate') (a strength of a later stage)"


def test_what_holds_a_space_acts_in_every_later_stage_and_stored_outputs_where_they_are_asked():
    keeps = order({"gpm": {}, "replay": {"images": 2}}, {}, {"der": {}})
    assert list(reading.in_stage(keeps, 0)) == ["replay", "der", "gpm"]
    assert reading.in_stage(keeps, 1) == {"gpm": continual.METHODS["gpm"](energy=0.0)}
    assert list(reading.in_stage(keeps, 2)) == ["der", "gpm"]


def test_what_is_kept_from_a_stage_before_a_slot_came_is_nothing():
    assert memory.from_tree({}) == memory.nothing()


@dataclasses.dataclass(frozen=True)
class L2SP(Method):
    """Parameters are drawn to where the stage found them: the example of docs/architecture.md."""

    strength: float = setting(0.0, "of the pull back to where the stage found them; 0 is off")

    def before(self, starting):
        return starting.variables["params"] if starting.tasks.old else None

    def penalty(self, params, stage_memory):
        if stage_memory is None:
            return None
        return self.strength / 2 * optax.tree.norm(optax.tree.sub(params, stage_memory), squared=True)


def test_a_method_is_added_by_its_class_and_a_line_of_the_table(monkeypatch):
    """It is read, checked, compared, and enters a step under its own name."""
    from mtl_jax.training import train_step

    monkeypatch.setitem(continual.METHODS, "l2_sp", L2SP)
    config = {
        "order": ["a", "b"],
        "tasks": {},
        "stages": {"a": {"keep": {}}, "b": {"keep": {"l2_sp": {"strength": 2}}}},
    }
    assert reading.completed(config)["stages"]["b"]["keep"] == {"l2_sp": {"strength": 2.0}}
    with pytest.raises(UserError, match="did you mean l2_sp"):
        reading.read({"l2sp": {}}, location=WHERE)
    assert continuation.learnt_from(reading.completed(config))["stages.b.keep.l2_sp.strength"] == 2.0
    keep = reading.in_stage(reading.read_order(config), 1)
    start = {"kernel": jnp.zeros(3)}
    inputs = {"l2_sp": keep["l2_sp"].before(Starting(StageTasks(old=("seg",)), variables={"params": start}))}
    params = {"kernel": jnp.full(3, 0.5)}
    grads, penalties = train_step._with_penalties(keep, {"kernel": jnp.ones(3)}, params, inputs)
    np.testing.assert_allclose(penalties["all/l2_sp_penalty"], 0.75)
    np.testing.assert_allclose(grads["kernel"], 2.0)
    assert keep["l2_sp"].before(Starting(StageTasks(own=("seg",)))) is None


def test_the_documented_example_is_the_tested_one():
    text = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    shown = text.split("# mtl_jax/continual/l2_sp.py\n")[1].split("\n\n# mtl_jax")[0].splitlines()
    custom = Path(__file__).read_text()
    assert shown[0] == "@dataclasses.dataclass(frozen=True)"
    assert all(line in custom for line in shown if "Parameters are drawn" not in line)
