"""Variables of an experiment's network: fresh ones, with pretrained features, and their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
from jaxtyping import Array, PyTree

from mtl_jax.experiment.parts import Experiment
from mtl_jax.models import multi_task
from mtl_jax.models.backbones import pretrained, published


def init_variables(experiment: Experiment, *, key: Array, pretrained_path: str, offline: bool = False) -> PyTree:
    """Returns fresh variables, with the backbone's pretrained features where a file of them is given.

    Args:
        experiment: from `build`.
        key: of the random initialisation.
        pretrained_path: "" for none; the name of a backbone whose weights are published, which are downloaded once; or
            a file, whose relative path is also looked for in data_root, data_root/weights and data_root/../weights.
        offline: download nothing.

    Raises:
        UserError: the file is nowhere, or does not hold this backbone's features.
    """
    variables = multi_task.init_variables(experiment.model, key=key)
    return _with_weights(experiment, variables, pretrained_path, offline)


def check_weights(experiment: Experiment, *, pretrained_path: str, offline: bool = False) -> None:
    """Finds the file of the pretrained features, or downloads it, and checks that it is the backbone's.

    Args:
        experiment: from `build`.
        pretrained_path: as for `init_variables`.
        offline: as for `init_variables`.

    Raises:
        UserError: as `init_variables`.
    """
    if pretrained_path:
        _weights_file(experiment, pretrained_path, offline)  # before anything that takes longer
        _with_weights(experiment, abstract_variables(experiment), pretrained_path, offline)


def _with_weights(experiment: Experiment, variables: PyTree, pretrained_path: str, offline: bool) -> PyTree:
    if not pretrained_path:
        return variables
    path = _weights_file(experiment, pretrained_path, offline)
    return pretrained.load(variables, path, backbone=multi_task.backbone_name(experiment.model))


def _weights_file(experiment: Experiment, pretrained_path: str, offline: bool) -> Path:
    backbone = multi_task.backbone_name(experiment.model)
    return published.find(pretrained_path, backbone=backbone, data_root=experiment.data_root, offline=offline)


def abstract_variables(experiment: Experiment) -> PyTree:
    """Returns the shapes of the variables, without making any."""
    return jax.eval_shape(lambda key: multi_task.init_variables(experiment.model, key=key), jax.random.key(0))


def backbone_stages(experiment: Experiment, patterns: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Returns what patterns may call parts of the backbone, by `patterns.expanded`; nothing where none does."""
    is_named = any(name in pattern for pattern in patterns for name in ("stride_", "until_"))
    return multi_task.backbone_stages(experiment.model) if is_named else {}
