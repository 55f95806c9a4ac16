"""Every page of configs/ and each of its variants is whole, and refuses other words."""

from pathlib import Path

import pytest

from mtl_jax import config as config_lib
from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task

CONFIGS = Path(__file__).parent.parent / "configs"
PAGES = sorted(path.name for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", PAGES)
def test_each_variant_is_valid(name):
    page = config_lib.load_page(CONFIGS / name)
    for config in (page.get_config(), *map(page.get_config, getattr(page, "VARIANTS", ()))):
        config_lib.resolve(config)
        assert set(config.order) == set(config.stages)


@pytest.mark.parametrize("name", PAGES)
def test_another_word_is_refused(name):
    page = config_lib.load_page(CONFIGS / name)
    if not hasattr(page, "VARIANTS"):
        pytest.skip("a page of one variant")
    with pytest.raises(UserError, match=rf"configs/{page.__name__}\.py:no such.*expected"):
        page.get_config("no such")


@pytest.mark.parametrize("scheme", config_lib.load_page(CONFIGS / "sharing.py").VARIANTS)
def test_each_way_of_the_page_on_sharing_is_a_network(scheme):
    config = config_lib.load_page(CONFIGS / "sharing.py").get_config(scheme)
    config.model.backbone = "plain_cnn"  # some ways have one for each task, and each is followed layer by layer
    multi_task.build(config.model, tasks.build(config.tasks.to_dict()))


SEQ = config_lib.load_page(CONFIGS / "seq.py")


@pytest.mark.parametrize(
    "variant", [*SEQ.NETWORKS, *(f"small-no_{section}" for section in SEQ.WITHOUT), "branched-small"]
)
def test_each_network_of_the_flagship_and_each_part_left_out_is_valid_and_differs(variant):
    config = SEQ.get_config(variant)
    config_lib.resolve(config)
    assert set(config.order) == set(config.stages)
    if "-" in variant:  # of a network that is built whole
        config.model.backbone = "plain_cnn"
    multi_task.build(config.model, tasks.build(config.tasks.to_dict()))
    if variant != "shared":
        assert (
            config.to_json_best_effort()
            != SEQ.get_config("small" if "small" in variant else "shared").to_json_best_effort()
        )


@pytest.mark.parametrize("variant", ["no_such", "small-small", "plain-branched", "branched-no_patches", "small-"])
def test_words_that_do_not_go_together_are_refused(variant):
    with pytest.raises(UserError, match=rf"configs/seq\.py:{variant}: expected one of shared"):
        SEQ.get_config(variant)
