"""Recipes: which stages train which parts, and what keeps the older tasks."""

import pytest

from mtl_jax.config import base, recipes

LOCKED = (*recipes.IMAGENET, "neck/kernels", "head/kernels")


def test_the_first_stage_is_free_the_next_is_held_and_the_last_is_locked():
    stages = recipes.one_after_another(("a", "b", "c"))
    assert stages == {
        "a": {"freeze": recipes.IMAGENET, "keep": {"replay": {"images": recipes.EXEMPLARS}}},
        "b": {"freeze": recipes.IMAGENET, "keep": recipes.RETENTION},
        "c": {"freeze": LOCKED},
    }


def test_of_two_stages_the_second_may_move_the_kernels():
    stages = recipes.one_after_another(("a", "b"))
    assert stages["b"]["freeze"] == recipes.IMAGENET
    assert stages["a"]["keep"] == {"replay": {"images": recipes.EXEMPLARS}}


def test_one_stage_leaves_nothing():
    assert recipes.one_after_another(("a",)) == {"a": {"freeze": recipes.IMAGENET}}


@pytest.mark.parametrize("count", [4, 5])
def test_every_stage_before_one_that_moves_kernels_leaves_exemplars(count):
    order = tuple("abcde"[:count])
    stages = recipes.one_after_another(order)
    retained = {name: stage.get("keep", {}) for name, stage in stages.items()}
    assert [name for name, keep in retained.items() if "images" in keep.get("replay", {})] == list(order[:-2])
    assert [name for name, keep in retained.items() if "lwf" in keep] == list(order[1:-1])
    assert stages[order[-1]]["freeze"] == LOCKED


def test_patches_can_be_taken_away_again():
    config = base()
    recipes.share_kernels(config)
    assert config.model.patches.to_dict() == {"backbone": 0, "neck": 16, "head": 16}
    recipes.without_patches(config)
    assert not any(config.model.patches.values())
    assert not any(config.model.depthwise_patches.values())
    assert config.model.norms_from == 8
