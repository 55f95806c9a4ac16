"""One step: what it changes, what it leaves alone, and that every option enters the loss as it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import MODEL

from mtl_jax import balance, tasks
from mtl_jax.continual import agem, der, ewc, lwf, si
from mtl_jax.continual.method import StageTasks
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import join_private, split_private
from mtl_jax.training import optimizer, train_step
from mtl_jax.training.losses import Objective, StepSpec
from mtl_jax.training.unlabelled import UPDATES

CLASSES = ("a", "b", "c")
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": CLASSES},
        "cls": {"kind": "classification", "classes": CLASSES},
    }
)
SIZE = 32
RATE = 0.1


@pytest.fixture(scope="module")
def model(tiny_backbone):
    return multi_task.build(MODEL | {"dropout_rate": 0.0}, TASKS)


@pytest.fixture(scope="module")
def variables(model):
    return multi_task.init_variables(model, key=jax.random.key(0), image_size=SIZE)


@pytest.fixture(scope="module")
def run(model, variables):
    """Returns a function that takes some steps; steps of the same settings are compiled once."""
    compiled = {}

    def cached_run(aim, batches, **settings):
        return take_steps(model, variables, compiled, aim, batches, **settings)

    return cached_run


def batch(stream: str, seed: int = 0, size: int = 4):
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 3, size, dtype=np.int32)  # the brightest channel: easy to learn
    image = 0.3 * generator.random((size, SIZE, SIZE, 3), dtype=np.float32)
    image[np.arange(size), :, :, colour] += 0.5
    mask = np.broadcast_to(colour[:, None, None], (size, SIZE, SIZE))
    labels = {"masks": {"seg": {"mask": mask}}, "names": {"cls": {"label": colour}}}
    labels["both"] = labels["masks"] | labels["names"]
    return jax.tree.map(jnp.asarray, {"image": image, "labels": labels[stream]})


def objective(**changes):
    settings = {"streams": {"masks": ("seg",)}, "loss_weights": {}}
    settings["stream_weights"] = dict.fromkeys(("masks", "names", "both"), 1.0)
    settings |= changes
    settings.setdefault("groups", tuple((stream,) for stream in settings["streams"]))
    return Objective(**settings)


def take_steps(
    model,
    variables,
    compiled,
    aim,
    batches,
    *,
    steps=1,
    memory=None,
    method="sum",
    weight_decay=0.0,
    ema_decay=0.0,
    keep_state=None,
    backward=None,
    micro_batches=1,
    skip_not_finite=False,
):
    """Takes some steps of plain SGD; returns the state before, the state after and the last metrics."""
    schedule = optax.constant_schedule(RATE)
    tx = optimizer.build(
        "sgd",
        learning_rate=schedule,
        weight_decay=weight_decay,
        momentum=0.0,
    )
    start = train_step.init_state(
        variables["params"],
        variables["batch_stats"],
        balance=balance.METHODS[method](),
        tx=tx,
        ema=ema_decay > 0,
        keep_state=keep_state,
        tasks=tuple(TASKS),
        trained_tasks=aim.tasks,
        key=jax.random.key(1),
    )
    backward = backward or ("summed" if method == "sum" else "stacked")
    problem = StepSpec(model, TASKS, aim, balance.METHODS[method](), backward, micro_batches)
    created = train_step.make_train_step(
        problem, tx=tx, schedule=schedule, ema_decay=ema_decay, skip_not_finite=skip_not_finite
    )
    settings = (aim, method, backward, micro_batches, weight_decay, ema_decay, skip_not_finite)
    step = compiled.setdefault(repr(settings), jax.jit(created))
    state, metrics = start, {}
    for _ in range(steps):
        state, metrics = step(state, memory or {}, batches)
    return start, state, metrics


def moved(before, after):
    return {
        "/".join(str(key.key) for key in path)
        for (path, old), (_, new) in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree_util.tree_leaves_with_path(after), strict=True
        )
        if not np.array_equal(old, new)
    }


def assert_close(first, second, tolerance=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), first, second)


def test_a_step_that_is_not_finite_can_be_left_out_and_counted(run):
    good, bad = batch("masks"), batch("masks", seed=1)
    bad["image"] = bad["image"].at[0, 0, 0, 0].set(jnp.nan)
    settings = {"skip_not_finite": True, "ema_decay": 0.9}
    before, after, metrics = run(objective(), {"masks": bad}, **settings)
    assert not np.isfinite(metrics["all/loss"])
    assert metrics["all/skipped_steps"] == after.skipped_steps == after.step == 1
    untouched = [(entry.params, entry.batch_stats, entry.opt_state, entry.ema) for entry in (before, after)]
    jax.tree.map(np.testing.assert_array_equal, *untouched)
    _, plain, _ = run(objective(), {"masks": good}, ema_decay=0.9)
    _, retained, metrics = run(objective(), {"masks": good}, **settings)
    assert metrics["all/skipped_steps"] == 0
    assert_close(retained.params, plain.params)


def test_training_lowers_the_loss(run):
    _, _, first = run(objective(), {"masks": batch("masks")}, steps=1)
    _, _, last = run(objective(), {"masks": batch("masks")}, steps=30)
    assert last["all/loss"] < 0.9 * first["all/loss"]


def test_a_step_leaves_the_head_of_a_task_that_it_does_not_train_alone_even_under_weight_decay(run):
    before, after, _ = run(objective(), {"masks": batch("masks")}, weight_decay=0.1)
    changed = moved(before.params, after.params)
    assert not any(name.startswith("head/cls") for name in changed)
    assert "head/seg/kernel" in changed
    assert any(name.startswith("backbone") for name in changed)


def test_a_batch_leaves_the_heads_that_it_does_not_label_alone_however_they_are_passed(model, variables):
    """Parameters, the optimizer's moments and count, weight decay: the same in each way, and so is what it trains."""
    schedule, plain = optax.constant_schedule(RATE), balance.METHODS["sum"]()
    tx = optimizer.build("adamw", learning_rate=schedule, weight_decay=0.1, momentum=0.0)
    streams = {"masks": ("seg",), "names": ("cls",)}
    after = {}
    for scheme in UPDATES:
        aim = objective(streams=streams, stage=StageTasks(own=("seg", "cls")), update=scheme)
        state = train_step.init_state(
            variables["params"], variables["batch_stats"], balance=plain, tx=tx, ema=False, tasks=tuple(TASKS),
            trained_tasks=aim.tasks, key=jax.random.key(1),
        )  # fmt: skip
        problem = StepSpec(model, TASKS, aim, plain, "summed")
        step = jax.jit(train_step.make_train_step(problem, tx=tx, schedule=schedule, clip_norm=1.0))
        after[scheme], metrics = step(state, {}, {"names": batch("names")})
        np.testing.assert_allclose(metrics["all/loss"], metrics["cls/names/loss"])
        changed = moved(state.params, after[scheme].params)
        assert not any(name.startswith("head/seg") for name in changed)
        assert {"head/cls/kernel", "neck/lateral_32/kernel"} <= changed
        jax.tree.map(np.testing.assert_array_equal, after[scheme].opt_state["seg"], state.opt_state["seg"])
        assert [int(after[scheme].opt_state[owner][0].count) for owner in ("seg", "cls", "shared")] == [0, 1, 1]
    for scheme in ("mask", "weight"):
        assert_close(after[scheme].params, after["forward"].params)


