"""The compilation cache is shared, found again and given up with one line; compiling ahead changes no result."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mtl_jax.runtime import compilation

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
    function = jax.jit(lambda x: x * 2)
    compiled = compilation.ahead_of_time(function, jnp.arange(3.0))
    assert compiled(jnp.arange(3.0)).tolist() == [0, 2, 4]
    with pytest.raises(TypeError):
        compiled(jnp.arange(4.0))
