"""Checks of a stage against the stages before it: an earlier task to start from, and tasks that have a loss."""

from __future__ import annotations

from mtl_jax.config.checks import suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.errors import UserError


def check(settings: RunSettings) -> None:
    """Checks every stage of the order against those before it; `continual` checks what each names under `keep`.

    Raises:
        UserError: the first setting that would do nothing, or that nothing has prepared.
    """
    for name in settings.order:
        stage, location = settings.stages[name], f"config.stages.{name}"
        earlier_tasks, own_tasks = settings.tasks_of(*settings.stages_before(name)), settings.tasks_of(name)
        _check_warm_start(stage, location, earlier_tasks=earlier_tasks, own_tasks=own_tasks)
        for task in stage.loss_weights:
            if task not in (*own_tasks, *earlier_tasks):
                raise UserError(
                    f"{location}.loss_weights: expected tasks that this stage or one before it learns, found {task}; "
                    f"{suggestion(task, (*own_tasks, *earlier_tasks))}"
                )


def _check_warm_start(
    stage: StageSettings, location: str, *, earlier_tasks: tuple[str, ...], own_tasks: tuple[str, ...]
) -> None:
    other_tasks = tuple(task for task in earlier_tasks if task not in own_tasks)
    if stage.warm_start and stage.warm_start not in other_tasks:
        raise UserError(
            f"{location}.warm_start: expected a task of an earlier stage that this one does not train, "
            f"{' or '.join(map(repr, other_tasks)) or 'of which there is none'}, found {stage.warm_start!r}; name "
            "one, or leave it out"
        )
