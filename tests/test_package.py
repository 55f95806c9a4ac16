"""What `import mtl_jax` offers takes paths as text, as its own example does."""

import pytest

import mtl_jax
from mtl_jax.workdir.checkpoints import CheckpointError


@pytest.mark.parametrize(
    "function", [mtl_jax.load, mtl_jax.evaluate, lambda weights: next(mtl_jax.predict(weights, []))]
)
def test_weights_are_named_by_text(function, tmp_path):
    with pytest.raises(CheckpointError, match="none"):
        function(str(tmp_path / "none"))
