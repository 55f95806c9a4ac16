"""Mirrored images give back what plain ones do."""

import jax
import numpy as np
import pytest
from tiny import KINDS, MODEL, random_variables

from mtl_jax import tasks
from mtl_jax.config.model_settings import ModelSettings
from mtl_jax.evaluation import evaluate, flip
from mtl_jax.models import multi_task


@pytest.mark.usefixtures("tiny_backbone")
def test_outputs_of_both_ways_follow_the_image():
    records = {name: task for name, task in tasks.build(KINDS).items() if name in ("seg", "det", "age")}
    model = multi_task.build(ModelSettings(**MODEL), records)
    variables = random_variables(model)
    image = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    outputs = jax.jit(lambda image: flip.outputs(model, variables, image, records))
    plain, mirrored = (jax.device_get(outputs(entry)) for entry in (image, image[:, :, ::-1]))
    assert mirrored["seg"][:, :, ::-1] == pytest.approx(plain["seg"], abs=1e-5)
    assert mirrored["age"] == pytest.approx(plain["age"], abs=1e-5)
    cells = plain["det"].shape[1] // 2
    turned = np.concatenate([mirrored["det"][:, cells:], mirrored["det"][:, :cells]], axis=1)
    assert 64 - turned[..., 0] == pytest.approx(plain["det"][..., 0], abs=1e-3)
    assert turned[..., 1:] == pytest.approx(plain["det"][..., 1:], abs=1e-3)
    result = evaluate.make_predict(model, records, flip=True)(variables, image, names=("seg", "det"))
    assert set(result) == {"seg", "det"}
