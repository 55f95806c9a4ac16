"""Compiles the C++ sources in this folder to libraries in the user's cache, in processes of their own."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import jax

from mtl_jax.kernels import user_cache

BUILD_SECONDS = 300  # a build takes some 10 s on two quiet cores
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w", "-pthread")
FOLDER = Path(__file__).parent
COMPILERS = ("g++", "c++", "clang++")


class Build:
    """Libraries of some sources: those that the cache lacks are being compiled from the moment that this is made.

    Compilers that are at work when nobody needs them any more, or when the process ends, are ended too.

    Args:
        sources: names of files in this folder.
        folder: the cache.

    Raises:
        RuntimeError: there is no compiler.
        OSError: the cache cannot be written.
    """

    def __init__(self, sources: Iterable[str], folder: Path) -> None:
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        if compiler is None:
            raise RuntimeError(f"found no {', '.join(COMPILERS[:-1])} or {COMPILERS[-1]}")
        self._command = [compiler, *FLAGS, "-I", jax.ffi.include_dir(), "-I", str(FOLDER)]
        self.libraries = {FOLDER / source: folder / name for source, name in _names(compiler, sources).items()}
        self._missing = {source: library for source, library in self.libraries.items() if not library.exists()}
        self._running: list[subprocess.Popen[str]] = []
        if self._missing:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(dir=folder))
            self._end = weakref.finalize(self, _end, self._running, self._scratch)
            self._start("-march=native")

    def finish(self) -> list[Path]:
        """Waits for the compilers, and returns the libraries in the order of their sources.

        Raises:
            RuntimeError: a source does not compile.
            subprocess.TimeoutExpired: a compiler does not come to its end.
        """
        if self._missing:
            try:
                errors = self._wait()
                if errors:  # some compilers do not know -march=native on some processors
                    self._start()
                    errors = self._wait()
                if errors:
                    raise RuntimeError(f"{self._command[0]} failed: {errors}")
                for library in self._missing.values():
                    (self._scratch / library.name).replace(library)  # atomic: others see the whole file or none
            finally:
                self._end()
            self._missing = {}
        return list(self.libraries.values())

    def _start(self, *flags: str) -> None:
        for source, library in self._missing.items():
            command = [*self._command, *flags, str(source), "-o", str(self._scratch / library.name)]
            self._running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))

    def _wait(self) -> str:
        """Waits for the compilers at work, and returns what they complained of."""
        complaints = [process.communicate(timeout=BUILD_SECONDS)[1] for process in self._running]
        statuses = [process.returncode for process in self._running]
        self._running.clear()
        return "; ".join(text or "no message" for text, status in zip(complaints, statuses, strict=True) if status)


def _end(running: list[subprocess.Popen[str]], scratch: Path) -> None:
    for process in running:
        process.kill()
        process.communicate()
    shutil.rmtree(scratch, ignore_errors=True)


def _names(compiler: str, sources: Iterable[str]) -> dict[str, str]:
    """The library's file name by source: another for every other content, compiler, XLA and processor."""
    banner = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_SECONDS).stdout
    code = "".join(path.read_text() for path in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cc")]))
    # The instruction set is that of this machine, so the key holds the processor: homes are shared between machines.
    # It holds no folder: every clone and every virtual environment with the same sources takes the same libraries.
    common = "\0".join([code, banner, *FLAGS, version("jaxlib"), platform.machine(), user_cache.processor()])
    key = hashlib.sha256(common.encode()).hexdigest()[:16]
    return {source: f"{Path(source).stem}-{key}.so" for source in sources}
