"""A run that goes on says what of its data has changed, and compares figures of the same images."""

import shutil

import pytest
from test_data_record import CLASSES, folders
from test_survey import write
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax.evaluation import evaluate
from mtl_jax.runtime.preemption import Preempted, Preemption
from mtl_jax.training import train_loop


class AtOnce(Preemption):
    """Ends a run after its first step."""

    requested = True


@pytest.fixture
def folder_run(tmp_path, tiny_backbone, kept_programs, no_report):
    """Trains two stages on folders of classes; called again, goes on with what is on the disk."""
    config = config_lib.base()
    config.image_size = config.contract.latency_image_size = 32
    config.forward_transfer = True
    config.example_images = 0
    config.data_root = str(folders(folders(tmp_path, folder="first"), seed=1, folder="second"))
    with config.ignore_type():
        config.model.update(MODEL)
    for stream, task in (("first", "a"), ("second", "b")):
        config.tasks[task] = {"kind": "classification", "classes": CLASSES}
        labels, options = {task: "classification"}, {"folder": stream}
        config.streams[stream] = config_lib.stream("image_folder", labels, options=options, batch_size=3)
        config.stages[stream] = config_lib.stage((stream,), epochs=1.0)
    config.order = ("first", "second")
    return lambda preemption=None: train_loop.train_and_evaluate(config, tmp_path / "run", preemption=preemption)


def test_after_a_change_all_figures_are_of_the_images_that_are_there_now(tmp_path, folder_run, capfd):
    before = folder_run()
    assert [stage["data"] for stage in before["stages"]] == [before["stages"][0]["data"]] * 2
    folders(tmp_path, train=3, val=4, folder="first")  # two more of each class to validate with
    assert folder_run()["stages"] == before["stages"]
    printed = capfd.readouterr().err
    assert "every stage is finished: nothing was trained" in printed
    assert "stream first: 4 then, 8 now)): all figures are those of the old images" in printed

    shutil.rmtree(tmp_path / "run/checkpoints/1-second")  # as if the run had been stopped before
    measured = []
    with pytest.MonkeyPatch.context() as patch:
        filled = evaluate.filled

        def note(predict, variables, batches, tasks, **options):
            measured.append((sum(len(batch.ids) for batch in batches), *tasks))
            return filled(predict, variables, batches, tasks, **options)

        patch.setattr(train_loop.evaluate, "filled", note)
        after = folder_run()
    assert "the finished stages are measured again" in capfd.readouterr().err
    # The first stage, and the network before it; then before and after the second.
    assert measured == [(8, "a"), *[(8, "a"), (4, "b")] * 3]
    assert [stage["data"]["first"]["val"]["images"] for stage in after["stages"]] == [8, 8]
    assert folder_run()["stages"] == after["stages"]


def test_other_training_images_are_told_of_a_stage_in_training_and_of_a_finished_one(tmp_path, folder_run, capfd):
    with pytest.raises(Preempted):
        folder_run(AtOnce())
    write(tmp_path / "first/train/red/0.png", seed=99)
    before = folder_run()
    assert (
        "data: stage first resumes from step 1 with other training images than before (stream first: 6, of which some "
        "differ)"
    ) in capfd.readouterr().err
    shutil.rmtree(tmp_path / "run/checkpoints/1-second")  # as if the run had been stopped before
    folders(tmp_path, train=4, folder="first")
    after = folder_run()
    printed = capfd.readouterr().err
    assert (
        "stage first was trained on other images than are there now (stream first: 6 then, 8 now); it stays" in printed
    )
    assert "measured again" not in printed
    assert after["stages"][0] == before["stages"][0]
    assert after["stages"][1]["data"]["first"]["train"]["images"] == 8
