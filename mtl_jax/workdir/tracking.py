"""Trackers that receive a run's metrics in addition to `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mtl_jax.errors import UserError
from mtl_jax.workdir.files import read_json, replace_text

IDENTITIES = "tracking.json"  # in a work directory: by which names the services know the run, for the next start
TENSORBOARD_FOLDER = "tensorboard"
PROJECT = "mtl_jax"  # where the environment names no other
BATCH = 100  # figures or settings that MLflow takes at once
LONGEST_VALUE = 500  # characters of a setting, MLflow's limit


class Start(NamedTuple):
    """A start of a run, the first or a resumption.

    Attributes:
        workdir: where the run leaves its files.
        name: of the run.
        config: resolved, as plain values.
        purge_step: from which step on figures are logged again; None where the log is only appended to.
    """

    workdir: Path
    name: str
    config: Mapping[str, Any]
    purge_step: int | None = None


@runtime_checkable
class Tracker(Protocol):
    """Takes what a run logs."""

    def log(self, step: int, name: str, value: float) -> None:
        """Takes one finite figure."""
        ...

    def artifact(self, path: Path) -> None:
        """Takes a file that the run has made."""
        ...

    def flush(self) -> None:
        """Writes what is held back."""
        ...

    def close(self, *, failed: bool) -> None:
        """Ends the start."""
        ...


class TensorBoard:
    """Event files in the work directory."""

    def __init__(self, start: Start) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard hides what older files hold from purge_step on: event files cannot be shortened.
        self._events = SummaryWriter(str(start.workdir / TENSORBOARD_FOLDER), purge_step=start.purge_step)

    def log(self, step: int, name: str, value: float) -> None:
        """Takes one finite figure."""
        self._events.add_scalar(name, value, step)

    def artifact(self, path: Path) -> None:
        """The file is in the work directory already."""

    def flush(self) -> None:
        """Writes what is held back."""
        self._events.flush()

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        del failed
        self._events.close()


class WandB:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and its other variables are followed."""

    def __init__(self, start: Start) -> None:
        self._wandb = _package("wandb")
        known_run = _identity(start.workdir, "wandb")
        identity = known_run or uuid.uuid4().hex[:12]
        self._run = self._wandb.init(
            project=_from_environment("WANDB_PROJECT"),
            id=identity,
            resume="allow",
            name=start.name,
            config=dict(start.config),
            dir=str(start.workdir),
        )
        _keep_identity(start.workdir, "wandb", identity)

    def log(self, step: int, name: str, value: float) -> None:
        """Takes one finite figure."""
        self._run.log({name: value}, step=step)

    def artifact(self, path: Path) -> None:
        """Takes a file that the run has made."""
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def flush(self) -> None:
        """The service's own thread writes."""

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI, by default the folder ./mlruns, and MLFLOW_EXPERIMENT_NAME are followed."""

    def __init__(self, start: Start) -> None:
        # MLflow uses a folder only on request: it prefers a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._mlflow = _package("mlflow")
        self._mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").absolute().as_uri())
        self._client: Any = self._mlflow.MlflowClient()
        self._pending_metrics: list[Any] = []
        known_run = _identity(start.workdir, "mlflow")
        if known_run:
            self._run = known_run
            self._client.update_run(known_run, status="RUNNING")
            return
        experiment = self._mlflow.set_experiment(_from_environment("MLFLOW_EXPERIMENT_NAME"))
        self._run = self._client.create_run(experiment.experiment_id, run_name=start.name).info.run_id
        _keep_identity(start.workdir, "mlflow", self._run)
        settings = [self._mlflow.entities.Param(name, str(value)[:LONGEST_VALUE]) for name, value in flat(start.config)]
        for first in range(0, len(settings), BATCH):
            self._client.log_batch(self._run, params=settings[first : first + BATCH])

    def log(self, step: int, name: str, value: float) -> None:
        """Takes one finite figure."""
        self._pending_metrics.append(self._mlflow.entities.Metric(name, value, int(1000 * time.time()), step))
        if len(self._pending_metrics) >= BATCH:
            self.flush()

    def artifact(self, path: Path) -> None:
        """Takes a file that the run has made."""
        self._client.log_artifact(self._run, str(path))

    def flush(self) -> None:
        """Sends what is held back."""
        if self._pending_metrics:
            self._client.log_batch(self._run, metrics=self._pending_metrics)
        self._pending_metrics = []

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self.flush()
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


TRACKERS: dict[str, Callable[[Start], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
NONE = "none"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # of the extra `track`


def parse(text: str) -> tuple[str, ...]:
    """Reads names with commas between; "none" is no tracker.

    Raises:
        UserError: an unknown name, or one whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in (*TRACKERS, NONE)]
    if unknown or not names or (NONE in names and len(names) > 1):
        expected = f"{NONE} or some of {', '.join(TRACKERS)}, with commas between"
        raise UserError(f"--track: expected {expected}, found {text!r}")
    for name in names:
        if name in PACKAGES:
            _package(PACKAGES[name])
    return tuple(name for name in names if name != NONE)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every setting."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def open_trackers(names: Sequence[str], start: Start) -> tuple[Tracker, ...]:
    """Starts trackers.

    Args:
        names: keys of `TRACKERS`.
        start: of the run.

    Raises:
        UserError: a service refuses, or is not there.
    """
    return tuple(_open_tracker(name, start) for name in names)


def _open_tracker(name: str, start: Start) -> Tracker:
    try:
        return TRACKERS[name](start)
    except UserError:
        raise
    except Exception as error:  # whatever the service's package raises
        raise UserError(f"--track {name} cannot start: {error}; correct its settings, or leave it out") from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--track {name} needs the package {name}, which is not installed: pip install 'mtl_jax[track]'"
        ) from error


def _from_environment(variable: str) -> str:
    return os.environ.get(variable) or PROJECT


def _identity(workdir: Path, service: str) -> str | None:
    return (read_json(workdir / IDENTITIES) or {}).get(service)


def _keep_identity(workdir: Path, service: str, identity: str) -> None:
    identities = {**(read_json(workdir / IDENTITIES) or {}), service: identity}
    replace_text(workdir / IDENTITIES, json.dumps(identities) + "\n")
