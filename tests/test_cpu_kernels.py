"""Building and loading the compiled kernels; what they compute is tested with the functions that call them."""

import logging
import os
import shutil
import subprocess
import sys

import jax
import pytest

from mtl_jax.kernels import cpu_kernels, kernel_build, user_cache


def test_switched_off_they_are_not_built(no_compiler, monkeypatch, caplog):
    monkeypatch.setenv("MTL_JAX_CPU_KERNELS", "off")
    with caplog.at_level(logging.INFO, logger=cpu_kernels.__name__):
        assert not cpu_kernels.available()
    assert "MTL_JAX_CPU_KERNELS is off" in caplog.text


def fake_compiler(folder, body: str) -> None:
    script = folder / "g++"
    script.write_text("#!/bin/sh\n" + body)
    script.chmod(0o755)


BUILDS = 'while [ "$1" != -o ]; do shift; done\necho built > "$2"\n'


def test_a_failing_compiler_is_named_with_its_message(no_compiler, tmp_path, caplog):
    fake_compiler(tmp_path, "echo 'no such header' >&2; exit 1\n")
    assert not cpu_kernels.available()
    assert "g++ failed: no such header" in caplog.text
    assert not list((tmp_path / "cache").iterdir())


def test_a_compiler_without_march_native_still_builds(no_compiler, tmp_path):
    fake_compiler(tmp_path, 'case "$*" in *-march=native*) exit 1;; esac\n' + BUILDS)
    libraries = kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache").finish()
    assert [library.read_text() for library in libraries] == ["built\n"] * len(cpu_kernels.SOURCES)
    assert sorted((tmp_path / "cache").iterdir()) == sorted(libraries)


def test_clones_and_environments_share_what_is_built_of_the_same_sources(no_compiler, monkeypatch, tmp_path):
    fake_compiler(tmp_path, f"echo >> {tmp_path}/calls\n{BUILDS}")
    libraries = kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache").finish()
    calls = (tmp_path / "calls").read_text()
    clone = tmp_path / "clone"
    shutil.copytree(kernel_build.FOLDER, clone, ignore=shutil.ignore_patterns("*.py*"))
    monkeypatch.setattr(kernel_build, "FOLDER", clone)
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path / "another environment"))
    assert kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache").finish() == libraries
    assert (tmp_path / "calls").read_text() == calls + "\n"  # it was asked for its version alone


@pytest.mark.parametrize("changed", ["norm_kernels.cc", "kernels.h"])
def test_changed_sources_are_built_again(no_compiler, monkeypatch, tmp_path, changed):
    fake_compiler(tmp_path, BUILDS)
    before = kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache").finish()
    clone = tmp_path / "clone"
    shutil.copytree(kernel_build.FOLDER, clone, ignore=shutil.ignore_patterns("*.py*"))
    monkeypatch.setattr(kernel_build, "FOLDER", clone)
    (clone / changed).write_text((clone / changed).read_text() + "// changed\n")
    after = kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache").finish()
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_compilers_that_nobody_waits_for_end_and_leave_nothing(no_compiler, tmp_path):
    sleep = shutil.which("sleep", path=os.defpath)
    fake_compiler(tmp_path, f'case "$1" in --version) exit 0;; esac\nexec {sleep} 60\n')
    build = kernel_build.Build(cpu_kernels.SOURCES, tmp_path / "cache")
    running = list(build._running)
    assert [process.poll() for process in running] == [None] * len(cpu_kernels.SOURCES)
    del build
    assert all(process.returncode is not None for process in running)
    assert not list((tmp_path / "cache").iterdir())


def test_a_build_is_started_once_and_then_waited_for(no_compiler, monkeypatch, tmp_path):
    fake_compiler(tmp_path, f"echo >> {tmp_path}/calls\n{BUILDS}")
    monkeypatch.setattr(cpu_kernels.ctypes, "CDLL", lambda path: 1 / 0)
    cpu_kernels.start_build()
    cpu_kernels.start_build()
    with pytest.raises(ZeroDivisionError):
        cpu_kernels.available()
    assert (tmp_path / "calls").read_text() == "\n" * (1 + len(cpu_kernels.SOURCES))  # once for the version


def test_the_cache_follows_xdg_and_its_override(monkeypatch, tmp_path):
    monkeypatch.delenv("MTL_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache.cache_dir() == tmp_path / "mtl_jax"
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "mine"))
    assert user_cache.cache_dir() == tmp_path / "mine"


def test_importing_the_module_compiles_nothing(tmp_path):
    environment = {**os.environ, "MTL_JAX_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", "import mtl_jax.models.layers"], check=True, env=environment)
    assert not (tmp_path / "cache").exists()
