"""Balancing of a stage's tasks: the method, and the cheapest backward pass that it needs."""

from __future__ import annotations

import inspect

import optax

from mtl_jax import balance
from mtl_jax.config.checks import check_arguments, require_choice
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.errors import UserError
from mtl_jax.training.losses import Backward, Objective


def method(settings: StageSettings, *, tasks: int, location: str) -> optax.GradientTransformationExtraArgs:
    """Makes the balancing method of a stage.

    Args:
        settings: of the stage, from the config.
        tasks: number of tasks with a loss.
        location: the settings' place, for errors.

    Raises:
        UserError: the method or one of its options is unknown, or out of range.
    """
    require_choice(f"{location}.balance", settings.balance, balance.METHODS)
    factory, options = balance.METHODS[settings.balance], dict(settings.balance_options)
    check_arguments(f"{location}.balance_options", options, factory)
    if "max_tasks" in inspect.signature(factory).parameters:  # its state holds no more than the stage needs
        options = {"max_tasks": tasks} | options
    try:
        return factory(**options)
    except ValueError as error:
        raise UserError(f"{location}.balance_options: {error}") from error


def backward(
    settings: StageSettings,
    method: optax.GradientTransformationExtraArgs,
    objective: Objective,
    *,
    features_are_shared: bool,
    location: str,
) -> Backward:
    """Picks the cheapest backward pass that provides what the method and the log need.

    Args:
        settings: of the stage, from the config.
        method: from `method`.
        objective: the losses of the stage.
        features_are_shared: there are features that all tasks read.
        location: the settings' place, for errors.

    Raises:
        UserError: gradients at the features are requested, but there are none to balance.
    """
    one_image_many_tasks = any(len(objective.carried(group)) > 1 for group in objective.groups)
    if settings.gradient_space == "features":
        obstacle = ""
        if len(objective.groups) > 1 or not one_image_many_tasks:
            obstacle = "tasks that do not share their images"
        elif not features_are_shared:
            obstacle = "a network whose tasks read no common features (model.norms_from, model.sharing)"
        elif isinstance(method, balance.RemembersGradients):
            obstacle = f"balance {settings.balance!r}, which remembers gradients: those of other images' features"
        elif settings.micro_batches > 1:
            obstacle = f"micro_batches {settings.micro_batches}, whose features are not there at the same time"
        elif objective.opposed:
            obstacle = (
                f"{', '.join(objective.opposed)}, whose gradient in the parameters bounds the others' (keep.agem)"
            )
        if obstacle:
            raise UserError(
                f'{location}.gradient_space: expected "params" with {obstacle}, found "features"; set it to "params"'
            )
        return "features"
    if settings.balance == "sum" and not settings.log_conflicts:
        return "summed"
    is_one_pass = settings.micro_batches == 1 and not settings.log_conflicts
    if isinstance(method, balance.OnLosses) and is_one_pass:
        return "weighted"
    return "stacked"