def test_a_gem_projects_the_new_gradient_against_the_replayed_one(run):
    batches = {"masks": batch("masks"), "names": batch("names", seed=1)}
    settings = {"train_batch_norm": False}

    def gradient(**changes):
        before, after, _ = run(objective(**settings, **changes), batches)
        return jax.tree.map(lambda old, new: (old - new) / RATE, before.params, after.params)

    both = {"masks": ("seg",), "names": ("cls",)}
    opposed = {"keep": {"agem": agem.AGEM()}, "stage": StageTasks(("seg",), ("cls",), replayed=("cls",))}
    new, reference = gradient(), gradient(streams={"names": ("cls",)})
    # The old task's loss is turned round: its gradient then opposes whatever the two have in common.
    for weight in (1.0, -1.0):
        old = jax.tree.map(lambda leaf, weight=weight: weight * leaf, reference)
        result = gradient(streams=both, **opposed, stream_weights={"masks": 1.0, "names": weight})
        assert_close(result, agem.project(new, old), tolerance=1e-3)
        assert optax.tree.vdot(result, old) >= -1e-3


def test_frozen_parameters_stay_as_they_are_even_under_weight_decay(run):
    frozen = {"frozen": ("backbone", "head/conv_*"), "train_batch_norm": lambda path: not path.startswith("backbone")}
    before, after, _ = run(objective(**frozen), {"masks": batch("masks")}, weight_decay=0.1, ema_decay=0.9)
    for changed in (moved(before.params, after.params), moved(before.ema.params, after.ema.params)):
        assert not any(name.startswith(("backbone", "head/conv_")) for name in changed)
        assert {"head/seg/kernel", "neck/lateral_8/kernel"} <= changed
    assert moved(before.batch_stats, after.batch_stats)
    assert not moved(before.batch_stats["backbone"], after.batch_stats["backbone"])


