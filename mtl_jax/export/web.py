"""A folder for any static host: the page, the ONNX file, and the runtime that computes it in a browser."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mtl_jax import page
from mtl_jax.errors import UserError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # of its tarball
)
FILES = {  # in the package -> in the folder; the first finds the second in its own folder
    "dist/ort.wasm.bundle.min.mjs": "ort.mjs",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
FETCH_SECONDS = 300


def runtime(place: Path | None, cache: Path) -> dict[str, bytes]:
    """Returns the files of onnxruntime-web.

    Args:
        place: its tarball, or a folder that holds the package; any version. None takes the pinned version out of the
            cache, or has npm fetch its tarball once, which is checked.
        cache: folder of what was fetched.

    Raises:
        UserError: it is not there, or not the package.
    """
    if place is None:
        place = cache / f"{PACKAGE}-{VERSION}.tgz"
        if not place.is_file():
            _fetch(place)
        _check(place)
    place = place.expanduser()
    try:
        if place.is_dir():
            return {name: (place / path).read_bytes() for path, name in FILES.items()}
        with tarfile.open(place) as package:
            return {name: _member(package, f"package/{path}") for path, name in FILES.items()}
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise UserError(
            f"{place}: expected {PACKAGE} with {', '.join(FILES)}, found {error}; name its tarball or its folder with "
            "--ort_web"
        ) from error


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _fetch(target: Path) -> None:
    """Has npm, as it is set up on this machine, put the tarball into the cache."""
    advice = f"run 'npm pack {PACKAGE}@{VERSION}' where npm is, and name the file with --ort_web"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"--web needs {PACKAGE}, and npm, which would fetch it, is not installed; {advice}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm did not fetch {PACKAGE} within {FETCH_SECONDS} s; {advice}") from error
        tarballs = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(tarballs) != 1:
            reason = " ".join(done.stderr.split())[-200:] or f"status {done.returncode}"
            raise UserError(f"npm did not fetch {PACKAGE} ({reason}); {advice}")
        tarballs[0].replace(target)


def _check(tarball: Path) -> None:
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        tarball.unlink()
        raise UserError(
            f"{tarball.name}: expected the digest {INTEGRITY[:20]}…, found sha512-{digest[:13]}…; it is removed, try "
            "again"
        )


def add(folder: Path, files: dict[str, bytes]) -> None:
    """Puts the page and the runtime next to model.onnx and model.json.

    Args:
        folder: that holds these.
        files: from `runtime`.
    """
    for name, content in (page.files("browser") | files).items():
        (folder / name).write_bytes(content)
