"""Imports run one way, and a few packages are imported in one place only."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtl_jax"
LAYERS = (  # each may import those to its left, and its own
    ("errors",),
    ("kernels", "config"),
    ("tasks", "balance"),
    ("data", "models"),
    ("continual", "runtime"),
    ("experiment",),
    ("workdir",),
    ("evaluation",),
    ("page", "report"),
    ("export", "training", "predict", "own_data"),
    ("extend", "serve"),
    ("cli",),
    ("__main__",),
)
ONLY_IN = {
    "flax": ("models",),
    "grain": ("data",),
    "cv2": ("data",),
    "PIL": ("data",),
    "orbax": ("workdir/checkpoints.py",),
    "ml_collections": ("config", "workdir/trained.py"),
    "absl": ("cli", "data/pipeline.py"),
    "onnx": ("export",),
    "onnxruntime": ("export",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
}


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_every_module_has_its_layer():
    assert {part(path) for path in module_files()} - {"__init__"} == {name for names in LAYERS for name in names}


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path):
    custom = part(path)
    for name in imported(path):
        if not name.startswith("mtl_jax.") or custom == "__init__":
            continue
        another = name.split(".")[1]
        if any(another in names for names in LAYERS) and another != custom:
            assert layer(another) <= layer(custom), f"{custom} imports {another}"


@pytest.mark.parametrize("own", ["balance", "workdir.checkpoint"])
def test_balance_and_checkpoints_import_nothing_else_of_ours(own: str):
    modules = [path for path in module_files() if ".".join(path.relative_to(PACKAGE).parts).startswith(own)]
    assert len(modules) > 1
    for path in modules:
        ours = {name for name in imported(path) if name.startswith("mtl_jax.")} - {"mtl_jax.workdir"}
        assert all(name.startswith(f"mtl_jax.{own}") for name in ours)


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_are_imported_in_their_place_only(package: str):
    for path in module_files():
        if any(name.split(".")[0] == package for name in imported(path)):
            place = path.relative_to(PACKAGE)
            assert {place.parts[0], str(place)} & set(ONLY_IN[package]), path


def test_importing_the_library_loads_no_heavy_package_that_is_not_used():
    code = (
        "import sys; import mtl_jax, mtl_jax.training.train_loop; "
        "print(*[name for name in ('torch', 'tensorflow', 'tensorflow_datasets', 'pycocotools', 'matplotlib') "
        "if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
