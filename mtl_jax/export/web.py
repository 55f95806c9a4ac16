"""Static web folder: the page, the ONNX file, and onnxruntime-web, which runs it in a browser."""

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
FILES = {  # path in the package -> name in the web folder; the first file loads the second by its name
    "dist/ort.wasm.bundle.min.mjs": "ort.mjs",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
FETCH_SECONDS = 300


def runtime(source: Path | None, cache: Path) -> dict[str, bytes]:
    """Returns the files of onnxruntime-web.

    Args:
        source: tarball or folder of the package, of any version. None uses the pinned version from the cache; npm
            downloads its tarball once, and its digest is verified.
        cache: folder of downloaded tarballs.

    Raises:
        UserError: the source is missing, or is not the package.
    """
    if source is None:
        source = cache / f"{PACKAGE}-{VERSION}.tgz"
        if not source.is_file():
            _fetch(source)
        _check(source)
    source = source.expanduser()
    try:
        if source.is_dir():
            return {name: (source / path).read_bytes() for path, name in FILES.items()}
        with tarfile.open(source) as package:
            return {name: _member(package, f"package/{path}") for path, name in FILES.items()}
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise UserError(
            f"{source}: expected {PACKAGE} with {', '.join(FILES)}, found {error}; name its tarball or its folder with "
            "--ort_web"
        ) from error


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _fetch(target: Path) -> None:
    """Downloads the tarball into the cache with npm, as configured on this machine."""
    advice = f"run 'npm pack {PACKAGE}@{VERSION}' where npm is, and name the file with --ort_web"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"--web needs {PACKAGE}, and npm, which would fetch it, is not installed; {advice}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", folder]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm did not fetch {PACKAGE} within {FETCH_SECONDS} s; {advice}") from error
        tarballs = sorted(Path(folder).glob("*.tgz"))
        if result.returncode or len(tarballs) != 1:
            reason = " ".join(result.stderr.split())[-200:] or f"status {result.returncode}"
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
    """Writes the page and the runtime into the folder of model.onnx and model.json.

    Args:
        folder: folder of these two files.
        files: from `runtime`.
    """
    for name, content in (page.files("browser") | files).items():
        (folder / name).write_bytes(content)
