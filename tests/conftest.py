"""Strictness for every test: shapes are checked, ranks never promote silently, two devices are always there."""

import contextlib
import functools
import gc
import os
import shutil
import sys

from compiling import QUICK

# Compiling is the slow part of tiny models: XLA's costly passes are left out, and what is computed stays the same.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=2"
os.environ.setdefault("MPLBACKEND", "Agg")
# Matrices are small: threads that wait for each other by spinning take the core of the other test process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import shape_checks

# Grain looks for the place of an example among 2**16 or so, however few there are, and most tests have equal orders.
with contextlib.suppress(ImportError):  # where Grain keeps it elsewhere
    from grain._src.python.experimental.index_shuffle.python import index_shuffle_module

    index_shuffle_module.index_shuffle = functools.lru_cache(maxsize=None)(index_shuffle_module.index_shuffle)
# Tracing makes many objects and little garbage; searching for it at the default pace takes a fifteenth of the time.
gc.set_threshold(100_000, 20, 100)
shape_checks.install()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")


PROGRAMS_MB = 2048  # of compiled programs that a run may start with
PROGRAM_SECONDS = 0.2  # what compiles faster is not worth a file
# Start first, so that no worker is left alone with them at the end.
LONGEST = {
    f"test_{name}.py"
    for name in (
        *("train", "kill", "grow_page", "two_hosts", "extend", "balance", "train_step", "wiring", "benchmark"),
        *("cli", "pretrained", "resumption", "multi_task", "detection", "own_parts", "partial", "pages", "joint"),
    )
}


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in pytest's own cache, which all workers share; `--cache-clear` empties it."""
    cache = getattr(config, "cache", None)
    if cache is None:  # -p no:cacheprovider
        return
    programs = cache.mkdir("programs")
    if not hasattr(config, "workerinput"):  # before workers start
        prune(programs)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", PROGRAM_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def prune(programs: Path) -> None:
    """Empties the folder of compiled programs where it has grown too large.

    JAX can keep to a limit too: then it locks the folder and looks at every file of it for each program.
    """
    if sum(file.stat().st_size for file in programs.iterdir()) > PROGRAMS_MB * 2**20:
        shutil.rmtree(programs)
        programs.mkdir()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; `make test` hands files to workers in this order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    draw_no_constants()


def draw_no_constants() -> None:
    """Hides the modules from Hypothesis, which parses them for constants: for seconds, in each new checkout.

    What a test of the default size draws would also depend on the modules that the tests before it have loaded.
    """
    providers = sys.modules.get("hypothesis.internal.conjecture.providers")
    if hasattr(providers, "is_local_module_file") and "MTL_JAX_FUZZ_CASES" not in os.environ:
        setattr(providers, "is_local_module_file", lambda path: False)  # noqa: B010 - no part of its interface


def pytest_collection_finish() -> None:
    """Keeps modules and tests, which stay to the end, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """No compiler on the path, no kernels in the cache, and none loaded; `tmp_path` is the path, for another one."""
    from mtl_jax.kernels import cpu_kernels

    monkeypatch.delenv("MTL_JAX_CPU_KERNELS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("_build", "available"):
        monkeypatch.setattr(cpu_kernels, name, functools.cache(getattr(cpu_kernels, name).__wrapped__))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real datasets, or a loud skip."""
    folder = os.environ.get("MTL_JAX_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MTL_JAX_DATA does not name a folder of datasets: tests on real images are skipped")
    return Path(folder)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Spares a test that trains what a run does at its end: seconds of timing, counting and drawing."""
    from tiny import spare_report

    spare_report(monkeypatch)


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Trains on the first device alone, for which XLA compiles a step in two thirds of the time."""
    from mtl_jax.runtime import devices

    def of_the_first(spec: jax.sharding.PartitionSpec) -> jax.sharding.Sharding:
        return jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices()[:1], ("data",)), spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_sharding", of_the_first)
        yield


@pytest.fixture(scope="module")
def kept_programs(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces and compiles a step once where several runs of a module take it; finding that out takes a while too."""
    from mtl_jax.runtime import stored_programs

    place = str(tmp_path_factory.mktemp("programs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_programs, "folder", lambda: Path(place))
        yield


@pytest.fixture
def optimised() -> Iterator[None]:
    """Lets XLA optimise, as outside the tests: for those that take hundreds of steps."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def tiny_backbone() -> Iterator[None]:
    """Makes `backbone="tiny"` known."""
    from tiny import TinyBackbone

    from mtl_jax.models import multi_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(multi_task.BACKBONES, "tiny", TinyBackbone)
        yield
