"""Tasks of a finished run get classes: what was there stays bit for bit, what is new has rows of its own."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from test_extend import untrained
from test_train import tiny_config
from tiny import random_variables

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.continual import lwf, replay_buffer
from mtl_jax.continual.method import StageTasks
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate, evaluate_checkpoint
from mtl_jax.export import metrics
from mtl_jax.extend import additions, exemplars, extend, growth, run
from mtl_jax.models import dependence, multi_task
from mtl_jax.models.ownership import owner_of
from mtl_jax.report import versions_section
from mtl_jax.training import exactness, losses, measurement, train_loop, trained_layers
from mtl_jax.workdir import checkpoints, metrics_log, trained

FIRST = ("0", "1", "2", "3")
LABELS = {"det": "detection", "seg": "segmentation", "cls": "classification"}
NETWORK = {"norms_from": 16, "patches": {"neck": 4, "head": 4}}


def page(classes, *, stage: str, tasks=tuple(LABELS), first: bool = False, **settings) -> Any:
    """The tasks with some digits, all in one stage."""
    config = tiny_config()
    config.forward_transfer = False
    for table in (config.tasks, config.streams, config.stages):
        for name in list(table):
            del table[name]
    if first:
        config.model.update(NETWORK)
    for task in tasks:
        label = LABELS[task]
        names = ("background", *classes) if task == "seg" else tuple(classes)
        config.tasks[task] = {"kind": label, "classes": names}
        options = {"labels": label, "size": 64, "length": 8, "digits": tuple(classes)}
        config.streams[f"{stage}_{task}"] = config_lib.stream("digits", {task: label}, options=options, batch_size=4)
    # What would move old weights if they were not held: a large rate, decay, averaging, statistics of the batch.
    moving = {"learning_rate": 0.05, "weight_decay": 0.1, "ema_decay": 0.5}
    config.stages[stage] = config_lib.stage(
        tuple(f"{stage}_{task}" for task in tasks), epochs=1.0, **{**moving, **settings}
    )
    config.order = (stage,)
    return config


def raw_outputs(network: trained.Trained) -> dict[str, np.ndarray]:
    """Raw outputs on the images of the first version."""
    raw = jax.jit(
        lambda variables, image: multi_task.eval_raw(network.setup.model, variables, image, tasks=tuple(LABELS))[0]
    )
    result: dict[str, list] = {task: [] for task in LABELS}
    for task in LABELS:
        for batch in experiment.eval_batches(network.setup, f"first_{task}"):
            result[task].append(jax.device_get(raw(network.variables, batch.image))[task])
    return {task: np.concatenate(entry) for task, entry in result.items()}


SESSIONS = (("more", ("4", "5")), ("third", ("6",)), ("last", ("7", "8")))


@pytest.fixture(scope="module")
def parent(tiny_backbone, tmp_path_factory):
    """An untrained run that counts as finished."""
    return untrained(tmp_path_factory.mktemp("parent"), page(FIRST, stage="first", first=True))


def joined(old, config, limit=None):
    return additions.join(old, config_lib.read_settings(config), limit=limit)


def test_new_classes_come_after_the_old_ones_however_a_page_names_them(parent):
    alone, full = page(("4", "5"), stage="more"), page(("4", "5"), stage="more")
    for task in LABELS:
        full.tasks[task].classes = (*page(FIRST, stage="first").tasks[task].classes, "4", "5")
    for config in (alone, full):
        tasks = joined(parent, config).tasks
        assert tasks["cls"]["classes"] == (*FIRST, "4", "5")
        assert tasks["seg"]["classes"] == ("background", *FIRST, "4", "5")
        assert all(task["added"] == (("more", 2),) for task in tasks.values())


def test_a_stage_moves_nothing_that_the_old_classes_read(parent):
    config, stages = joined(parent, page(("4", "5"), stage="more")), ("first", "more")
    for stage, classes in SESSIONS[1:]:
        config = followed(config, stage, classes)
        stages = (*stages, stage)
    setup = experiment.build(config, data_root=parent.setup.data_root)
    growth.require_compatible(parent, setup, exact=True)
    reference = dependence.reads_of(parent.setup.model)
    for index in range(1, len(stages)):
        held = exactness.frozen_patterns(config, setup, index)
        free = [path for path in dependence.paths_of(setup.model) if not exactness._is_held(path, held)]
        assert not set(free) & {path for task in LABELS for path in reference[task]}
        later = tuple(f"/added_{stage}/" for stage in stages[index:])
        assert all(any(rows in path for rows in later) for path in free)
        assert any(later[0] in path for path in free)


def followed(config, stage, classes):
    """The settings with another session, as if a page had asked for it."""
    tasks = {
        name: {**task, "classes": (*task["classes"], *classes), "added": (*task["added"], (stage, len(classes)))}
        for name, task in config.tasks.items()
    }
    more = config_lib.read_settings(page(classes, stage=stage))
    streams, last = {**config.streams, **more.streams}, dataclasses.replace(more.stages[stage], old_outputs="exact")
    stages = {**config.stages, stage: last}
    return dataclasses.replace(config, tasks=tasks, streams=streams, stages=stages, order=(*config.order, stage))


def test_a_later_stage_that_would_move_the_rows_of_added_classes_is_refused(parent):
    config = joined(parent, page(("4", "5"), stage="more"))
    third = followed(config, "third", ("6",))
    config = dataclasses.replace(third, order=(*third.order, "free"), stages={**third.stages, "free": _moving(third)})
    setup = experiment.build(config, data_root=parent.setup.data_root)
    frozen = exactness.patterns_of(setup.model, tuple(LABELS), before=("more", "third"))
    objective = losses.Objective(
        streams={"more_cls": ("cls",)},
        groups=(("more_cls",),),
        stream_weights={},
        loss_weights={},
        frozen=frozen,
        train_batch_norm=False,
    )
    with pytest.raises(UserError, match=r"would change params/head/cls/added_more/.*, which task cls .*stage third"):
        exactness.refuse_moving(config, setup, 3, [objective])


def _moving(config):
    return dataclasses.replace(config.stages["more"], old_outputs="")


def test_a_parent_without_classes_that_came_later_is_read_back(parent, tmp_path):
    config = joined(parent, page(("4", "5"), stage="more"))
    shorter = trained.without_later_classes(config, ("first",))
    assert shorter.tasks["seg"]["classes"] == ("background", *FIRST)
    assert shorter.order == ("first",)
    assert trained.without_later_classes(config, ("first", "more")) == config
    third = followed(config, "third", ("6",))
    middle = trained.without_later_classes(third, ("first", "more")).tasks["det"]
    for name in ("classes", "added"):
        assert middle[name] == config.tasks["det"][name]


def refused(config, **changes):
    for name, value in changes.items():
        with config.unlocked(), config.ignore_type():
            config.tasks.cls[name] = value
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("3", "4")}, "class 3 is in task cls of .* already"),
        ({"classes": ("1", "0", "2", "3", "4")}, "expected the classes of .* in their order, .*, found"),
        ({"classes": ("4", "4")}, "would get a class twice"),
        ({"classes": ("4", "5"), "label_smoothing": 0.2}, r"other settings \(label_smoothing"),
        ({"classes": ("4", "5"), "kind": "multi_label"}, r"other settings \(kind"),
    ],
)
def test_classes_that_are_unclear_are_refused_in_one_line(parent, changes, words):
    with pytest.raises(UserError, match=words) as error:
        joined(parent, refused(page(("4", "5"), stage="more"), **changes))
    assert "\n" not in str(error.value)


def test_classes_without_a_stage_are_refused(parent):
    config = page(("4", "5"), stage="more", tasks=("cls", "det"))
    config.stages.more.streams = ("more_det",)
    with pytest.raises(
        UserError, match=r"more_cls (labels no new task|is in no new stage)|task cls is new and no new stage labels it"
    ):
        joined(parent, config)


def test_within_a_percentage_the_network_before_teaches_the_old_classes(parent):
    config = joined(parent, page(("4", "5"), stage="more"), limit=5.0)
    stage, setup = config.stages["more"], experiment.build(config, data_root=parent.setup.data_root)
    assert (stage.old_outputs, stage.keep["lwf"], config.contract.max_drop_percent) == (
        "may_change",
        {"weight": 2.0},
        5,
    )
    growth.require_compatible(parent, setup, exact=False)
    assert exactness.frozen_patterns(config, setup, 1) == ()
    tasks = StageTasks(tuple(LABELS), tuple(LABELS), extended={"det": setup.tasks["det"].before("more")})
    assert lwf.LwF(weight=1.0).reads(tasks) == ("det",)
    by_batch = trained_layers.trained_norms(setup, "more", stage, (), tasks)
    norms = [
        "/".join(path.split("/")[1:-1])
        for path in dependence.paths_of(setup.model)
        if path.startswith("batch_stats/") and owner_of(tuple(path.split("/")[1:]), tuple(LABELS)) == "det"
    ]
    assert {name for name in norms if by_batch(name)} == {name for name in norms if "added_more" in name} != set(norms)


def test_the_teacher_has_the_old_classes_alone(parent):
    config = joined(parent, page(("4", "5"), stage="more"), limit=5.0)
    tasks = experiment.build(config, data_root=parent.setup.data_root).tasks
    for name in LABELS:
        before, task = tasks[name].before("more"), tasks[name]
        assert before.classes == parent.tasks[name].classes
        assert before.all_channels == parent.tasks[name].all_channels < task.all_channels
        assert task.before("another") is task


def test_the_report_shows_later_classes_after_their_task(parent):
    config = joined(parent, page(("4", "5"), stage="more", tasks=("cls", "seg")))
    config = dataclasses.replace(config, example_images=2)
    setup = experiment.build(config, data_root=parent.setup.data_root)
    predict = evaluate.make_predict(setup.model, setup.tasks)
    run = SimpleNamespace(config=config, setup=setup, predict=predict)
    looked = measurement.look(run, random_variables(setup.model), ("seg", "cls"), {})
    assert list(looked) == ["seg", "seg/more", "cls", "cls/more"]
    assert all(len(shown.first) == 2 for shown in looked.values())
    shown_classes = {name: {row[0] for row in shown.by_class.rows} for name, shown in looked.items()}
    assert shown_classes["cls/more"] <= {"4", "5"}
    assert shown_classes["cls"] <= {*FIRST, "4", "5"}  # all compete
    assert shown_classes["seg/more"] <= {"background", "4", "5"}
    assert shown_classes["seg"] <= {"background", *FIRST}
    assert all(shown_classes.values())


def test_metrics_of_exported_files_are_of_later_classes_too(parent, tmp_path):
    config = joined(parent, page(("4", "5"), stage="more", tasks=("cls", "seg")))
    network = untrained(tmp_path, config)
    predict = evaluate.make_predict(network.setup.model, network.tasks)

    def run_file(variables, image, names):
        return predict(network.variables, image, names=names)

    figures = metrics.metrics_of_predictions(network, run_file, experiment.View(64, crop=False))
    assert list(figures) == ["det", "seg", "seg/more", "cls", "cls/more"]
    expected = evaluate_checkpoint.run(tmp_path)
    assert {name: figures[name] for name in expected["added"]} == {
        name: values["miou" if "seg" in name else "top1"] for name, values in expected["added"].items()
    }


def test_weights_of_classes_grow_with_them(tiny_backbone, tmp_path):
    config = page(FIRST, stage="first", first=True, tasks=("seg",))
    with config.unlocked():
        config.tasks.seg.class_weights = (0.3, 1.0, 1.0, 1.0, 1.0)
    old = untrained(tmp_path, config)
    result = joined(old, page(("4",), stage="more", tasks=("seg",))).tasks["seg"]
    assert result["class_weights"] == (0.3, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_exemplars_of_old_classes_are_chosen_from_the_old_run_s_data(parent):
    inputs = config_lib.read_settings(page(("4", "5"), stage="more"))
    config = additions.join(parent, inputs, limit=None, per_class=2)
    assert config.stages["first"].keep["replay"]["images"] == 2 * (len(FIRST) + 1)
    streams = ("first_det", "first_seg", "first_cls")
    expected = {**exemplars.REPLAYED[False], "negatives": True, "streams": streams}
    assert config.stages["more"].keep["replay"] == expected
    moving = additions.join(parent, inputs, limit=5.0, per_class=2)
    assert moving.stages["more"].keep["replay"] == {**exemplars.REPLAYED[True], "negatives": True}
    result = exemplars.choose(config.to_dict(), parent, tuple(LABELS), {}, may_change=False)
    assert exemplars._max_side(parent, "first_cls") == 2 * parent.config.image_size
    assert set(result) == {"first_seg", "first_cls", "first_det"}
    buffer = replay_buffer.from_tree(result["first_cls"])
    assert len(buffer) == 8  # all that there are
    assert buffer.class_names["classification"] == FIRST


@pytest.mark.parametrize(("stored", "expected"), [(0, 8), (20, 20)])
def test_a_stage_that_replayed_itself_gets_exemplars_too(parent, stored, expected):
    first = dataclasses.replace(parent.config.stages["first"], keep={"replay": {"images": stored, "batch_size": 2}})
    last = parent._replace(config=dataclasses.replace(parent.config, stages={"first": first}))
    inputs = config_lib.read_settings(page(("4", "5"), stage="more", tasks=("cls",)))
    config = additions.join(last, inputs, limit=None, per_class=2)
    assert config.stages["first"].keep["replay"] == {"images": expected, "batch_size": 2}
    assert config.stages["more"].keep["replay"] == {**exemplars.REPLAYED[False], "streams": ("first_cls",)}
    assert set(exemplars.choose(config.to_dict(), last, ("cls",), {}, may_change=False)) == {"first_cls"}


def test_chosen_exemplars_take_the_place_of_stored_ones(parent, monkeypatch, tmp_path):
    stored = {"first_cls": np.array([0]), "old": np.array([1])}
    monkeypatch.setattr(growth, "_grow_memory", lambda memory, *params: {**memory, "replay": stored})
    config = additions.join(parent, config_lib.read_settings(page(("4",), stage="more")), limit=None)
    setup = experiment.build(config, data_root=parent.setup.data_root)
    variables = growth.init_variables(parent, setup, config)
    growth.copy_stages(parent, tmp_path, variables, config, exemplars={"first_cls": np.array([2])})
    memory = checkpoints.load(tmp_path / "checkpoints" / "0-first", {"memory": None})["memory"]["replay"]
    assert {stream: number.item() for stream, number in memory.items()} == {"first_cls": 2, "old": 1}


def test_the_loss_knows_that_new_classes_are_shown_more_often(parent):
    more, boxes = (config_lib.read_settings(page(("4",), stage="more", tasks=names)) for names in (("cls",), ("det",)))
    for limit, count in itertools.product((None, 5.0), (0, 2)):
        keep = additions.join(parent, more, limit=limit, per_class=count).stages["more"].keep
        assert keep["logit_adjustment"] == ({"prior": exemplars.PRIOR_WITH_EXEMPLARS} if count else {})
        keep = additions.join(parent, boxes, limit=limit, per_class=count).stages["more"].keep
        assert "logit_adjustment" not in keep
    asked = page(("4",), stage="more", tasks=("cls",))
    asked.stages.more.keep = {"logit_adjustment": {"prior": 1.0}}
    result = additions.join(parent, config_lib.read_settings(asked), limit=None)
    assert result.stages["more"].keep == {"logit_adjustment": {"prior": 1.0}}


def test_images_of_the_new_data_are_no_exemplars_of_boxes(parent):
    inputs = config_lib.read_settings(page(("4", "5"), stage="more", tasks=("det",)))
    config = additions.join(parent, inputs, limit=None, per_class=1)
    assert config.stages["first"].keep["replay"]["images"] == len(FIRST)
    assert config.stages["more"].keep["replay"] == {"negatives": True}
    moving = additions.join(parent, inputs, limit=5.0, per_class=1).stages["more"].keep["replay"]
    assert moving == {**exemplars.REPLAYED_BOXES, "negatives": True}
    source = experiment.source(parent.setup, "first_det", training=True)
    known = Subset(source, (0, 2, 3))
    chosen = replay_buffer.from_tree(
        exemplars.choose(config.to_dict(), parent, ("det",), {"more_det": known}, may_change=False)["first_det"]
    )
    assert len(chosen) == len(FIRST)
    for sample in known:
        assert not any(np.array_equal(sample["image"], exemplar["image"]) for exemplar in chosen)
    chosen = exemplars.choose(config.to_dict(), parent, ("det",), {"more_det": source}, may_change=False)["first_det"]
    assert len(replay_buffer.from_tree(chosen)) == 0


def test_exemplars_are_refused_where_no_task_takes_them(tiny_backbone, tmp_path):
    names = {"kind": "multi_label", "classes": FIRST}
    config = page(FIRST, stage="first", first=True, tasks=("cls",))
    more = page(("4", "5"), stage="more", tasks=("cls",))
    for entry, classes, stream in ((config, FIRST, "first_cls"), (more, ("4", "5"), "more_cls")):
        with entry.unlocked(), entry.ignore_type():
            entry.tasks.cls = {**names, "classes": classes}
            entry.streams[stream].options.labels = "multi_label"
            entry.streams[stream].labels = {"cls": "multi_label"}
    old = untrained(tmp_path, config)
    with pytest.raises(UserError, match=r"a segmentation, classification or detection task of .*; leave it out"):
        additions.join(old, config_lib.read_settings(more), limit=None, per_class=2)


def test_ten_exemplars_are_usual_where_the_old_images_are_there(parent, monkeypatch, caplog):
    competing = config_lib.read_settings(page(("4", "5"), stage="more"))
    assert exemplars.usual_count(parent, competing, may_change=False) == exemplars.PER_CLASS
    boxes = config_lib.read_settings(page(("4",), stage="more", tasks=("det",)))
    assert exemplars.usual_count(parent, boxes, may_change=False) == exemplars.PER_CLASS
    known = config_lib.read_settings(page(FIRST, stage="more", tasks=("cls",)))
    assert exemplars.usual_count(parent, known, may_change=False) == 0
    assert not caplog.text

    def gone(*arguments, **settings):
        raise UserError("no folder of images")

    monkeypatch.setattr(exemplars.experiment, "source", gone)
    assert exemplars.usual_count(parent, competing, may_change=False) == 0
    assert "found none (no folder of images)" in caplog.text


def test_a_second_call_needs_none_of_the_old_images(parent, monkeypatch, tmp_path):
    configs, more = [], page(("4",), stage="more", tasks=("det",))
    monkeypatch.setattr(run, "train_and_evaluate", lambda config, *arguments, **settings: configs.append(config) or {})
    extend(parent.path, tmp_path / "new", more)
    stored = checkpoints.load(tmp_path / "new" / "checkpoints" / "0-first", {"memory": None})["memory"]
    assert len(replay_buffer.from_tree(stored["replay"]["first_det"])) == 8

    def gone(*arguments, **settings):
        raise UserError("no folder of images")

    monkeypatch.setattr(experiment, "source", gone)
    extend(parent.path, tmp_path / "new", more)
    assert configs[0] == configs[1]
    assert configs[1].stages["more"].keep == {"replay": {"negatives": True}}


@pytest.fixture(scope="module")
def versions(tiny_backbone, tmp_path_factory):
    """A run, and three that grew from it, each from the one before, with their contracts."""
    folder = tmp_path_factory.mktemp("versions")
    contracts = [{}]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("latency_ms", "gigaflops"):
            patch.setattr(train_loop.evaluate, name, lambda *arguments, **settings: 1.0)
        patch.setattr(measurement.pictures, "look", lambda *arguments, **settings: {})
        untrained(folder / "0", page(FIRST, stage="first", first=True))
        for number, (stage, classes) in enumerate(SESSIONS):
            contracts.append(extend(folder / f"{number}", folder / f"{number + 1}", page(classes, stage=stage)))
    return folder, contracts


@pytest.mark.slow
def test_outputs_of_every_earlier_version_stay_bit_for_bit(versions):
    folder, contracts = versions
    outputs = [raw_outputs(trained.load(folder / f"{number}")) for number in range(len(contracts))]
    for task in LABELS:
        for before, after in itertools.pairwise(outputs):
            channels = before[task].shape[-1]
            assert after[task].shape[-1] > channels
            np.testing.assert_array_equal(before[task], after[task][..., :channels])
    for contract in contracts[1:]:
        assert [contract["tasks"][task]["largest_output_change"] for task in LABELS] == [0.0] * 3


@pytest.mark.slow
def test_each_version_is_measured_on_the_classes_of_all_before(versions):
    folder, contracts = versions
    last = contracts[-1]["tasks"]
    for task in LABELS:
        assert list(last[task]["added"]) == ["more", "third", "last"]
        assert last[task]["stream"] == f"first_{task}"
        assert last[task]["added"]["third"]["classes"] == ["6"]
        assert set(last[task]["added"]["more"]) >= {"baseline", "final", "drop_percent", "learnt", "passed"}
    assert [version["classes"]["cls"] for version in contracts[-1]["lineage"]["versions"]] == [
        list("0123"),
        list("012345"),
        list("0123456"),
        list("012345678"),
    ]
    middle = folder / "3" / "checkpoints" / "1-more"
    assert trained.load(middle).tasks["cls"].classes == tuple("012345")
    figures = evaluate_checkpoint.run(folder / "3", tasks="cls")
    assert set(figures["other_streams"]["cls"]) == {"more_cls", "third_cls", "last_cls"}
    assert "cls" in versions_section.section(contracts[-1])


@pytest.mark.slow
def test_within_a_percentage_old_outputs_move_and_the_old_run_s_metrics_judge(versions, tmp_path, monkeypatch):
    for name in ("latency_ms", "gigaflops"):
        monkeypatch.setattr(train_loop.evaluate, name, lambda *arguments, **settings: 1.0)
    monkeypatch.setattr(measurement.pictures, "look", lambda *arguments, **settings: {})
    folder, _ = versions
    contract = extend(folder / "1", tmp_path / "loose", page(("6",), stage="third"), keep="60%")
    assert contract["max_drop_percent"] == 60.0
    for task in LABELS:
        assert contract["tasks"][task]["largest_output_change"] > 0.0
        assert list(contract["tasks"][task]["added"]) == ["more", "third"]
    rows = metrics_log.read(tmp_path / "loose" / metrics_log.FILE_NAME)
    assert {row["task"] for row in rows if row["name"].endswith("/distillation")} == set(LABELS)
    before, after = (
        dict(jax.tree_util.tree_leaves_with_path(trained.load(path).variables["batch_stats"]))
        for path in (folder / "1", tmp_path / "loose")
    )
    for path, statistic in before.items():
        np.testing.assert_array_equal(after[path], statistic)
    assert any(leaf.any() for path, leaf in after.items() if path not in before and "mean" in str(path[-1]))
