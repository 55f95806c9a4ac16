"""The whole job on a tiny network: files, resuming, refusals, exit statuses, and evaluation of what was saved."""

import errno
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import MODEL, spare_report

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.continual import memory, reading, replay_buffer
from mtl_jax.continual.method import Finished
from mtl_jax.continual.network_view import NetworkView
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate_checkpoint
from mtl_jax.runtime import compilation
from mtl_jax.training import stage_checkpoints, step_log, train_loop
from mtl_jax.training.stage_view import StageView
from mtl_jax.workdir import checkpoints, metrics_log
from mtl_jax.workdir.checkpoints import CheckpointError

ROOT = Path(__file__).parent.parent
DIGITS = tuple("0123456789")
# The first step goes so far that the second finds nothing finite.
BURSTING = {
    "optimizer": "sgd",
    "learning_rate": 1e9,
    "loss_weights": {"seg": 1e9},
    "warmup_fraction": 0.0,
    "clip_norm": 0.0,
}


def tiny_config() -> ConfigDict:
    config = config_lib.base()
    config.name = "tiny"
    config.image_size = 64
    config.example_images = 1
    config.forward_transfer = True
    config.log_every_steps = 1
    config.contract.latency_image_size = 64
    with config.ignore_type():
        config.model.update(MODEL)
    config.tasks.seg = {"kind": "segmentation", "classes": ("background", *DIGITS)}
    config.tasks.cls = {"kind": "classification", "classes": DIGITS}
    for name, task, label in (("masks", "seg", "segmentation"), ("single", "cls", "classification")):
        options = {"labels": label, "size": 64, "length": 16}
        config.streams[name] = config_lib.stream("digits", {task: label}, options=options, batch_size=4)
    config.stages.seg = config_lib.stage(
        ("masks",), epochs=2.0, keep={"replay": {"images": 3}, "ewc": {"examples": 8}}, ema_decay=0.9
    )
    config.stages.cls = config_lib.stage(
        ("single",),
        epochs=1.0,
        keep={"lwf": {"weight": 1.0}, "replay": {"batch_size": 2}, "ewc": {"strength": 1.0}},
        train_batch_norm="new_levels",
        eval_every_epochs=0.5,
    )
    config.order = ("seg", "cls")
    return config


@pytest.fixture(scope="module")
def finished(tiny_backbone, tmp_path_factory) -> Path:
    """A work directory after a whole run."""
    workdir = tmp_path_factory.mktemp("run") / "tiny"
    train_loop.train_and_evaluate(tiny_config(), workdir, command="a test")
    return workdir


def values(workdir: Path, name: str, split: str = "train") -> list[float]:
    return [e["value"] for e in metrics_log.read(workdir / "metrics.jsonl") if (e["name"], e["split"]) == (name, split)]


def test_a_run_leaves_every_promised_file(finished):
    expected = (
        "config.json",
        "metrics.jsonl",
        "contract.json",
        "report.html",
        "checkpoints/0-seg",
        "checkpoints/1-cls",
    )
    assert all((finished / name).exists() for name in expected)
    assert list((finished / "tensorboard").iterdir())
    assert not list((finished / "partial").glob("*"))
    record = json.loads((finished / "config.json").read_text())
    assert record["command"] == "a test"
    assert record["seed"] == 0
    assert record["versions"]["jax"]


def test_the_contract_compares_the_end_with_each_task_s_own_stage(finished):
    contract = json.loads((finished / "contract.json").read_text())
    assert [stage["name"] for stage in contract["stages"]] == ["seg", "cls"]
    first, last = contract["stages"][0]["metrics"], contract["stages"][1]["metrics"]
    assert set(first) == {"seg"}
    assert set(last) == {"seg", "cls"}
    assert contract["tasks"]["seg"]["baseline"] == first["seg"]["miou"]
    assert contract["tasks"]["seg"]["final"] == last["seg"]["miou"]
    assert contract["tasks"]["cls"]["drop_percent"] in (0.0, None)
    assert contract["budgets"]["latency_ms"]["image_size"] == contract["budgets"]["gigaflops"]["image_size"] == 64
    assert contract["budgets"]["train_seconds"]["value"] > 0
    owners = contract["budgets"]["params_by_owner"]["value"]
    assert sum(owners.values()) == contract["budgets"]["params"]["value"]
    share = {"value": 100 * owners["shared"] / sum(owners.values()), "limit": None, "passed": True}
    assert contract["budgets"]["shared_percent"] == share


