"""What the code imports is declared in pyproject.toml: among the dependencies, or in the extra of its place."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {  # of packages that are installed under another name than they are imported
    "PIL": "pillow",
    "array_record": "array-record",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
BEHIND = {"jax.export": "flatbuffers"}  # what a package imports in one of its parts, without declaring it
LAST_WORDS = {section.rpartition(".")[2] for section in BEHIND}
EXTRAS = {  # of what may import more than the dependencies
    "mtl_jax/export": ("export",),
    "mtl_jax/serve": ("serve",),
    "benchmarks/torch_losses.py": ("oracle",),
    "benchmarks/torch_peer.py": ("oracle",),
    "benchmarks/torch_onnx.py": ("oracle", "export"),
    "benchmarks/deployment.py": ("export",),
    "benchmarks/exported.py": ("export",),
    "benchmarks/runtimes.py": ("export", "openvino"),
    "tests": ("dev", "export", "notebook", "oracle", "serve"),
}
FILES = sorted(
    path
    for place in ("mtl_jax", "benchmarks", "scripts", "configs", "tests", "eval.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)
OURS = {
    "mtl_jax",
    "benchmarks",
    *(path.stem for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py")),
}


def declared(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {name.group().lower() for name in names if name}


def imported(source: str) -> Iterator[str]:
    """Names the distributions that a file needs; only what is not installed with Python."""
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        elif isinstance(node, ast.Attribute) and node.attr in LAST_WORDS:  # the others need not be written out
            yield from (BEHIND[section] for section in [ast.unparse(node)] if section in BEHIND)
        for package in (module.partition(".")[0] for module in modules):
            if package not in sys.stdlib_module_names and package not in OURS:
                yield DISTRIBUTIONS.get(package, package).lower()


@functools.cache
def imported_by(path: Path) -> frozenset[str]:
    return frozenset(imported(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path: Path):
    place = path.relative_to(ROOT)
    extras = [extra for prefix, names in EXTRAS.items() if place.is_relative_to(prefix) for extra in names]
    reference = declared(PROJECT["dependencies"])
    for extra in extras:
        reference |= declared(PROJECT["optional-dependencies"][extra])
    assert imported_by(path) <= reference


def test_a_package_behind_another_is_found():
    assert set(imported("import jax\njax.export.export(print)\nimport cv2, os")) == {
        "jax",
        "flatbuffers",
        "opencv-python-headless",
    }


def test_every_dependency_is_imported():
    not_imported = declared(PROJECT["dependencies"]).difference(*map(imported_by, FILES))
    assert not_imported == {"tensorflow-datasets"}  # by name, in data/tfds.py


def test_a_gpu_takes_the_same_jax():
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + extras["cuda"] + extras["cuda12"]
    jax = [re.sub(r"\[.*\]", "", requirement) for requirement in requirements if re.match(r"jax\W", requirement)]
    assert jax == jax[:1] * 3


def test_the_ci_runs_the_commands_of_the_readme_as_they_stand():
    script = (ROOT / ".ci/run").read_text()
    for command in re.findall(r"^(make \w+)  ", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^ *{command}$", script, re.MULTILINE), command
    assert "fresh_clone readme_commands\n" in script
