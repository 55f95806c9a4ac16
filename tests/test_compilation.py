"""The compilation cache is shared, found again and given up with one line; compiling ahead changes no result."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.kernels import cpu_kernels
from mtl_jax.runtime import compilation, devices, stored_programs

PROGRAM = """
import jax, jax.numpy as jnp, logging
from mtl_jax.runtime import compilation
logging.basicConfig(level=logging.WARNING)
print(compilation.enable_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).block_until_ready()
"""


def run(**environment):
    plain = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**plain, **environment}, capture_output=True, text=True, check=True
    )


def test_the_second_process_compiles_nothing_anew(tmp_path):
    folder = run(MTL_JAX_CACHE=str(tmp_path)).stdout.strip()
    programs = sorted(path.name for path in (tmp_path / folder).glob("*-cache"))
    assert programs
    assert run(MTL_JAX_CACHE=str(tmp_path)).stdout.strip() == folder
    assert sorted(path.name for path in (tmp_path / folder).glob("*-cache")) == programs


def test_jax_own_settings_win(tmp_path):
    assert run(MTL_JAX_CACHE=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false").stdout.strip() == "None"
    assert not list(tmp_path.iterdir())
    custom = tmp_path / "own"
    assert run(JAX_COMPILATION_CACHE_DIR=str(custom)).stdout.strip() == str(custom)


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    process = run(MTL_JAX_CACHE=str(blocked))
    assert process.stdout.strip() == "None"
    assert f"No compilation cache in {blocked}" in process.stderr


def test_ahead_of_time_gives_the_same_result_and_keeps_to_its_shapes():
    compiled = compilation.ahead_of_time(lambda x: x * 2, jnp.arange(3.0))
    assert compiled(jnp.arange(3.0)).tolist() == [0, 2, 4]
    with pytest.raises(TypeError):
        compiled(jnp.arange(4.0))


class Traced:
    """Counts how often Python runs through a function."""

    count = 0


def step(x, factor):
    Traced.count += 1
    return jnp.sin(x) * factor, x.sum()


def scaled(factor):
    return lambda x: step(x, factor)


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty folder of compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(Traced, "count", 0)
    yield tmp_path / stored_programs.FOLDER
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_function_is_traced_once_and_another_again(programs):
    x = jnp.arange(3.0)
    first = compilation.ahead_of_time(scaled(2.0), x)(x)
    second = compilation.ahead_of_time(scaled(2.0), x)(x)
    assert Traced.count == 1
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = compilation.ahead_of_time(scaled(3.0), x)(x)
    assert Traced.count == 2
    np.testing.assert_allclose(other[0], 1.5 * first[0], rtol=1e-6)
    compilation.ahead_of_time(scaled(3.0), jnp.arange(4.0))
    compilation.ahead_of_time(scaled(3.0), jnp.arange(3))
    assert Traced.count == 4


def test_kernels_are_loaded_before_a_program_that_may_call_them(programs, monkeypatch):
    x, loaded = jnp.arange(3.0), []
    compilation.ahead_of_time(scaled(2.0), x)
    load = stored_programs.load
    monkeypatch.setattr(cpu_kernels, "available", lambda: loaded.append("kernels"))
    monkeypatch.setattr(stored_programs, "load", lambda *arguments: loaded.append("program") or load(*arguments))
    compilation.ahead_of_time(scaled(2.0), x)
    assert loaded[:2] == ["kernels", "program"]


def test_functions_that_are_lowered_alike_share_a_program(programs):
    x = jnp.arange(3.0)
    compilation.ahead_of_time(lambda x: step(x, 2.0), x)
    compilation.ahead_of_time(lambda x: step(x * 1, 2.0) if x is None else step(x, 2.0), x)
    assert Traced.count == 2
    assert len({file.stat().st_ino for file in programs.iterdir()}) == 1
    assert len(list(programs.iterdir())) == 3


def test_a_program_from_a_file_gives_its_first_argument_away(programs):
    def add(state, x):
        return state + x

    for _ in range(2):
        program = compilation.ahead_of_time(add, jnp.ones(3), jnp.ones(3), donate_argnums=0)
        state = jnp.ones(3)
        assert program(state, jnp.ones(3)).tolist() == [2, 2, 2]
        assert state.is_deleted()


def test_a_program_for_all_devices_runs_on_all_of_them_and_is_not_kept(programs):
    x = jax.device_put(jnp.arange(4.0), devices.everywhere())
    for _ in range(2):
        result = compilation.ahead_of_time(scaled(2.0), x, out_shardings=devices.everywhere())(x)
        assert len(result[0].sharding.device_set) == 2
        assert result[1] == 6
    assert not programs.exists()


@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_a_damaged_file_is_made_again(programs, caplog, damage):
    x = jnp.arange(3.0)
    result = compilation.ahead_of_time(scaled(2.0), x)(x)
    for file in list(programs.iterdir()):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[:-1] if damage is None else damage)
    again = compilation.ahead_of_time(scaled(2.0), x)(x)
    jax.tree.map(np.testing.assert_array_equal, again, result)
    assert "cannot be used" in caplog.text
    assert Traced.count == 2
    compilation.ahead_of_time(scaled(2.0), x)
    assert Traced.count == 2


def test_what_no_digest_holds_is_traced_in_each_process_and_compiled_once(programs):
    x, held = jnp.arange(3.0), object()
    for _ in range(2):
        compilation.ahead_of_time(lambda x: (step(x, 2.0), held)[0], x)
    assert Traced.count == 2
    assert len(list(programs.iterdir())) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(programs, caplog):
    programs.write_text("a file")
    x = jnp.arange(3.0)
    assert compilation.ahead_of_time(scaled(2.0), x)(x)[1] == 3
    assert "cannot be kept" in caplog.text


def test_the_oldest_programs_go_where_all_are_too_many(programs, monkeypatch):
    x = jnp.arange(3.0)
    compilation.ahead_of_time(scaled(2.0), x)
    first = set(programs.iterdir())
    for file in first:
        os.utime(file, (1, 1))
    monkeypatch.setattr(stored_programs, "MAX_BYTES", 1.5 * next(iter(first)).stat().st_size)
    compilation.ahead_of_time(scaled(3.0), x)
    assert not first & set(programs.iterdir())
    assert len(list(programs.iterdir())) == 2
