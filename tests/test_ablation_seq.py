"""The ablation's page, and that on embedded data forgetting is real and the default keeps the contract."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from mtl_jax import config as config_lib
from mtl_jax.errors import UserError
from mtl_jax.training import train_loop
from mtl_jax.workdir import continuation

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("ablation_seq", ROOT / "configs" / "ablation_seq.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_none_switches_every_method_off(page):
    config = page.get_config("none")
    config_lib.resolve(config)
    for name in config.order:
        stage = config.stages[name]
        assert stage.keep.to_dict() == {}
        assert stage.train_batch_norm == "everywhere"


@pytest.mark.parametrize("data", ["", "minis/"])
def test_a_variant_switches_on_what_it_names_and_nothing_else(page, data):
    for variant in page.VARIANTS:
        config = page.get_config(data + variant)
        config_lib.resolve(config)
        last = config.stages[config.order[-1]]
        assert set(last.keep) == set(variant.split("+")) - {"none"}
        remaining = config.stages[config.order[0]].keep.to_dict()
        assert remaining == ({"replay": {"images": 10}} if "replay" in variant else {})


def test_projected_updates_and_balanced_distillation_join_the_others(page):
    config = page.get_config("gpm+balanced+replay")
    config_lib.resolve(config)
    seg, det, cls = (config.stages[name].keep.to_dict() for name in config.order)
    assert (seg["gpm"], det["gpm"]) == ({"energy": 0.95}, {"energy": 0.95})
    assert set(seg) == {"gpm", "replay"}
    assert cls == {"lwf": {"weight": 4.0, "balance": "classes"}, "replay": {"batch_size": 4}}
    assert "balance" not in page.get_config("lwf").stages.cls.keep.lwf


def test_an_unknown_method_is_refused(page):
    for variant in ("magic", "lwf+magic", "other/none"):
        with pytest.raises(UserError, match="expected none or some of ewc, lwf, replay"):
            page.get_config(variant)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report", "optimised")
def test_without_mitigation_the_first_task_falls_and_with_the_default_it_keeps_its_contract(
    page, tmp_path, monkeypatch
):
    def trained(methods: tuple[str, ...], workdir: Path) -> dict:
        config = page.get_config("none")
        # Classes of small scenes are learnt in seconds, masks are not; so classes come first here.
        config.order = ("cls", "seg")
        page.switch(config, methods)
        config.image_size = config.contract.latency_image_size = 64
        config.example_images = 0
        config.model.update({"neck_channels": 32, "head_channels": 32, "head_layers": 2})
        for stream in config.streams.values():
            stream.options.update({"size": 64})
        config.stages.cls.epochs = 6.0
        config.stages.cls.keep = {"replay": {"images": 10}}  # both runs have the same first stage
        config.stages.seg.update({"epochs": 2.0})
        return train_loop.train_and_evaluate(config, workdir)["tasks"]["cls"]

    retained = trained(page.METHODS, tmp_path / "all")
    # Of what is shared, all is the same.
    monkeypatch.setattr(continuation, "refuse_another", lambda *configs, **stages: None)
    shutil.copytree(tmp_path / "all" / "checkpoints" / "0-cls", tmp_path / "none" / "checkpoints" / "0-cls")
    free = trained((), tmp_path / "none")
    assert free["baseline"] == retained["baseline"] > 0.4
    assert free["drop_percent"] > 30
    assert retained["drop_percent"] <= 5