def test_forward_transfer_compares_right_before_a_task_s_stage_with_the_untrained_network(finished):
    contract = json.loads((finished / "contract.json").read_text())
    untrained, before = (stage["before"] for stage in contract["stages"])
    assert set(untrained) == set(before) == {"seg", "cls"}
    assert before["seg"] == contract["stages"][0]["metrics"]["seg"]
    message = contract["forward_transfer"]["tasks"]
    assert message["seg"] is None
    assert message["cls"] == pytest.approx(before["cls"]["top1"] - untrained["cls"]["top1"])


@pytest.mark.usefixtures("no_report")
def test_a_branch_starts_from_an_earlier_task_s_and_frozen_shared_stages_forget_nothing(tiny_backbone, tmp_path):
    config = tiny_config()
    config.model.share_until = 8
    config.model.branches = {"seg": {"neck_channels": 24, "head_channels": 24}}
    config.stages.seg.ema_decay = 0.0
    config.stages.cls = config_lib.stage(
        ("single",), epochs=1.0, freeze=("backbone", "branch_cls/backbone"), warm_start="seg"
    )
    contract = train_loop.train_and_evaluate(config, tmp_path / "run")
    assert contract["tasks"]["seg"]["final"] == contract["tasks"]["seg"]["baseline"]
    before, after = (
        checkpoints.load(tmp_path / "run" / "checkpoints" / name, {"variables": None})["variables"]["params"]
        for name in ("0-seg", "1-cls")
    )
    jax.tree.map(np.testing.assert_array_equal, after["branch_cls"]["backbone"], before["branch_seg"]["backbone"])
    assert not np.array_equal(
        before["branch_cls"]["head"]["cls"]["kernel"], after["branch_cls"]["head"]["cls"]["kernel"]
    )
    heads = [after[branch]["head"]["conv_0"]["kernel"].shape for branch in ("branch_seg", "branch_cls")]
    assert heads == [(3, 3, 24, 24), (3, 3, 16, 16)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mode"), [("mas", "online"), ("si", "separate")])
@pytest.mark.usefixtures("no_report")
def test_every_importance_holds_the_first_stage(tiny_backbone, tmp_path, method, mode):
    config = tiny_config()
    config.stages.seg.keep = {method: {"mode": mode}}
    config.stages.cls = config_lib.stage(("single",), epochs=1.0, keep={method: {"strength": 1e-4}})
    train_loop.train_and_evaluate(config, tmp_path / "run")
    penalties = values(tmp_path / "run", f"{method}_penalty")
    assert penalties[0] == 0
    assert penalties[-1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_exemplars_that_the_network_chose_come_back_with_the_outputs_they_had(tiny_backbone, tmp_path):
    config = tiny_config()
    # There is room for two of the three images.
    config.stages.seg.keep.replay.update({"selection": "herding", "max_mb": 0.04})
    retained = {"replay": {"batch_size": 2}, "der": {"weight": 0.5}, "lwf": {"weight": 0.0, "feature_weight": 0.5}}
    config.stages.cls = config_lib.stage(("single",), epochs=1.0, keep=retained)
    train_loop.train_and_evaluate(config, tmp_path / "run")
    retained = checkpoints.load(tmp_path / "run" / "checkpoints" / "0-seg", {"memory": None})["memory"]["replay"][
        "masks"
    ]
    buffer = replay_buffer.from_tree(retained)
    assert len(buffer) == 2
    assert buffer[0]["labels"]["seg/outputs"]["outputs"].shape == (8, 8, 11)
    distances = values(tmp_path / "run", "masks_replay/output_distance")
    # The whole image comes back, and dropout and batch statistics are all that differ in the first step.
    assert len(distances) == 4
    assert 0 < distances[0] < 1
    assert values(tmp_path / "run", "single/feature_distance")[-1] > 0


def test_the_hardest_exemplars_are_those_of_the_largest_loss(tiny_backbone, tmp_path):
    config = tiny_config()
    config.stages.seg.keep.replay.selection = "hard"
    settings = reading.complete(config_lib.resolve(config))
    setup = experiment.build(settings, data_root=tmp_path)
    variables = experiment.init_variables(setup, key=jax.random.key(0), pretrained_path="")
    stage = StageView(settings, setup, 0)
    retained = stage.keep["replay"].after(stage, Finished(variables, variables, None), memory.nothing())["replay"][
        "masks"
    ]
    losses = NetworkView(stage, "masks", variables).losses
    assert sorted(losses(retained)) == pytest.approx(sorted(losses(stage.source("masks")))[-3:], rel=1e-5)


@pytest.mark.usefixtures("no_report")
def test_parts_may_be_frozen_for_some_epochs_only(tiny_backbone, tmp_path, monkeypatch):
    config = tiny_config()
    config.order = ("seg",)
    settings = {"epochs": 2.0, "schedule": "constant", "warmup_fraction": 0.0}
    config.stages.seg = config_lib.stage(("masks",), freeze={"backbone": (0, 1)}, **settings)
    compiled, observed = compilation.ahead_of_time, []

    def part_of(state):
        return jax.device_get(
            (state.params["backbone"]["conv_8"]["kernel"], state.batch_stats["backbone"]["norm_8"]["mean"])
        )

    def watched(*arguments, **options):
        program = compiled(*arguments, **options)

        def step(state, *peers):
            before = part_of(state)
            state, metrics = program(state, *peers)
            observed.append((before, part_of(state)))
            return state, metrics

        return step

    monkeypatch.setattr(compilation, "ahead_of_time", watched)
    train_loop.train_and_evaluate(config, tmp_path / "run")
    moves = [[not np.array_equal(*pair) for pair in zip(before, after, strict=True)] for before, after in observed]
    assert moves == [[False, False]] * 4 + [[True, True]] * 4


def test_missing_weights_are_told_before_any_image_is_looked_at(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop.data_record, "look", lambda *_: pytest.fail("the data was looked at first"))
    config = tiny_config()
    config.pretrained, config.model.backbone = "gone.npz", "mobilenet_v3_small"
    with pytest.raises(UserError, match=r"gone\.npz not found .*--config\.pretrained=mobilenet_v3_small"):
        train_loop.train_and_evaluate(config, tmp_path)
    (tmp_path / "wrong.npz").write_bytes(b"no archive")
    config.pretrained = str(tmp_path / "wrong.npz")
    with pytest.raises(UserError, match=r"wrong\.npz: expected a whole \.npz"):
        train_loop.train_and_evaluate(config, tmp_path)


def test_every_mitigation_enters_the_second_stage_s_loss(finished):
    assert len(values(finished, "single/distillation")) == 4
    assert len(values(finished, "masks_replay/loss")) == 4
    assert values(finished, "ewc_penalty")[-1] > 0
    assert len(values(finished, "loss")) == 8 + 4


@pytest.mark.usefixtures("no_report")
def test_a_second_start_of_a_finished_run_trains_nothing_and_gives_the_same_contract(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    before = json.loads((copy / "contract.json").read_text())
    again = train_loop.train_and_evaluate(tiny_config(), copy, command="another")
    assert again["tasks"] == before["tasks"]
    assert again["budgets"]["train_seconds"] == before["budgets"]["train_seconds"]
    assert again["budgets"]["peak_memory_mb"] == before["budgets"]["peak_memory_mb"]
    assert json.loads((copy / "config.json").read_text())["command"] == "a test"
    assert len(values(copy, "loss")) == len(values(finished, "loss"))


@pytest.mark.usefixtures("no_report")
def test_a_run_cut_between_two_stages_ends_like_an_uninterrupted_one(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "checkpoints" / "1-cls" / checkpoints.DIGESTS).unlink()  # as good as none
    train_loop.train_and_evaluate(tiny_config(), copy)
    checkpoints.verify(copy / "checkpoints" / "1-cls")
    assert values(copy, "loss") == values(finished, "loss")
    assert values(copy, "miou", "val") == values(finished, "miou", "val")


@pytest.mark.usefixtures("no_report")
def test_a_run_cut_within_a_stage_goes_on_at_its_last_sound_checkpoint_and_ends_alike(
    finished, tmp_path, monkeypatch, caplog
):
    config = tiny_config()
    config.order, config.checkpoint_every_seconds = ("seg",), 0.0
    finish_step, observed = step_log.log_step, []

    def killed_at_step_six(run, stage, progress, completed, images, metrics, **peers):
        if completed == 6:
            raise KeyboardInterrupt
        observed.append(completed)
        finish_step(run, stage, progress, completed, images, metrics, **peers)

    workdir = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(step_log, "log_step", killed_at_step_six)
        with pytest.raises(KeyboardInterrupt):
            train_loop.train_and_evaluate(config, workdir)
    assert observed == [1, 2, 3, 4, 5]
    newest, older = checkpoints.steps(workdir / "partial" / "0-seg")
    assert (newest.name, older.name) == ("5", "4")
    (newest / checkpoints.DIGESTS).write_text("{")
    train_loop.train_and_evaluate(config, workdir)
    assert f"{newest}: digests.json is damaged" in caplog.text
    assert values(workdir, "loss") == values(finished, "loss")[:8]
    assert values(workdir, "miou", "val") == values(finished, "miou", "val")[:1]


@pytest.mark.usefixtures("no_report")
def test_what_a_process_killed_at_the_end_of_a_stage_leaves_of_its_way_is_removed(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for remnant in ("0-seg/8", "1-cls/4", "1-cls/4.new"):
        (copy / "partial" / remnant).mkdir(parents=True)
    train_loop.train_and_evaluate(tiny_config(), copy)
    assert not list((copy / "partial").glob("*"))
    in_training = tmp_path / "partial" / "1-cls"
    in_training.mkdir(parents=True)
    stage_checkpoints.remove_finished_partials(tmp_path, steps_done=1)
    assert in_training.exists()


@pytest.mark.usefixtures("no_report")
def test_a_corrected_later_stage_goes_on_from_the_finished_one(finished, tmp_path, caplog):
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "1-cls")
    config = tiny_config()
    config.stages.cls = config_lib.stage(("single",), epochs=0.5, schedule="linear")
    contract = train_loop.train_and_evaluate(config, copy)
    assert "schedule was 'cosine', is 'linear'" in caplog.text
    assert [stage["name"] for stage in contract["stages"]] == ["seg", "cls"]
    assert values(copy, "loss")[:8] == values(finished, "loss")[:8]
    assert len(values(copy, "loss")) == 8 + 2


def test_a_work_directory_of_another_config_is_refused_and_the_difference_named(finished):
    config = tiny_config()
    config.stages.cls.keep.lwf.weight = 2.0
    with pytest.raises(UserError, match=r"stages.cls.keep.lwf.weight was 1.0, is 2.0"):
        train_loop.train_and_evaluate(config, finished)
    config = tiny_config()
    config.resume = False
    with pytest.raises(UserError, match="holds a run already"):
        train_loop.train_and_evaluate(config, finished)


def test_a_checkpoint_of_another_config_is_refused_and_the_difference_named(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "config.json").unlink()
    config = tiny_config()
    config.stages.seg.learning_rate = 0.5
    message = r"1-cls holds a run of another configuration \(stages.seg.learning_rate was 0.001, is 0.5\)"
    with pytest.raises(UserError, match=message):
        train_loop.train_and_evaluate(config, copy)


def test_evaluating_the_checkpoint_gives_the_contract_s_figures(finished):
    contract = json.loads((finished / "contract.json").read_text())
    figures = evaluate_checkpoint.run(finished)
    assert figures["tasks"]["seg"]["miou"] == pytest.approx(contract["tasks"]["seg"]["final"], abs=1e-6)
    assert figures["params"] == contract["budgets"]["params"]["value"]
    assert figures["latency_ms"] > 0
    assert [figure["as_trained"] for figure in figures["measured_on"].values()] == [True, True]
    first = evaluate_checkpoint.run(finished / "checkpoints" / "0-seg")
    assert list(first["tasks"]) == ["seg"]
    assert first["tasks"]["seg"]["miou"] == pytest.approx(contract["tasks"]["seg"]["baseline"], abs=1e-6)


def test_figures_of_other_images_than_training_validated_with_are_told(finished, monkeypatch, capsys):
    another = {"val": {"images": 2, "looked_at": 2, "digest": "of others", "tasks": {}}}
    retained = evaluate_checkpoint.trained.load(finished)
    stream = next(iter(retained.data))
    changed = retained._replace(data={stream: another})
    monkeypatch.setattr(evaluate_checkpoint.trained, "load", lambda *arguments, **settings: changed)
    figures = evaluate_checkpoint.run(finished)
    measured = figures["measured_on"].values()
    assert [entry["as_trained"] for entry in measured] == [
        None if entry["stream"] != stream else False for entry in measured
    ]
    evaluate_checkpoint.show(figures)
    assert "not the images that training validated with" in capsys.readouterr().out


def test_evaluation_refuses_unknown_tasks_and_places(finished, tmp_path):
    with pytest.raises(
        UserError, match="--tasks: expected some of seg, cls, which this checkpoint has learnt, or all, found det"
    ):
        evaluate_checkpoint.run(finished, tasks="det")
    with pytest.raises(CheckpointError, match="neither a work directory"):
        evaluate_checkpoint.run(tmp_path)


@pytest.mark.usefixtures("no_report")
def test_a_separate_run_can_give_the_baseline(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    config = tiny_config()
    config.contract.baseline_from = {"seg": "", "cls": str(finished)}
    contract = train_loop.train_and_evaluate(config, copy)
    assert contract["tasks"]["cls"]["baseline_from"] == f"run {finished}"
    config.contract.baseline_from = {"cls": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="expected a finished run with that task"):
        train_loop.train_and_evaluate(config, copy)


@pytest.mark.usefixtures("no_report")
def test_a_loss_that_is_not_finite_stops_the_run_and_is_explained(tiny_backbone, tmp_path):
    config = tiny_config()
    config.order = ("seg",)
    config.stages.seg = config_lib.stage(("masks",), epochs=1.0, **BURSTING)
    message = r"of stage seg is (nan|inf) at step 2 \(.*samples of stream masks: train-000.*learning_rate"
    with pytest.raises(UserError, match=message):
        train_loop.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.usefixtures("no_report")
def test_steps_that_are_not_finite_are_left_out_where_the_config_says_so(tiny_backbone, tmp_path, capsys):
    config = tiny_config()
    config.order, config.on_nan = ("seg",), "skip"
    config.stages.seg = config_lib.stage(("masks",), epochs=1.0, **BURSTING)
    train_loop.train_and_evaluate(config, tmp_path / "run")
    assert values(tmp_path / "run", "skipped_steps") == [0, 1, 2, 3]
    assert "samples of stream masks: train-000" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(finished, tmp_path, monkeypatch):
    copy, write = shutil.copytree(finished, tmp_path / "copy"), train_loop.run_report.write
    (copy / "report.html").unlink()
    spare_report(monkeypatch)

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy / "report.html"))

    monkeypatch.setattr(train_loop.run_report, "write", full)
    with pytest.raises(UserError, match=r"report.html: No space left on device; the checkpoints in .* are intact"):
        train_loop.train_and_evaluate(tiny_config(), copy)
    monkeypatch.setattr(train_loop.run_report, "write", write)
    train_loop.train_and_evaluate(tiny_config(), copy)
    assert (copy / "report.html").exists()


@pytest.mark.usefixtures("no_report")
def test_a_work_directory_that_is_taken_away_is_missed(tiny_backbone, tmp_path, monkeypatch):
    config = tiny_config()
    config.order, config.checkpoint_every_seconds = ("seg",), 0.0
    save_step = checkpoints.save_step

    def save_and_lose(folder, *arguments, **settings):
        save_step(folder, *arguments, **settings)
        shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(checkpoints, "save_step", save_and_lose)
    with pytest.raises(UserError, match="was removed or moved during training"):
        train_loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_dataset_is_told_before_anything_is_written(tiny_backbone, tmp_path):
    config = tiny_config()
    config.data_root = str(tmp_path / "nowhere")
    config.streams.masks.source = "voc_segmentation"
    config.streams.masks.options = ConfigDict({"folder": "mini-voc-seg"})
    with pytest.raises(UserError, match=r"nowhere.*--config.data_root"):
        train_loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_to_train_on_and_to_validate_with_is_told_before_anything_is_written(tiny_backbone, tmp_path):
    config = tiny_config()
    config.streams.masks.train_split = "val"
    with pytest.raises(UserError, match="expected validation images that no stream trains on, found"):
        train_loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_that_are_not_the_dataset_s_are_refused(tiny_backbone, tmp_path):
    config = tiny_config()
    config.tasks.cls.classes = tuple("abcdefghij")
    with pytest.raises(UserError, match=r"set config\.tasks\.cls\.classes to the stream's"):
        train_loop.train_and_evaluate(config, tmp_path / "run")


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_eval_prints_and_writes_the_figures(finished, tmp_path, capsys):
    out = tmp_path / "figures.json"
    status = script("eval.py").main(["--weights", str(finished), "--dataroot", "data", "--json", str(out)])
    printed = capsys.readouterr().out
    assert status == 0
    assert all(word in printed for word in ("mIoU", "Top-1", "parameters", "latency"))
    record = json.loads(out.read_text())
    assert set(record["tasks"]) == {"seg", "cls"}
    assert record["measured_on"]["seg"]["images"] == 16
    assert record["measured_on"]["seg"]["split"] == "val"
    assert f"seg: 16 images of stream {record['measured_on']['seg']['stream']}" in printed


@pytest.mark.parametrize(("place", "why"), [("missing/out.json", "there is no folder"), ("", "it is a folder")])
def test_a_file_that_cannot_be_written_is_told_before_the_evaluation(
    finished, tmp_path, capsys, monkeypatch, place, why
):
    monkeypatch.setattr(evaluate_checkpoint, "run", lambda *arguments, **settings: pytest.fail("evaluated"))
    assert script("eval.py").main(["--weights", str(finished), "--json", str(tmp_path / place)]) == 2
    assert why in capsys.readouterr().err


def test_eval_tells_a_mistake_in_one_line_with_status_two(tmp_path, capsys):
    assert script("eval.py").main(["--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