def test_freezing_spares_nothing_else(run):
    """The parameters left to train move as they would beside trained ones, for one step."""
    batches = {"masks": batch("masks")}
    _, free, _ = run(objective(train_batch_norm=False), batches)
    _, held, _ = run(objective(train_batch_norm=False, frozen=("backbone",)), batches)
    assert_close(free.params["head"], held.params["head"])
    assert_close(free.params["neck"], held.params["neck"])


def test_batch_norm_statistics_move_only_where_the_stage_trains_them(run):
    before, after, _ = run(objective(), {"masks": batch("masks")})
    assert moved(before.batch_stats, after.batch_stats)
    before, after, _ = run(objective(train_batch_norm=False), {"masks": batch("masks")})
    assert not moved(before.batch_stats, after.batch_stats)
    before, after, _ = run(
        objective(train_batch_norm=lambda path: path.endswith("stride_8")), {"masks": batch("masks")}
    )
    assert moved(before.batch_stats, after.batch_stats) == {
        "head/norm_0_stride_8/mean",
        "head/norm_0_stride_8/var",
    }


def test_stream_and_task_weights_scale_the_update(run):
    frozen = {"train_batch_norm": False}
    before, plain, _ = run(objective(**frozen), {"masks": batch("masks")})
    _, twice, _ = run(objective(**frozen, loss_weights={"seg": 2.0}), {"masks": batch("masks")})
    _, half, _ = run(objective(**frozen, stream_weights={"masks": 0.5}), {"masks": batch("masks")})
    step = jax.tree.map(jnp.subtract, plain.params, before.params)
    assert_close(jax.tree.map(lambda a, b: (a - b) / 2, twice.params, before.params), step)
    assert_close(jax.tree.map(lambda a, b: (a - b) * 2, half.params, before.params), step)


def test_two_streams_give_the_sum_of_their_gradients(run):
    both = {"masks": batch("masks"), "names": batch("names")}
    frozen = {"train_batch_norm": False}
    before, joint, metrics = run(objective(**frozen, streams={"masks": ("seg",), "names": ("cls",)}), both)
    _, masks, _ = run(objective(**frozen), both)
    _, names, _ = run(objective(**frozen, streams={"names": ("cls",)}), both)
    expected = jax.tree.map(lambda a, b, start: a + b - start, masks.params, names.params, before.params)
    assert_close(joint.params, expected)
    np.testing.assert_allclose(metrics["all/loss"], metrics["seg/masks/loss"] + metrics["cls/names/loss"], rtol=1e-6)


