"""The pure training step: losses of every stream, terms that keep old tasks, one update."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from mtl_jax import balance as balance_lib
from mtl_jax import optimizer
from mtl_jax.continual import agem, der, ewc, lwf, si
from mtl_jax.models import multi_task
from mtl_jax.models.network import branch_name
from mtl_jax.tasks.base import Task


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]  # of the stage
    params: PyTree
    batch_stats: PyTree
    balance_state: PyTree
    opt_state: PyTree
    ema: optimizer.EmaState | None
    path: PyTree | None  # of synaptic intelligence: each parameter's part in the loss's fall
    key: Array  # of the stage; each step folds its number in


class Memory(NamedTuple):
    """What a stage was given of the earlier ones; a step reads it and leaves it as it is."""

    teacher: Any  # variables of the network before the stage
    anchors: tuple[ewc.Anchor, ...]  # that hold the parameters


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses a stage sums, and with what weight."""

    streams: Mapping[str, tuple[str, ...]]  # stream -> the tasks that it labels
    # Streams whose images have one size and pass through the network as one batch, with common batch statistics.
    groups: tuple[tuple[str, ...], ...]
    stream_weights: Mapping[str, float]
    loss_weights: Mapping[str, float]  # task -> factor
    distilled: Mapping[str, float] = dataclasses.field(default_factory=dict)  # old task -> weight of its distillation
    old_tasks: tuple[str, ...] = ()  # of the stages before; they carry the distillation of features
    feature_weight: float = 0.0
    der_weight: float = 0.0  # of the distance from the outputs that replayed images were stored with
    ewc_strength: float = 0.0
    train_batch_norm: bool | Callable[[str], bool] = True  # or the paths of the layers to train it in
    reference_tasks: tuple[str, ...] = ()  # their gradient only bars the way to opposing ones (A-GEM)
    frozen: tuple[str, ...] = ()  # patterns of the parameters that the stage leaves as they are

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task with a loss, in order of first appearance."""
        names = [task for tasks in self.streams.values() for task in tasks]
        return tuple(dict.fromkeys([*names, *self.distilled, *self.holding]))

    @property
    def holding(self) -> tuple[str, ...]:
        """The tasks that carry the distillation of features, each an equal part."""
        return self.old_tasks if self.feature_weight else ()


Step = Callable[[TrainState, Memory, Mapping[str, Any]], tuple[TrainState, dict[str, Array]]]


def init_state(
    params: PyTree,
    batch_stats: PyTree,
    *,
    balance: optax.GradientTransformationExtraArgs,
    tx: optax.GradientTransformation,
    ema: bool,
    path: bool = False,
    tasks: tuple[str, ...],
    key: Array,
) -> TrainState:
    """Returns the state at step 0 of a stage."""
    shared, _ = split_private(params, tasks)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        balance_state=balance.init(shared),
        opt_state=tx.init(params),
        ema=optimizer.EmaState(params, jnp.zeros((), jnp.int32)) if ema else None,
        path=jax.tree.map(jnp.zeros_like, params) if path else None,
        key=key,
    )


def make_train_step(
    model: Any,
    tasks: Mapping[str, Task],
    objective: Objective,
    *,
    balance: optax.GradientTransformationExtraArgs,
    sum_of_losses: bool,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
) -> Step:
    """Returns `(state, memory, batch) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
        model: from `multi_task.build`.
        tasks: every task of the model.
        objective: the losses of the stage.
        balance: task gradients -> one gradient, over the shared leaves; a task's own leaves take its own gradient.
        sum_of_losses: the balancing method is the plain sum, for which one backward pass per stream is enough.
        tx: gradient -> update.
        schedule: the learning rate of `tx`, for the log.
        ema_decay: of the averaged weights; 0 keeps none.
    """
    names = objective.tasks
    stacked = not sum_of_losses or bool(objective.reference_tasks)

    def step(state: TrainState, memory: Memory, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        losses, batch_stats, metrics, task_grads = _task_gradients(
            model, tasks, objective, state.params, state.batch_stats, memory, batch, key, stacked=stacked
        )
        if objective.reference_tasks:
            old = jnp.array([name in objective.reference_tasks for name in names])
            grads = agem.project(_sum_of_rows(task_grads, ~old), _sum_of_rows(task_grads, old))
            balance_state = state.balance_state
        elif sum_of_losses:
            grads, balance_state = task_grads, state.balance_state
        else:
            shared, private = split_private(task_grads, names)
            gramian = balance_lib.gramian(shared)  # compiled once, though the method asks for it too
            shared, balance_state = balance.update(
                shared, state.balance_state, split_private(state.params, names)[0], task_losses=losses
            )
            metrics |= _balance_metrics(names, balance_state, gramian)
            grads = join_private(shared, jax.tree.map(lambda leaf: leaf.sum(0), private))
        loss_grads = grads
        if memory.anchors and objective.ewc_strength:
            penalty, penalty_grads = jax.value_and_grad(_penalty)(state.params, memory.anchors, objective.ewc_strength)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
            metrics["all/ewc_penalty"] = penalty
        metrics["all/loss"] = losses.sum() + metrics.get("all/ewc_penalty", 0.0)
        metrics["all/gradient_norm"] = optax.tree.norm(grads)
        metrics["all/learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        # Weight decay must not wear down the slice of a task that this stage does not train.
        idle = split_private(updates, tuple(task for task in tasks if task not in names))
        updates = join_private(idle[0], jax.tree.map(jnp.zeros_like, idle[1]))
        updates = _where_frozen(jnp.zeros_like, updates, objective.frozen)
        params = optax.apply_updates(state.params, updates)
        ema = optimizer.ema_update(state.ema, params, ema_decay) if state.ema is not None else None
        path = None if state.path is None else si.update_path(state.path, loss_grads, state.params, params)
        new_state = TrainState(state.step + 1, params, batch_stats, balance_state, opt_state, ema, path, state.key)
        return new_state, metrics

    return step


def _balance_metrics(names: tuple[str, ...], state: Any, gramian: Float[Array, "tasks tasks"]) -> dict[str, Array]:
    """The weights of the tasks, what the method's solver left over, and the cosines between the tasks' gradients."""
    metrics = {f"{name}/task_weight": weight for name, weight in zip(names, state.task_weights, strict=False)}
    metrics["all/balance_residual"] = state.residual
    lengths = jnp.sqrt(jnp.diagonal(gramian))
    for first, second in itertools.combinations(range(len(names)), 2):
        product = lengths[first] * lengths[second]
        cosine = gramian[first, second] / jnp.where(product > 0, product, 1.0)
        metrics[f"all/cosine_{names[first]}_{names[second]}"] = cosine
    return metrics


def _penalty(params: PyTree, anchors: tuple[ewc.Anchor, ...], strength: float) -> Float[Array, ""]:
    return jnp.stack([ewc.penalty(params, *anchor, strength) for anchor in anchors]).sum()


def _sum_of_rows(task_grads: PyTree, chosen: Bool[Array, " tasks"]) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.tensordot(chosen.astype(leaf.dtype), leaf, axes=1), task_grads)


def _task_gradients(
    model: Any,
    tasks: Mapping[str, Task],
    objective: Objective,
    params: PyTree,
    batch_stats: PyTree,
    memory: Memory,
    batch: Mapping[str, Any],
    key: Array,
    *,
    stacked: bool,
) -> tuple[Float[Array, " tasks"], PyTree, dict[str, Array], PyTree]:
    """Runs every group of streams once forward, and backward once (`stacked=False`) or once per task it carries.

    Returns:
        Task losses in the order of `objective.tasks`, batch statistics, metrics by "task/name", and the gradients:
        of the sum, or with a leading axis of tasks.
    """
    names = objective.tasks
    losses = jnp.zeros(len(names))
    metrics: dict[str, Array] = {}
    grads = jax.tree.map(lambda leaf: jnp.zeros((len(names), *leaf.shape) if stacked else leaf.shape), params)
    for number, group in enumerate(objective.groups):
        group_losses = functools.partial(
            _group_losses,
            model,
            tasks,
            objective,
            group,
            batch_stats=batch_stats,
            memory=memory,
            batch=batch,
            key=jax.random.fold_in(key, number),
        )
        carried = [names.index(task) for task in _carried(objective, group)]
        values, backward, (batch_stats, parts) = jax.vjp(group_losses, params, has_aux=True)
        losses = losses.at[jnp.array(carried)].add(values)
        metrics |= parts
        if not stacked:
            (gradient,) = backward(jnp.ones(len(carried)))
            grads = jax.tree.map(jnp.add, grads, gradient)
            continue
        for row, index in enumerate(carried):
            (gradient,) = backward(jnp.zeros(len(carried)).at[row].set(1.0))
            grads = jax.tree.map(lambda total, one, index=index: total.at[index].add(one), grads, gradient)
    return losses, batch_stats, metrics, grads


def _carried(objective: Objective, group: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks for which a group of streams gives a loss: by its labels, by distillation, or both."""
    return tuple(dict.fromkeys([*_computed(objective, group), *objective.holding]))


def _computed(objective: Objective, group: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks whose outputs such a loss needs."""
    labelled = [task for stream in group for task in objective.streams[stream]]
    return tuple(dict.fromkeys([*labelled, *objective.distilled]))


def _group_losses(
    model: Any,
    tasks: Mapping[str, Task],
    objective: Objective,
    group: tuple[str, ...],
    params: PyTree,
    *,
    batch_stats: PyTree,
    memory: Memory,
    batch: Mapping[str, Any],
    key: Array,
) -> tuple[Float[Array, " carried"], tuple[PyTree, dict[str, Array]]]:
    """The weighted loss of each task that a group of streams carries."""
    params = _where_frozen(jax.lax.stop_gradient, params, objective.frozen)  # spares their backward pass
    carried = _carried(objective, group)
    image = jnp.concatenate([batch[stream]["image"] for stream in group])
    image_size = (image.shape[1], image.shape[2])
    raw, batch_stats, features = multi_task.train_raw(
        model,
        params,
        batch_stats,
        image,
        tasks=_computed(objective, group),
        key=key,
        train_batch_norm=objective.train_batch_norm,
    )
    values = dict.fromkeys(carried, jnp.zeros(()))
    metrics: dict[str, Array] = {}
    first = 0
    for stream in group:
        rows = slice(first, first + batch[stream]["image"].shape[0])
        first = rows.stop
        for task in objective.streams[stream]:
            loss, parts = tasks[task].loss(raw[task][rows], batch[stream]["labels"][task], image_size)
            values[task] += objective.stream_weights[stream] * objective.loss_weights.get(task, 1.0) * loss
            metrics |= {f"{task}/{stream}_{name}": part for name, part in {"loss": loss, **parts}.items()}
            stored = batch[stream]["labels"].get(der.label_name(task))
            if stored is not None and objective.der_weight:
                distance = der.distance(raw[task][rows], stored["outputs"])
                values[task] += objective.der_weight * distance
                metrics[f"{task}/{stream}_output_distance"] = distance
    if objective.distilled or objective.holding:
        taught = tuple(objective.distilled) or objective.holding[:1]
        teacher_raw, teacher_features = multi_task.eval_raw(model, memory.teacher, image, tasks=taught)
        teacher_raw = {task: teacher_raw[task] for task in objective.distilled}
        if objective.holding:
            common = {name: teacher_features[name] for name in features.keys() & teacher_features.keys()}
            distance = lwf.feature_distance(features, dict(sorted(common.items())))
            for task in objective.holding:
                values[task] += objective.feature_weight * distance / len(objective.holding)
            metrics[f"all/{group[0]}_feature_distance"] = distance
        _, parts = lwf.distillation(tasks, raw, teacher_raw, image_size=image_size, weights=objective.distilled)
        for task, loss in parts.items():
            values[task] += objective.distilled[task] * loss
            metrics[f"{task}/{group[0]}_distillation"] = loss
    return jnp.stack([values[task] for task in carried]), (batch_stats, metrics)


def split_private(tree: PyTree, tasks: tuple[str, ...]) -> tuple[PyTree, dict[str, PyTree]]:
    """Splits params, or gradients like them, into what tasks share and what is one task's own.

    A task's own are its branch, its slice of the head, and its batch norms where tasks have their own.

    Returns:
        The shared leaves, and {task: its leaves}, each in their places.
    """
    flat = {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    owners = {path: _owner(path, tasks) for path in flat}
    parts = [_nested({path: leaf for path, leaf in flat.items() if owners[path] == owner}) for owner in (None, *tasks)]
    return parts[0], dict(zip(tasks, parts[1:], strict=True))


def _owner(path: tuple[str, ...], tasks: tuple[str, ...]) -> str | None:
    for task in tasks:
        own_norm = any(name == task and above.startswith("norm") for above, name in itertools.pairwise(path))
        if path[0] == branch_name(task) or path[:2] == ("head", task) or own_norm:
            return task
    return None


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        functools.reduce(lambda branch, name: branch.setdefault(name, {}), path[:-1], tree)[path[-1]] = leaf
    return tree


def join_private(shared: PyTree, private: Mapping[str, PyTree]) -> PyTree:
    """The inverse of `split_private`."""
    flat: dict[tuple[str, ...], Any] = {}
    for part in (shared, *private.values()):
        flat |= {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(part)}
    return _nested(flat)


def is_frozen(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a layer or parameter, such as "backbone/block_4/expand/conv", lies at or below one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*") for pattern in patterns)


def paths(params: PyTree) -> list[str]:
    """Returns the path of every parameter, names joined by slashes."""
    return ["/".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _where_frozen(change: Callable[[Array], Array], params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    changed = [
        change(leaf) if is_frozen(path, patterns) else leaf for path, leaf in zip(paths(params), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, changed)
