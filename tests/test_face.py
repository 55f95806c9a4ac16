import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mtl_jax
from mtl_jax.config import base
from mtl_jax.errors import UserError
from mtl_jax.training import run


def test_importing_the_package_imports_neither_jax_nor_numpy() -> None:
    program = "import sys, mtl_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert set(mtl_jax.__all__) <= set(dir(mtl_jax))
    assert all(callable(getattr(mtl_jax, name)) for name in mtl_jax.__all__)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = mtl_jax.trian


def test_predict_is_a_module_and_a_function(tmp_path: Path) -> None:
    from mtl_jax import predict
    from mtl_jax.workdir.checkpoints import CheckpointError

    assert mtl_jax.predict is predict
    with pytest.raises(CheckpointError, match="nothing"):
        next(predict(tmp_path / "nothing", ["photo.jpg"]))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    calls: list[tuple[Any, str]] = []

    def note(config: Any, workdir: Any, command: str) -> dict[str, Any]:
        calls.append((config, str(workdir)))
        return {}

    monkeypatch.setattr(run, "train_and_evaluate", note)
    return calls


def test_train_changes_settings_of_a_page(asked: list[tuple[Any, str]]) -> None:
    page = Path(__file__).parents[1] / "configs" / "quickstart.py"
    mtl_jax.train(page, settings={"seed": 3, "stages.det.epochs": 0.5, "order": ("seg", "det")})
    config, workdir = asked[0]
    assert (config.seed, config.stages.det.epochs, config.order) == (3, 0.5, ("seg", "det"))
    assert workdir == "runs/quickstart"


def test_train_leaves_a_given_configuration_as_it_is(asked: list[tuple[Any, str]]) -> None:
    config = base()
    mtl_jax.train(config, "somewhere", {"seed": 3})
    assert (asked[0][0].seed, config.seed, asked[0][1]) == (3, 0, "somewhere")


def test_train_refuses_an_unknown_setting() -> None:
    with pytest.raises(UserError, match=r"no field config\.sead"):
        mtl_jax.train(base(), "somewhere", {"sead": 3})
