"""Lineage of a work directory: `lineage.json`, one entry for each version, the oldest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Task
from mtl_jax.workdir import checkpoints, files
from mtl_jax.workdir.trained import Trained

FILE_NAME = "lineage.json"


def entry(workdir: Path, stages: Sequence[str], classes: Mapping[str, Sequence[str]], **fields: Any) -> dict[str, Any]:
    """Returns what a lineage holds of one version.

    Args:
        workdir: of the version.
        stages: that it added.
        classes: task -> names of its classes, of every task that it has learnt.
        **more: what else it says of itself.
    """
    names = {task: list(class_names) for task, class_names in classes.items()}
    return {"workdir": str(workdir.expanduser().absolute()), "stages": list(stages), "classes": names, **fields}


def classes_of(tasks: Mapping[str, Task]) -> dict[str, tuple[str, ...]]:
    """Returns task -> names of the classes that it may predict."""
    return {name: task.output_classes for name, task in tasks.items()}


def first(run: Trained) -> dict[str, Any]:
    """Returns the entry of a run that grew from no other."""
    return entry(run.path.parent.parent, run.stages, classes_of(run.tasks))


def read(workdir: Path) -> dict[str, Any] | None:
    """Reads a work directory's lineage; None where it grew from no other.

    Raises:
        UserError: the file is damaged.
    """
    content = files.read_json(workdir / FILE_NAME)
    if content is not None and not isinstance(content.get("versions"), list):
        raise UserError(
            f"{workdir / FILE_NAME} is damaged (it lists no versions); put it back, or extend again elsewhere"
        )
    return content


def of_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads the lineage of the work directory that a stage's checkpoint lies in.

    Args:
        path: of the checkpoint.
    """
    return read(path.absolute().parent.parent)


def write(workdir: Path, parent: Path, versions: Sequence[Mapping[str, Any]]) -> None:
    """Writes the lineage of a run that grows from a checkpoint.

    Args:
        workdir: of the new run.
        parent: the checkpoint.
        versions: all of them, this one last.
    """
    digest = checkpoints.digest(parent)
    files.write_json(workdir / FILE_NAME, {"parent": str(parent.absolute()), "digest": digest, "versions": versions})


def require_same_parent(workdir: Path, lineage: Mapping[str, Any], parent: Path) -> None:
    """Refuses to continue a run that grew from something else.

    Args:
        workdir: of the run.
        lineage: its lineage.
        parent: the checkpoint that it should have grown from.

    Raises:
        UserError: it grew from another, or the parent has been trained again since.
    """
    if lineage["parent"] != str(parent.absolute()):
        raise UserError(
            f"{workdir}: expected a run that grew from {parent}, found one from {lineage['parent']}; name another "
            "--workdir"
        )
    if lineage["digest"] != checkpoints.digest(parent):
        raise UserError(
            f"{parent} is newer than {workdir}, which grew from it (its digest was {lineage['digest']}, is "
            f"{checkpoints.digest(parent)}); name another --workdir to extend the newer one"
        )


def sentence(lineage: Mapping[str, Any]) -> str:
    """Returns in words which version a run is, and what it grew from."""
    last = lineage["versions"][-1]
    retention = (
        "old outputs kept exactly" if last.get("keep") == "exact" else f"old tasks within {last.get('keep', '')}"
    )
    changes = "; ".join(edits(last)) if "edited" in last else retention
    fields = f"; {lineage['refused']}" if "refused" in lineage else ""
    number, parent, digest = len(lineage["versions"]), lineage["parent"], lineage["digest"]
    return f"version {number}, grown from {parent} (digest {digest}), {changes}{fields}"


def edits(version: Mapping[str, Any]) -> list[str]:
    """Returns in words which classes a version has renamed or removed.

    Args:
        version: an entry of a lineage.
    """
    sentences = []
    for task, changed in version.get("edited", {}).items():
        sentences += [f"{task}: {old_name} renamed {new_name}" for old_name, new_name in changed["renamed"].items()]
        sentences += [f"{task}: {name} removed" for name in changed["removed"]]
    return sentences
