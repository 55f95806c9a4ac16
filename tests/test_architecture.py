"""Imports run one way, and a few packages are imported in one place only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtl_jax"
LAYERS = (  # each may import those to its left, and its own
    ("errors", "allocator", "patterns", "preemption", "soft_sharing"),
    ("config_checks", "defaults", "kernels"),
    (
        "config",
        "recipes",
        "freezing",
        "tasks",
        "balance",
        "checkpoints",
        "contract",
        "contract_table",
        "learning",
        "optimizer",
    ),
    ("data", "models", "overrides"),
    ("continual", "ownership"),
    ("losses",),
    ("balancing", "task_gradients"),
    ("train_step", "evaluate", "metrics_log", "progress", "compilation", "devices"),
    ("continuation", "run_record"),
    ("examples", "experiment", "report", "report_balance", "report_figures", "report_page"),
    ("comparison", "data_changes", "data_record"),
    ("holding",),
    ("run", "stage_plan"),
    ("measure", "remember", "restart", "stage_checkpoints", "stages"),
    ("rehearsal",),
    ("train_loop", "trained"),
    ("predicted_files",),
    ("evaluate_checkpoint", "export", "predict"),
    ("benchmarks",),
)
ONLY_IN = {
    "flax": ("models",),
    "grain": ("data",),
    "cv2": ("data",),
    "PIL": ("data",),
    "orbax": ("checkpoints.py",),
    "ml_collections": ("config.py", "trained.py", "overrides.py"),
    "absl": (),
    "onnx": ("export",),
    "onnxruntime": ("export",),
}


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    own = part(path)
    for name in imported(path):
        if not name.startswith("mtl_jax.") or own == "__init__":
            continue
        other = name.split(".")[1]
        if any(other in names for names in LAYERS) and other != own:
            assert layer(other) <= layer(own), f"{own} imports {other}"


@pytest.mark.parametrize("folder", ["balance", "checkpoints.py"])
def test_balance_and_checkpoints_import_nothing_of_ours(folder: str):
    paths = [PACKAGE / folder] if folder.endswith(".py") else sorted((PACKAGE / folder).glob("*.py"))
    for path in paths:
        ours = {name for name in imported(path) if name.startswith("mtl_jax.")}
        assert all(name.startswith(f"mtl_jax.{folder}") for name in ours)


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_are_imported_in_their_place_only(package: str):
    for path in module_files():
        if any(name.split(".")[0] == package for name in imported(path)):
            assert path.relative_to(PACKAGE).parts[0] in ONLY_IN[package], path


def test_importing_the_library_loads_no_heavy_package_that_is_not_used():
    code = (
        "import sys; import mtl_jax, mtl_jax.train_loop; "
        "print(*[name for name in ('torch', 'tensorflow', 'tensorflow_datasets', 'pycocotools', 'matplotlib') "
        "if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
