"""What a stage trains of the network: when which layers are frozen, their rates, and whose norms it trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.config.checks import near
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.continual.method import StageTasks
from mtl_jax.errors import UserError
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import expanded, matches, paths
from mtl_jax.training import exactness, freezing


def frozen_phases(
    setup: experiment.Experiment,
    settings: StageSettings,
    params: PyTree,
    steps_per_epoch: int,
    steps: int,
    *,
    location: str,
) -> dict[int, tuple[str, ...]]:
    """Returns from which step on which patterns of parameters are frozen; the first is step 0.

    Args:
        setup: what the configuration describes.
        settings: of the stage.
        params: of the network.
        steps_per_epoch: of the stage.
        steps: of the whole stage.
        location: of the stage in the configuration, for errors.

    Raises:
        UserError: a pattern fits no parameter, begins after the stage, or leaves nothing to train.
    """
    location = f"{location}.freeze"
    stages = experiment.backbone_stages(setup, settings.frozen)
    named_rules = freezing.rules(settings.frozen)
    rules = [rule._replace(pattern=layer) for rule in named_rules for layer in expanded(rule.pattern, stages)]
    paths_found = paths(params)
    for rule in rules:
        _require_match(rule.pattern, paths_found, location=location)
        if rule.start >= settings.epochs:
            raise UserError(
                f"{location}: expected epochs before {settings.epochs:g}, at which the stage ends, found "
                f"{rule.pattern!r} from epoch {rule.start:g} on"
            )
    phases = freezing.phases(rules, steps_per_epoch=steps_per_epoch, total_steps=steps)
    _check_frozen(phases, paths_found, location=location)
    return phases


def rates(setup: experiment.Experiment, settings: StageSettings, params: PyTree, *, location: str) -> dict[str, float]:
    """Returns pattern of parameters -> factor on the learning rate.

    Args:
        setup: what the configuration describes.
        settings: of the stage.
        params: of the network.
        location: of the stage in the configuration, for errors.

    Raises:
        UserError: a pattern fits no parameter.
    """
    factors = {"backbone": settings.backbone_rate, "*/backbone": settings.backbone_rate}
    stages = experiment.backbone_stages(setup, settings.rates)
    for pattern, factor in dict(settings.rates).items():
        for layer in expanded(pattern, stages):
            factors[layer] = factors.get(layer, 1.0) * factor
    _check_rates(factors, params, location=f"{location}.rates")
    return factors


def trained_norms(
    setup: experiment.Experiment,
    stage: str,
    settings: StageSettings,
    frozen: tuple[str, ...],
    tasks: StageTasks,
) -> bool | Callable[[str], bool]:
    """Returns where batch norm normalises by the batch and moves its statistics.

    Args:
        setup: what the configuration describes.
        stage: its name.
        settings: of the stage, with its mode, `train_batch_norm`.
        frozen: patterns of parameters; their norms keep their statistics.
        tasks: of the stage.
    """
    mode, own_tasks, old = settings.train_batch_norm, tasks.own, tasks.old
    names = tuple(setup.tasks)  # what follows is part of the step, which is found again by all that it holds
    added = tuple(exactness.added_rows(task, stage) for task in tasks.extended)
    if setup.model.norms_by_task and mode != "nowhere":

        def in_own_pass(path: str) -> bool:
            # Old tasks that are distilled pass through their own batch norms, which keep their statistics.
            owner = owner_of(tuple(path.split("/")), names)
            if matches(path, frozen) or (owner in tasks.extended and mode != "everywhere" and not _is_in(path, added)):
                return False
            return mode == "everywhere" if owner is None else owner in own_tasks

        return in_own_pass
    if mode == "nowhere" or (mode == "everywhere" and not frozen):
        return mode == "everywhere"
    known_levels = {level for task in old for level in setup.tasks[task].levels}
    new_levels = {
        f"stride_{level}" for task in own_tasks for level in setup.tasks[task].levels if level not in known_levels
    }

    def by_batch(path: str) -> bool:
        if matches(path, frozen):
            return False
        return mode == "everywhere" or any(path.endswith(level) for level in new_levels) or _is_in(path, added)

    return by_batch


def _is_in(path: str, folders: Collection[str]) -> bool:
    return any(folder in f"/{path}" for folder in folders)


def _check_rates(factors: Mapping[str, float], params: PyTree, *, location: str) -> None:
    paths_found = paths(params)
    for pattern in factors:
        if pattern not in ("backbone", "*/backbone"):
            _require_match(pattern, paths_found, location=location)


def _require_match(pattern: str, paths_found: Sequence[str], *, location: str) -> None:
    if not any(matches(path, (pattern,)) for path in paths_found):
        prefixes = dict.fromkeys(
            "/".join(path.split("/")[:depth])
            for depth in range(1, 4)
            for path in paths_found
            if path.count("/") >= depth
        )
        likely = near(pattern, prefixes)
        hint = f"; did you mean {' or '.join(likely)}?" if likely else ""
        top = ", ".join(prefix for prefix in prefixes if "/" not in prefix)
        raise UserError(f"{location}: expected patterns of parameters in {top}, found {pattern!r}, of none{hint}")


def _check_frozen(phases: Mapping[int, tuple[str, ...]], paths_found: Sequence[str], *, location: str) -> None:
    for patterns in phases.values():
        if all(matches(path, patterns) for path in paths_found):
            raise UserError(
                f"{location}: expected some parameter left to train, found {', '.join(patterns)}; freeze less"
            )
