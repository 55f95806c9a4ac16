"""Record of a run: `config.json`, and the refusal to mix two experiments in one work directory."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import filelock
import jax

import mtl_jax
from mtl_jax.errors import UserError
from mtl_jax.workdir import files

RECORD = "config.json"
LOCK = ".lock"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pycocotools")


def claim(workdir: Path, config: Mapping[str, Any], *, command: str, trains: bool) -> None:
    """Writes `config.json`; of a run that is only judged again, the record of its training stays.

    Args:
        workdir: made if it is missing.
        config: the resolved configuration, as plain values, which is known to continue what is there.
        command: that started the run.
        trains: whether anything is left to train.

    Raises:
        UserError: the folder cannot be made, or holds a run that is not to be resumed.
    """
    record = workdir / RECORD
    before = files.read_json(record)
    if before is not None and not config["resume"]:
        raise UserError(
            f"{workdir} holds a run already; name another --workdir, or leave --config.resume=False out to resume it"
        )
    device = jax.devices()[0]
    of_training = {
        "seed": config["seed"],
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform}, {platform.machine()})",
        "command": command or " ".join(sys.argv),
        "code": code_digest(),
        "versions": versions(),
    }
    if before is not None and not trains:
        of_training |= before
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(record, of_training | {"config": config})
    except OSError as error:
        raise _not_writable(workdir, error) from error


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package, which need not be installed, and of those that it stands on."""
    versions_by_name = {"python": platform.python_version(), "mtl_jax": mtl_jax.__version__}
    for name in PACKAGES:
        try:
            versions_by_name[name] = packages.version(name)
        except packages.PackageNotFoundError:
            versions_by_name[name] = "not installed"
    return versions_by_name


def code_digest() -> str:
    """Returns a digest of the package's source, which a version number alone does not distinguish."""
    package = Path(mtl_jax.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _not_writable(workdir: Path, error: OSError) -> UserError:
    return UserError(f"work directory {workdir} cannot be written ({error.strerror}); name another --workdir")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a work directory; the operating system lets go of it however the process ends.

    Raises:
        UserError: another process trains there, or the folder cannot be made.
    """
    lock = filelock.FileLock(workdir / LOCK, blocking=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another process is training in {workdir}; wait for its end, or name another --workdir"
        ) from error
    except OSError as error:
        raise _not_writable(workdir, error) from error
    try:
        yield
    finally:
        lock.release()


def still_there(workdir: Path) -> None:
    """Checks that nobody has taken the work directory away under a run.

    Raises:
        UserError: its `config.json` is gone.
    """
    if not (workdir / RECORD).is_file():
        raise UserError(
            f"{workdir / RECORD} is gone: the work directory was removed or moved during training; start again with "
            "another --workdir, or put it back"
        )
