"""Learning without forgetting: on new images, old tasks' outputs stay close to the old network's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mtl_jax.config.checks import suggestion
from mtl_jax.continual.method import Keep, Method, Passed, StageTasks, StageView, Starting, Term, setting
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import ImageSize, Task


@dataclasses.dataclass(frozen=True)
class LwF(Method):
    """The network as a stage found it teaches old tasks, and old classes of a task that gets more, on its images.

    References:
        Li, Hoiem, "Learning without Forgetting", 2016.
    """

    weight: float = setting(1.0, "of the distance from the old outputs; 0 is off")
    weights: Mapping[str, float] = setting({}, "task -> factor on weight; 1 where absent")
    balance: str = setting(
        "mean",
        "all cells of a task alike; or by classes: what the network before rarely saw counts as much as what it often "
        "saw, and more at the borders of masks",
        choices=("mean", "classes"),
    )
    feature_weight: float = setting(0.0, "of the same for the features that tasks share; 0 is off")

    def check_keep(self, location: str, keep: Keep, tasks: Iterable[str]) -> None:
        del keep
        task_names = list(tasks)
        for task in self.weights:
            if task not in task_names:
                raise UserError(
                    f"{location}.weights: expected names of tasks, found {task!r}; {suggestion(task, task_names)}"
                )

    def refuse(self, stage: StageView, starting: Starting) -> None:
        location = f"{stage.location}.keep.lwf"
        for name, held_tasks in (("weight", starting.tasks.taught), ("feature_weight", starting.tasks.old)):
            if (value := getattr(self, name)) and not held_tasks:
                raise UserError(
                    f"{location}.{name}: expected 0 where no stage before has learnt a task that this one could "
                    f"forget, found {value:g}; leave it to a later stage"
                )
        for task in self.weights if self.weight else ():
            if task not in starting.tasks.taught:
                raise UserError(
                    f"{location}.weights: expected tasks of earlier stages that this one does not train, found {task}; "
                    f"{suggestion(task, starting.tasks.taught)}"
                )

    def before(self, starting: Starting) -> PyTree | None:
        return starting.variables if self.gives(starting.tasks) else None

    def gives(self, tasks: StageTasks) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.reads(tasks), *self._holding(tasks)]))

    def reads(self, tasks: StageTasks) -> tuple[str, ...]:
        return tasks.taught if self.weight else ()

    def terms(self, passed: Passed, teacher: PyTree | None) -> Iterator[Term]:
        distilled, holding = self.reads(passed.stage), self._holding(passed.stage)
        if teacher is None:
            return
        read = distilled or holding[:1]
        teacher_raw, features = multi_task.eval_raw(passed.model, teacher, passed.image, tasks=read)
        yield from self._feature_terms(passed, holding, features)
        weights = {task: self.weight * self.weights.get(task, 1.0) for task in distilled}
        tasks = {task: passed.stage.extended.get(task, passed.tasks[task]) for task in distilled}
        _, task_losses = distillation(
            tasks,
            _of_old_classes(tasks, passed.raw),
            _of_old_classes(tasks, teacher_raw),
            image_size=passed.image_size,
            weights=weights,
            balance=self.balance,
        )
        for task, loss in task_losses.items():
            yield Term(task, weights[task] * loss, {f"{task}/{passed.group[0]}/distillation": loss})

    def _holding(self, tasks: StageTasks) -> tuple[str, ...]:
        """The tasks that carry the distillation of features, each an equal part."""
        return tasks.old if self.feature_weight else ()

    def _feature_terms(self, passed: Passed, holding: tuple[str, ...], features: Mapping[str, Array]) -> Iterator[Term]:
        if not holding:
            return
        common = {name: features[name] for name in sorted(passed.features.keys() & features.keys())}
        distance = feature_distance(passed.features, common)
        for task in holding:
            task_distance = self.feature_weight * distance / len(holding)
            yield Term(task, task_distance, {f"all/{passed.group[0]}/feature_distance": distance})


def _of_old_classes(tasks: Mapping[str, Task], raw: Mapping[str, Array]) -> dict[str, Array]:
    """Raw outputs without those of classes that the tasks do not have: these come last."""
    return {name: raw[name][..., : task.all_channels] for name, task in tasks.items()}


def distillation(
    tasks: Mapping[str, Task],
    raw: Mapping[str, Array],
    teacher_raw: Mapping[str, Array],
    *,
    image_size: ImageSize,
    weights: Mapping[str, float],
    balance: str = "mean",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The distillation term over all tasks for which the teacher has outputs.

    Args:
        tasks: the tasks by name; those without teacher outputs are left out.
        raw: what the network in training emits, by task.
        teacher_raw: what the network from before the stage emits for the same images; no gradient flows into
            it.
        image_size: height and width of the images, px.
        weights: of each old task's term; entries for other tasks are ignored.
        balance: "mean": all cells of a task count alike; "classes": what the teacher rarely sees counts as much as what
            it often sees, where a kind of task knows how.

    Returns:
        The weighted sum, zero without old tasks, and each task's term before weighting.

    Raises:
        UserError: if an old task lacks a record, a weight or an output of the network in training.

    References:
        Li, Hoiem, "Learning without Forgetting", 2016.
    """
    for names_given, words in ((tasks, "a task record"), (weights, "a weight"), (raw, "an output of the network")):
        missing = sorted(set(teacher_raw) - set(names_given))
        if missing:
            raise UserError(
                f"expected {words} for every task of the teacher, found none for {', '.join(missing)}; "
                f"given are {', '.join(sorted(names_given)) or 'none'}"
            )
    task_losses: dict[str, Array] = {}
    for name, teacher_output in teacher_raw.items():
        teacher = jax.lax.stop_gradient(teacher_output)
        task_losses[name] = tasks[name].distillation_loss(raw[name], teacher, image_size, balanced=balance == "classes")
    total = sum((weights[name] * task_loss for name, task_loss in task_losses.items()), start=jnp.float32(0.0))
    return total, task_losses


def feature_distance(features: Mapping[str, Array], teacher_features: Mapping[str, Array]) -> Float[Array, ""]:
    """How far features have moved from the teacher's: the mean over their levels of |f - t|^2 / |t|^2.

    The norms are taken over a whole batch and level, so that the distance depends on neither the size of a level nor
    the scale of its features.

    Args:
        features: by name; of the network in training.
        teacher_features: of the same names and shapes; no gradient flows into them.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015 (without the division).
    """

    def mean_shift(name):
        teacher = jax.lax.stop_gradient(teacher_features[name]).astype(jnp.float32)
        shift = features[name].astype(jnp.float32) - teacher
        return jnp.square(shift).sum() / jnp.maximum(jnp.square(teacher).sum(), 1e-12)

    return jnp.stack([mean_shift(name) for name in teacher_features]).mean()
