"""Checkpoints on disk: complete or absent, one folder each. The only file that imports Orbax."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from mtl_jax.workdir import checkpoint_trees

SPARE_BYTES = 2_000_000  # for what Orbax and we write about the arrays
METADATA = "metadata.json"  # written last: where it is, the rest is
DIGESTS = "digests.json"  # of every other file, so that a damaged one is found and not trained on

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or of another shape; says which and what to do."""


class StageCheckpoint(NamedTuple):
    """Location of a finished stage."""

    index: int
    name: str
    path: Path


def save(path: Path, trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint; an earlier one at `path` stays whole until the new one is.

    In a run of several processes, all of them call it with the same folder, which they share.

    Args:
        path: the folder to make.
        trees: named trees of arrays; each can be loaded alone.
        metadata: JSON.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    ocp, primary = _orbax(), jax.process_index() == 0
    draft_path = path.with_name(path.name + ".new")
    try:
        if primary:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_drafts(draft_path)
            _require_room(path.parent, trees)
        _wait_for_all(f"{path} may be written")
        ocp.save_checkpointables(
            draft_path.absolute(), {name: checkpoint_trees.on_host(tree) for name, tree in trees.items()}
        )
        if primary:
            _seal(draft_path, metadata)
            _replace(path, draft_path)
        _wait_for_all(f"{path} is written")
    except (OSError, ValueError) as error:  # Orbax reports a full disk by either
        _remove_drafts(draft_path)
        reason = str(error).strip().splitlines()[0][:300]
        raise CheckpointError(f"{path}: cannot be written ({reason}); earlier checkpoints are intact") from error


def _remove_drafts(draft_path: Path) -> None:
    """Removes what a write that did not end has left, Orbax's own drafts included."""
    for draft in draft_path.parent.glob(f"{draft_path.name}*"):
        shutil.rmtree(draft, ignore_errors=True)


def _require_room(folder: Path, trees: Mapping[str, PyTree]) -> None:
    """Asks before writing: where the room ends within a write, Orbax's threads speak before they fail."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trees)))
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed + SPARE_BYTES:
        raise OSError(
            errno.ENOSPC, f"about {needed / 1e6:.0f} MB are needed, {free_bytes / 1e6:.0f} MB are free", str(folder)
        )


def _seal(draft_path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes what marks a complete checkpoint: its files' digests, and after them its metadata."""
    text = json.dumps(metadata, indent=1)
    digests = {name: _digest((draft_path / name).read_bytes()) for name in _files(draft_path)}
    digests[METADATA] = _digest(text.encode())
    (draft_path / DIGESTS).write_text(json.dumps(digests, indent=1))
    draft = draft_path / f"{METADATA}.tmp"
    draft.write_text(text)
    os.replace(draft, draft_path / METADATA)


def _files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _replace(path: Path, draft_path: Path) -> None:
    stale = path.with_name(path.name + ".old")
    shutil.rmtree(stale, ignore_errors=True)
    if path.exists():
        path.rename(stale)
    draft_path.rename(path)
    shutil.rmtree(stale, ignore_errors=True)


def verify(path: Path) -> None:
    """Checks that every file of a checkpoint is as it was written.

    Raises:
        CheckpointError: nothing complete is there, or a file is missing or damaged; it is named.
    """
    read_metadata(path)
    for name, digest in _read_json(path, DIGESTS).items():
        _require_sound(path, name, digest)


def digest(path: Path) -> str:
    """Returns a digest of all files of a checkpoint.

    Raises:
        CheckpointError: nothing complete is there.
    """
    read_metadata(path)
    return _digest((path / DIGESTS).read_bytes())


def _require_sound(path: Path, name: str, digest: Any) -> None:
    try:
        sound = _digest((path / name).read_bytes()) == digest
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read ({error.strerror})") from error
    if not sound:
        raise CheckpointError(f"{path}: {name} is damaged, it is not what was written")


def newest_sound(candidates: Iterable[Path]) -> Path | None:
    """Returns the first checkpoint that is as it was written, and warns of each before it.

    Args:
        candidates: newest first.
    """
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            _log.warning("%s; going on from the one before it", error)
        else:
            return path
    return None


def load(path: Path, abstract: Mapping[str, PyTree | None]) -> dict[str, PyTree]:
    """Reads parts of a checkpoint as numpy arrays.

    Args:
        path: the checkpoint's folder.
        abstract: part -> a tree of the expected structure (arrays or `jax.ShapeDtypeStruct`), or None to read the
            part as it was saved (dicts of arrays).

    Raises:
        CheckpointError: nothing complete is there, a file is damaged, or a leaf is missing or has another shape.
    """
    ocp = _orbax()
    verify(path)
    expected = {name: None if tree is None else checkpoint_trees.host_like(tree) for name, tree in abstract.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sharding info not provided")
            restored = ocp.load_checkpointables(path.absolute(), expected)
    except (ValueError, KeyError, OSError, TypeError) as error:
        reason = _other_leaves(path, expected) or str(error).strip().splitlines()[0][:300]
        raise _unreadable(path, reason) from error
    for name, tree in expected.items():
        if tree is not None:
            if difference := checkpoint_trees.other_shape(tree, restored[name]):
                raise _unreadable(path, difference)
            restored[name] = checkpoint_trees.with_keys(abstract[name], restored[name])
    return restored


def _other_leaves(path: Path, expected: Mapping[str, PyTree | None]) -> str:
    try:
        saved = _orbax().load_checkpointables(path.absolute(), dict.fromkeys(expected))
    except (ValueError, KeyError, OSError, TypeError):
        return ""
    return checkpoint_trees.other_leaves(expected, saved)


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint cannot be read as this network's ({reason}); use the version that wrote it, or train "
        "the stage again"
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the JSON saved with a checkpoint.

    Raises:
        CheckpointError: there is no complete checkpoint at `path`, or the file is damaged.
    """
    metadata = _read_json(path, METADATA)
    _require_sound(path, METADATA, _read_json(path, DIGESTS).get(METADATA))
    return metadata


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        tree = json.loads((path / name).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a complete checkpoint, a folder like runs/seq/checkpoints/0-seg, found none ({name}: "
            f"{error.strerror}); train it with scripts/train.py"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {name} is damaged ({error})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: {name} is damaged (it holds no JSON object)")
    return tree


def is_complete(path: Path) -> bool:
    """Whether a whole checkpoint lies at `path`."""
    return (path / METADATA).is_file()


def delete(path: Path) -> None:
    """Removes a checkpoint, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def save_step(folder: Path, step: int, trees: Mapping[str, PyTree], metadata: Mapping[str, Any], *, keep: int) -> None:
    """Writes the checkpoint of one step, and removes all but the newest ones.

    Args:
        folder: of the steps' checkpoints.
        step: its number.
        trees: as in `save`.
        metadata: as in `save`.
        keep: how many stay.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    save(folder / str(step), trees, metadata)
    if jax.process_index() == 0:
        kept_paths = steps(folder)[:keep]
        for path in folder.iterdir():
            if path not in kept_paths:
                delete(path)


def steps(folder: Path) -> list[Path]:
    """Lists the complete checkpoints that `save_step` has left in a folder, newest first."""
    paths = [path for path in folder.glob("*") if path.name.isdigit() and is_complete(path)]
    return sorted(paths, key=lambda path: int(path.name), reverse=True)


def stages(workdir: Path) -> list[StageCheckpoint]:
    """Lists the finished stages in a work directory, in order."""
    stage_paths = []
    for path in (workdir / "checkpoints").glob("*-*"):
        index, _, name = path.name.partition("-")
        if index.isdigit() and is_complete(path) and not path.name.endswith((".new", ".old")):
            stage_paths.append(StageCheckpoint(int(index), name, path))
    return sorted(stage_paths)


def find(weights: Path) -> Path:
    """Returns the checkpoint that `--weights` means: the last stage of a work directory, or the folder of a stage.

    Args:
        weights: either of them, the work directory's folder `checkpoints`, or anything that lies in a stage's folder.

    Raises:
        CheckpointError: neither is there, or it is a checkpoint within a stage, which no stage has finished.
    """
    weights = weights.expanduser()
    finished_stages = stages(weights.absolute().parent if weights.name == "checkpoints" else weights)
    if not finished_stages and weights.exists():
        around = (weights, *weights.absolute().parents)
        checkpoint = next((path for path in around if is_complete(path) and (path / DIGESTS).is_file()), None)
        if checkpoint is not None and checkpoint.name.isdigit() and checkpoint.parent.parent.name == "partial":
            raise CheckpointError(
                f"{weights} is the state within a stage, to resume from; name the work directory "
                f"{checkpoint.parent.parent.parent} (its last finished stage), or a folder in its checkpoints"
            )
        if checkpoint is not None:
            return checkpoint
    if not finished_stages:
        raise CheckpointError(
            f"{weights} is neither a work directory with finished stages (checkpoints/0-…) nor a stage's checkpoint; "
            "train first, or name the folder given to --workdir"
        )
    return finished_stages[-1].path


@functools.cache
def _orbax() -> Any:
    # Orbax takes seconds to import; --help and errors should not wait for it.
    import logging

    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised too
    return ocp


def _wait_for_all(barrier: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(barrier)
