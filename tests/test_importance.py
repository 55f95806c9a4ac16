"""What the importance of parameters is measured by: losses and outputs of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from mtl_jax import tasks
from mtl_jax.continual import ewc, importance
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task

CLASSES = ("a", "b", "c")
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": CLASSES},
        "cls": {"kind": "classification", "classes": CLASSES},
    }
)
SIZE = 32
CLS = {"cls": TASKS["cls"]}


@pytest.fixture(scope="module")
def network(tiny_backbone):
    model = multi_task.build(MODEL | {"dropout_rate": 0.0}, TASKS)
    variables = multi_task.init_variables(model, key=jax.random.key(0), image_size=SIZE)
    return model, variables, importance.forward_of_examples(model, variables["batch_stats"])


def batch(size=6):
    image = jax.random.uniform(jax.random.key(3), (size, SIZE, SIZE, 3))
    return {"image": image, "labels": {"cls": {"label": jnp.arange(size, dtype=jnp.int32) % 3}}}


def first(examples):
    return jax.tree.map(lambda leaf: leaf[0], examples)


def test_the_labelled_loss_is_that_of_a_batch_of_one(network):
    model, variables, output = network
    example = first(batch())
    raw = multi_task.eval_raw(model, variables, example["image"][None], tasks=("cls",))[0]
    expected = TASKS["cls"].loss(raw["cls"], {"label": example["labels"]["cls"]["label"][None]}, (SIZE, SIZE))[0]
    np.testing.assert_allclose(importance.labelled_loss(output, CLS)(variables["params"], example), expected, rtol=1e-5)


def test_outputs_are_all_that_the_head_emits_for_the_tasks(network):
    _, variables, output = network
    vector = importance.outputs(output, TASKS)(variables["params"], first(batch()))
    assert vector.shape == (3 * (SIZE // 8) ** 2 + 3,)


def test_the_sampled_fisher_of_a_class_comes_near_the_exact_one(network):
    _, variables, output = network
    # Many draws for each of few images: the mean over draws is what the exact estimator computes.
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 100, axis=0), batch(3))
    sampled = ewc.fisher_diagonal(
        importance.sampled_loss(output, CLS), variables["params"], [repeated], "sampled", key=jax.random.key(0)
    )
    exact = ewc.fisher_diagonal(
        importance.log_probabilities(output, TASKS["cls"]), variables["params"], [batch(3)], "exact"
    )
    total, expected = (sum(leaf.sum() for leaf in jax.tree.leaves(tree)) for tree in (sampled, exact))
    np.testing.assert_allclose(total, expected, rtol=0.15)


def test_a_task_whose_answers_cannot_be_listed_has_no_exact_fisher(network):
    with pytest.raises(UserError, match='seg \\(segmentation\\) is none; use "sampled"'):
        importance.log_probabilities(network[2], TASKS["seg"])