def test_streams_in_one_group_pass_through_the_network_together(run):
    both = {"masks": batch("masks"), "names": batch("names")}
    streams = {"streams": {"masks": ("seg",), "names": ("cls",)}, "train_batch_norm": False}
    _, apart, _ = run(objective(**streams), both)
    _, together, metrics = run(objective(**streams, groups=(("masks", "names"),)), both)
    assert_close(apart.params, together.params)
    assert {"seg/masks/loss", "cls/names/loss"} <= metrics.keys()


def test_a_balancing_method_sees_stacked_task_gradients_and_sum_s_two_paths_agree(run, monkeypatch):
    both = {"masks": batch("masks"), "names": batch("names")}
    aim = objective(streams={"masks": ("seg",), "names": ("cls",)})
    before, plain, _ = run(aim, both)
    monkeypatch.setitem(balance.METHODS, "stacked_sum", balance.METHODS["sum"])
    _, stacked, _ = run(aim, both, method="stacked_sum")
    assert_close(plain.params, stacked.params)
    _, mean, metrics = run(aim, both, method="mean")
    half = jax.tree.map(lambda start, end: (start + end) / 2, before.params, plain.params)
    assert_close(mean.params["backbone"], half["backbone"])
    assert metrics["seg/task_weight"] == metrics["cls/task_weight"] == 0.5
    assert metrics["all/balance_residual"] == 0
    assert -1 < metrics["all/cosine/seg/cls"] < 1
    # Private leaves are not balanced: each task's slice takes its own gradient.
    assert_close(mean.params["head"]["seg"], plain.params["head"]["seg"])


def test_distillation_is_zero_against_oneself_and_draws_the_network_to_another_teacher(run, model, variables):
    aim = objective(
        streams={"names": ("cls",)},
        loss_weights={"cls": 0.0},
        stage=StageTasks(("cls",), ("seg",)),
        train_batch_norm=False,
    )

    def distance(teacher, steps, **settings):
        taught = dataclasses.replace(aim, keep={"lwf": lwf.LwF(**settings)})
        inputs = {"memory": {"lwf": teacher}}
        return run(taught, {"names": batch("names")}, steps=steps, **inputs)[2]["seg/names/distillation"]

    np.testing.assert_allclose(distance(variables, 1), 0.0, atol=1e-6)
    louder = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 20 * leaf if "seg" in str(path) else leaf, variables["params"]
    )
    teacher = {"params": louder, "batch_stats": variables["batch_stats"]}
    first = distance(teacher, 1)
    assert distance(teacher, 20) < 0.7 * first
    assert not np.isclose(distance(teacher, 1, balance="classes"), first)


def test_features_are_held_where_the_teacher_has_them(run, variables):
    tasks = StageTasks(("cls",), ("seg",))

    def distance(weight, steps):
        keep = {"lwf": lwf.LwF(weight=0.0, feature_weight=weight)}
        held = objective(streams={"names": ("cls",)}, stage=tasks, keep=keep, train_batch_norm=False)
        assert held.tasks == ("cls", "seg")
        metrics = run(held, {"names": batch("names")}, steps=steps, memory={"lwf": variables})[2]
        return metrics["all/names/feature_distance"]

    np.testing.assert_allclose(distance(1.0, 1), 0.0, atol=1e-6)
    assert 0 < distance(0.1, 20) < 0.9 * distance(1e-6, 20)


def test_stored_outputs_draw_replayed_images_back(run, model, variables):
    aim = objective(keep={"der": der.DER()}, stream_weights={"masks": 0.0}, train_batch_norm=False)
    data = batch("masks")
    raw = multi_task.eval_raw(model, variables, data["image"], tasks=("seg",))[0]["seg"]
    data["labels"]["seg/outputs"] = {"outputs": raw + 1.0}
    _, _, first = run(aim, {"masks": data}, steps=1)
    _, _, last = run(aim, {"masks": data}, steps=20)
    np.testing.assert_allclose(first["seg/masks/output_distance"], 1.0, rtol=1e-4)
    assert last["seg/masks/output_distance"] < 0.9


def test_the_ewc_penalty_is_positive_after_a_step_and_holds_parameters_back(run, variables):
    fisher = jax.tree.map(jnp.ones_like, variables["params"])
    memory = {"ewc": (ewc.Anchor(variables["params"], fisher),)}

    def drift_and_penalty(strength):
        aim = objective(keep={"ewc": ewc.EWC(strength=strength)} if strength else {})
        _, after, metrics = run(aim, {"masks": batch("masks")}, steps=5, memory=memory if strength else {})
        drift = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, variables["params"]))
        return drift, metrics.get("all/ewc_penalty", 0.0)

    free, held = drift_and_penalty(0.0), drift_and_penalty(1.0)
    assert held[0] < free[0]
    assert held[1] > 0
    assert free[1] == 0


def test_separate_anchors_add_their_penalties(run, variables):
    params = variables["params"]
    anchor = ewc.Anchor(jax.tree.map(lambda leaf: leaf + 0.1, params), jax.tree.map(jnp.ones_like, params))

    def penalty(*anchors):
        aim, inputs = objective(keep={"ewc": ewc.EWC(strength=1.0)}), {"ewc": anchors}
        return run(aim, {"masks": batch("masks")}, memory=inputs)[2]["all/ewc_penalty"]

    np.testing.assert_allclose(penalty(anchor, anchor), 2 * penalty(anchor), rtol=1e-5)


def test_the_path_integral_is_the_gradient_times_the_way(run, variables):
    start = {"si": jax.tree.map(jnp.zeros_like, variables["params"])}
    before, after, _ = run(objective(keep={"si": si.SI()}), {"masks": batch("masks")}, keep_state=start)
    scheme = jax.tree.map(jnp.subtract, after.params, before.params)
    # One step of plain descent: way = -RATE * gradient.
    assert_close(after.si_path_integral, jax.tree.map(lambda step: step**2 / RATE, scheme))


def test_the_average_lags_behind_the_parameters(run):
    before, after, _ = run(objective(), {"masks": batch("masks")}, ema_decay=0.9)
    mean = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, before.params, after.params)
    assert_close(after.ema.params, mean)  # the first update counts 1 - (1 + 0) / (10 + 0)


@pytest.mark.parametrize(("method", "micro_batches"), [("sum", 1), pytest.param("pcgrad", 2, marks=pytest.mark.slow)])
def test_one_device_and_two_give_the_same_update(run, method, micro_batches):
    aim = objective(streams={"masks": ("seg",), "names": ("cls",)})
    data = {"masks": batch("masks"), "names": batch("names", seed=1)}
    settings = {"method": method, "micro_batches": micro_batches}
    _, alone, _ = run(aim, data, **settings)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    _, together, _ = run(aim, jax.device_put(data, split), **settings)
    assert_close(alone.params, together.params)
    assert_close(alone.batch_stats, together.batch_stats)


def test_branches_and_batch_norms_of_a_task_are_its_own():
    params = {"branch_seg": {"neck": 1}, "backbone": {"norm": {"seg": {"scale": 2}, "cls": {"scale": 3}}, "conv": 4}}
    shared, private = split_private(params, ("seg", "cls"))
    assert shared == {"backbone": {"conv": 4}}
    assert private["seg"] == {"branch_seg": {"neck": 1}, "backbone": {"norm": {"seg": {"scale": 2}}}}
    assert join_private(shared, private) == params


def test_private_leaves_split_off_and_join_again():
    params = {"neck": 1, "head": {"conv_1": 2, "seg": 3, "cls": 4}}
    shared, private = split_private(params, ("seg", "cls"))
    assert shared == {"neck": 1, "head": {"conv_1": 2}}
    assert private == {"seg": {"head": {"seg": 3}}, "cls": {"head": {"cls": 4}}}
    assert join_private(shared, private) == params
