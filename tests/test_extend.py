"""A finished run takes in a new task, and every old output stays as it is."""

import copy
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_pages import CONFIGS
from test_train import DIGITS, tiny_config
from tiny import random_variables, spare_report

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax import tasks as tasks_lib
from mtl_jax.cli import extend as extend_command
from mtl_jax.config import recipes
from mtl_jax.config.stage_settings import ALWAYS
from mtl_jax.continual import memory
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate_checkpoint
from mtl_jax.extend import additions, exemplars, extend, growth
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import path_of
from mtl_jax.own_data import request as request_lib
from mtl_jax.report import versions_section
from mtl_jax.training import exactness, stage_plan, train_loop
from mtl_jax.workdir import checkpoints, files, lineage, trained
from mtl_jax.workdir.checkpoints import CheckpointError

# How tasks share a network, by what the new task then has for itself.
NORMS_AND_PATCHES = {"norms_from": 16, "patches": {"neck": 4, "head": 4}}
BRANCH = {"share_until": "stage_3"}


def parent_config(**model) -> ConfigDict:
    config = tiny_config()
    config.forward_transfer = False
    config.model.update(model)
    for stage in config.stages.values():
        stage.keep, stage.epochs = ConfigDict(), 0.5
    return config


def addition(**stage) -> ConfigDict:
    """A page that adds boxes."""
    config = config_lib.base()
    config.name, config.image_size, config.example_images = "more", 64, 1
    config.tasks.det = {"kind": "detection", "classes": DIGITS, "strides": (8, 16)}
    options = {"labels": "detection", "size": 64, "length": 16}
    config.streams.boxes = config_lib.stream("digits", {"det": "detection"}, options=options, batch_size=4)
    # What would move old weights if they were not held: a large rate, decay, averaging, statistics of the batch.
    moving = {"learning_rate": 0.1, "weight_decay": 0.1, "ema_decay": 0.9}
    config.stages.det = config_lib.stage(("boxes",), **{"epochs": 1.0, **moving, **stage})
    config.order = ("det",)
    return config


def outputs(weights, ask=("seg", "cls")) -> dict:
    """Raw and decoded outputs of the old tasks, with those that are asked for next to them, on validation images."""
    network, result = trained.load(weights), {}

    @jax.jit
    def computed(variables, image):
        raw = multi_task.eval_raw(network.setup.model, variables, image, tasks=ask)[0]
        size = image.shape[1:3]
        return {name: (raw[name], network.setup.tasks[name].predictions(raw[name], size)) for name in ("seg", "cls")}

    for stream in ("masks", "single"):
        for number, batch in enumerate(experiment.eval_batches(network.setup, stream)):
            result[stream, number] = jax.device_get(computed(network.variables, batch.image))
    return result


def untrained(folder, config) -> trained.Trained:
    """A run that counts as finished, its network of random numbers."""
    config = config_lib.resolve(config)
    setup = experiment.build(config, data_root=folder)
    variables = random_variables(setup.model)
    stages = [
        {"name": name, "metrics": {task: {} for task in config.tasks_of(*config.order[: index + 1])}}
        for index, name in enumerate(config.order)
    ]
    path = folder / "checkpoints" / f"{len(stages) - 1}-{config.order[-1]}"
    metadata = {"stage": config.order[-1], "stages": stages, "config": files.without_nan(config.to_dict())}
    checkpoints.save(
        path,
        {"variables": variables, "memory": memory.to_tree(memory.nothing())},
        metadata | {"step": 0, "train_seconds": 1.0},
    )
    return trained.load(folder)


@pytest.fixture(scope="module")
def grown(tiny_backbone, one_device, tmp_path_factory):
    """A run and one that has grown from it."""
    folder = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        spare_report(patch)
        train_loop.train_and_evaluate(parent_config(**NORMS_AND_PATCHES), folder / "old")
        before = {path: path.read_bytes() for path in (folder / "old").rglob("*") if path.is_file()}
        contract = extend(folder / "old", folder / "new", addition())
        assert before == {path: path.read_bytes() for path in (folder / "old").rglob("*") if path.is_file()}
    return folder, contract


def check_old_outputs(folder, contract) -> None:
    before = outputs(folder / "old")
    jax.tree.map(np.testing.assert_array_equal, before, outputs(folder / "new"))
    jax.tree.map(np.testing.assert_array_equal, before, outputs(folder / "new", ("seg", "cls", "det")))
    assert [contract["tasks"][task]["largest_output_change"] for task in ("seg", "cls")] == [0.0, 0.0]
    assert "largest_output_change" not in contract["tasks"]["det"]


def test_every_output_of_every_old_task_stays_bit_for_bit(grown):
    check_old_outputs(*grown)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_backbone", "one_device", "no_report")
def test_a_branch_of_its_own_leaves_every_output_too(tmp_path):
    untrained(tmp_path / "old", parent_config(**BRANCH))
    page = addition()
    page.tasks.det = {"kind": "classification", "classes": DIGITS}
    options = {"labels": "classification", "size": 64, "length": 16}
    page.streams.boxes = config_lib.stream("digits", {"det": "classification"}, options=options, batch_size=4)
    check_old_outputs(tmp_path, extend(tmp_path / "old", tmp_path / "new", page))


def test_the_new_run_begins_with_the_old_one_s_stages(grown):
    folder, contract = grown
    assert [path.name for path in sorted((folder / "new" / "checkpoints").iterdir())] == ["0-seg", "1-cls", "2-det"]
    assert [stage["name"] for stage in contract["stages"]] == ["seg", "cls", "det"]
    old = json.loads((folder / "old" / "contract.json").read_text())
    for task, entry in old["tasks"].items():
        assert contract["tasks"][task]["baseline"] == entry["baseline"]
        assert contract["tasks"][task]["final"] == entry["final"]
    steps = [json.loads(line)["stage"] for line in (folder / "new" / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == {"seg", "cls", "det"}


def test_a_version_says_what_it_grew_from(grown):
    folder, contract = grown
    figures = evaluate_checkpoint.run(folder / "new", tasks="cls")
    last = folder / "old" / "checkpoints" / "1-cls"
    assert figures["lineage"] == contract["lineage"] == lineage.read(folder / "new")
    assert figures["lineage"]["digest"] == checkpoints.digest(last)
    assert [version["stages"] for version in contract["lineage"]["versions"]] == [["seg", "cls"], ["det"]]
    assert contract["lineage"]["versions"][1]["classes"]["det"] == list(DIGITS)
    page = versions_section.section(contract)
    assert "seg 0, cls 0" in page
    assert "det: 10" in page
    assert not versions_section.section({**contract, "lineage": None})
    assert lineage.of_checkpoint(last) is None


def test_the_checkpoint_says_what_every_task_depends_on(grown):
    folder, _ = grown
    result = checkpoints.read_metadata(folder / "new" / "checkpoints" / "2-det")["depends_on"]
    assert list(result) == ["seg", "cls", "det"]
    assert not any("det" in pattern.split("/")[-1] for pattern in result["seg"])


def test_a_second_call_goes_on_and_another_parent_is_refused(grown, no_report):
    folder, contract = grown
    del no_report
    assert extend(folder / "old", folder / "new", addition())["tasks"] == contract["tasks"]
    with pytest.raises(UserError, match=r"expected a run that grew from .*0-seg, found one from .*1-cls"):
        extend(folder / "old" / "checkpoints" / "0-seg", folder / "new", addition())
    result = lineage.read(folder / "new")
    assert result is not None
    with pytest.raises(UserError, match="is newer than"):
        lineage.require_same_parent(folder / "new", {**result, "digest": "0"}, folder / "old" / "checkpoints" / "1-cls")
    with pytest.raises(UserError, match="holds a run already"):
        extend(folder / "old", folder / "old", addition())


@pytest.fixture(scope="module")
def finished(tiny_backbone, tmp_path_factory):
    """An untrained run, whose tasks have norms and patches of their own."""
    return untrained(tmp_path_factory.mktemp("old"), parent_config(**NORMS_AND_PATCHES))


def planned(old, config, index) -> stage_plan.StagePlan:
    setup = parts_of(old, config)
    learnt = stage_plan.StageResult(experiment.abstract_variables(setup), memory.nothing(), [], 0.0, 0)
    return stage_plan.plan(config_lib.resolve(config), setup, index, learnt)


def joined(old, page, limit=None):
    return additions.join(old, config_lib.read_settings(page), limit=limit)


def followed(config, name, **changes):
    """The settings with a further stage, like the last but for some changes."""
    last = dataclasses.replace(config.stages[config.order[-1]], **changes)
    return dataclasses.replace(config, stages={**config.stages, name: last}, order=(*config.order, name))


def test_a_later_stage_that_would_move_an_old_task_is_refused_unless_it_says_so(finished):
    config = joined(finished, addition())
    planned(finished, config, 2)
    planned(finished, followed(config, "later", streams=("masks",), old_outputs="may_change"), 3)
    with pytest.raises(UserError, match=r"later would change params/.*/kernel, which task seg .*stage det kept"):
        planned(finished, followed(config, "later", old_outputs=""), 3)
    kernels = ("backbone/conv_*", "neck/kernels", "head/kernels")
    with pytest.raises(UserError, match=r"later would change params/backbone/norm_\d+/.*, which task seg"):
        planned(finished, followed(config, "later", old_outputs="", freeze=kernels), 3)
    given_up = followed(config, "later", old_outputs="may_change")
    planned(finished, followed(given_up, "last", old_outputs=""), 4)


def test_statistics_alone_break_the_guarantee_too(finished):
    config = joined(finished, addition())
    setup = parts_of(finished, config)
    config = followed(config, "later", old_outputs="", freeze=exactness.frozen_patterns(config, setup, 2))
    plan = planned(finished, config, 3)
    moving = [dataclasses.replace(objective, train_batch_norm=True) for objective in plan.objectives.values()]
    with pytest.raises(UserError, match=r"would change batch_stats/backbone/norm_\d+/mean, which task seg"):
        exactness.refuse_moving(config, setup, 3, moving)


def parts_of(old, config) -> experiment.Experiment:
    return experiment.build(config, data_root=old.setup.data_root)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"backbone": "plain_cnn", "sharing": "cross_stitch"}, "no room"),
        ({"head_exchange": "refinement"}, "no room"),
        ({"head_exchange": "attention"}, "task seg would read"),
    ],
)
def test_networks_in_which_old_tasks_read_the_new_one_are_refused(finished, tmp_path, model, word):
    old = untrained(tmp_path, parent_config(**model))
    config = joined(old, addition())
    with pytest.raises(UserError, match=word):
        growth.require_compatible(old, parts_of(old, config), exact=True)


@pytest.mark.parametrize(
    "model",
    [{}, BRANCH, *({"backbone": "plain_cnn", "sharing": scheme} for scheme in ("independent", "mmoe"))],
    ids=str,
)
def test_other_ways_of_sharing_have_room(finished, tmp_path, model):
    old = untrained(tmp_path, parent_config(**model))
    config = joined(old, addition())
    setup = parts_of(old, config)
    growth.require_compatible(old, setup, exact=True)
    held = exactness.frozen_patterns(config, setup, 2)
    free = [path for path in growth.dependence.paths_of(setup.model) if not exactness._is_held(path, held)]
    assert free
    assert not {path for task in old.names for path in growth.dependence.reads_of(setup.model)[task]} & set(free)


def changed(change) -> ConfigDict:
    config = addition()
    with config.unlocked(), config.ignore_type():
        change(config)
    return config


def in_another_order(config):
    config.tasks.cls = {"kind": "classification", "classes": DIGITS[::-1]}


def with_other_settings(config):
    config.tasks.cls = {"kind": "classification", "classes": DIGITS, "label_smoothing": 0.1}


def with_an_idle_stream(config):
    config.streams.idle = copy.deepcopy(config.streams.boxes)


def with_old_tasks_alone(config):
    config.streams.boxes.labels = {"cls": "classification"}
    del config.tasks["det"]


def with_a_stream_of_old_tasks(config):
    config.streams.more = copy.deepcopy(config.streams.boxes)
    config.streams.more.labels = {"cls": "classification"}
    config.stages.det.streams = ("boxes", "more")


def with_the_old_stage_s_name(config):
    config.stages.cls = config.stages.det
    config.order = ("cls",)


def with_an_idle_task(config):
    config.tasks.tags = {"kind": "multi_label", "classes": DIGITS}


def with_another_backbone(config):
    config.model.backbone = "plain_cnn"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_another_order, "task cls: expected the classes of .* in their order, .*, found"),
        (with_other_settings, "task cls is in .* already, with other settings"),
        (with_an_idle_stream, "stream idle is in no new stage"),
        (with_old_tasks_alone, "expected a task or classes that .* has not, found none; use --refine"),
        (with_a_stream_of_old_tasks, r"stream more labels no new task in a new stage \(det\)"),
        (
            with_the_old_stage_s_name,
            "task det is new and no new stage labels it|stream boxes (labels no new task|is in no new stage)",
        ),
        (with_an_idle_task, "task tags is new and no new stage labels it"),
        (with_another_backbone, "model.backbone: expected 'tiny', as .* was trained .*, found 'plain_cnn'"),
    ],
)
def test_what_does_not_fit_the_parent_is_refused_in_one_line(finished, change, words):
    with pytest.raises(UserError, match=words) as refused:
        joined(finished, changed(change))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("keep", ["", "exactly", "5", "-1%", "101%"])
def test_keep_is_exact_or_a_percentage(keep):
    with pytest.raises(UserError, match=r'expected "exact"'):
        additions.limit_percent(keep)
    assert additions.limit_percent("exact") is None
    assert additions.limit_percent("2.5 %") == 2.5


def test_within_a_percentage_all_old_streams_leave_exemplars(finished, tmp_path):
    page = config_lib.read_settings(addition())
    streams = {stream for stage in finished.stages for stream in finished.config.stages[stage].streams}
    assert exemplars.usual_count(finished, page, may_change=False) == 0
    assert exemplars.usual_count(finished, page, may_change=True) == exemplars.PER_CLASS
    config = additions.join(finished, page, limit=5.0, per_class=exemplars.PER_CLASS)
    assert config.stages["det"].keep["replay"] == recipes.RETENTION["replay"]
    for stage, count in (("seg", 11), ("cls", 10)):
        assert config.stages[stage].keep["replay"]["images"] == exemplars.PER_CLASS * count
    chosen = exemplars.choose(config.to_dict(), finished, (), {}, may_change=True)
    assert set(chosen) == streams
    assert exemplars.choose(config.to_dict(), finished, (), {}, may_change=False) == {}

    setup = parts_of(finished, config)
    growth.copy_stages(finished, tmp_path, growth.init_variables(finished, setup, config), config, exemplars=chosen)
    stored = finished._replace(path=tmp_path / "checkpoints" / finished.path.name)
    assert exemplars.are_stored(stored) > exemplars.are_stored(finished)
    assert "replay" in additions.join(stored, page, limit=5.0).stages["det"].keep


def test_a_mistake_in_keep_is_found_before_the_data_is_inspected(finished, tmp_path, capsys):
    flags = ["--from", str(finished.path), "--workdir", str(tmp_path / "new"), "--keep", "200%"]
    assert extend_command.main([*flags, f"classes={tmp_path / 'missing'}"]) == 2
    assert 'keep: expected "exact"' in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--refine", "classes=new"], r"--refine: expected --task with the task that the data is for \(cls\)"),
        (["--refine", "depth=new"], r"for \(cls, seg\)"),
        (["--task", "cls", "masks=new"], r"--task cls: expected labels of a classification task \(classes=…\), found"),
        (["--task", "cls", "classes=new", "masks=more"], "--task cls: expected labels of one kind, found masks=.*, "),
        (["classes.cls=new"], "cls is in .* already; take another name, or give the task more labels by --task cls"),
        (["classes=new", "--exemplars", "-1"], "--exemplars: expected 0 or more images of each class, found -1"),
        (["classes=new", "--minutes", "0"], "--minutes: expected more than 0, found 0"),
        (["classes=new", "--config", "page.py"], "expected labels to add, or a page of them, found both; usage"),
        ([], "expected labels to add, or a page of them, found neither; usage"),
    ],
)
def test_labels_that_do_not_fit_are_found_before_the_data_is_inspected(words, expected, finished, tmp_path, capsys):
    flags = ["--from", str(finished.path), "--workdir", str(tmp_path / "new")]
    assert extend_command.main([*flags, *words]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_a_stream_of_a_task_never_takes_a_name_that_the_run_uses(finished):
    used = "cls"
    request = request_lib.Request("boxes", used, "/new")
    used_names = extend_command._used_names(finished.config.to_dict())
    assert extend_command._with_unused_name(request, used_names, is_named=False).name == "boxes"
    unnamed = request_lib.Request(used, used, "/new")
    for is_named in (True, False):
        assert extend_command._with_unused_name(unnamed, used_names, is_named=is_named).name == f"{used}_2"
    named = request._replace(name="people")
    assert extend_command._with_unused_name(named, used_names, is_named=True).name == "people"


@pytest.mark.parametrize(("exact", "refine", "passes"), [(True, False, 1), (False, False, 3), (False, True, 2)])
def test_training_time_counts_the_passes_of_old_tasks_that_may_change(exact, refine, passes, finished):
    metadata = checkpoints.read_metadata(finished.path)
    assert extend_command._passes(metadata, exact=exact, refine=refine) == passes


def test_labels_of_a_task_are_shown_like_the_stream_that_stands_for_it(finished):
    for task in finished.names:
        size, crop = experiment.task_view(finished.setup, task)
        stream = extend_command._stream_of(task, finished.config)
        assert stream is not None
        assert (stream.image_size, stream.crop) == (size, crop)
    assert extend_command._stream_of("", finished.config) is None


def test_labels_leave_the_features_that_the_run_kept_as_they_are(finished):
    freeze = {"backbone/kernels": ALWAYS, "head/kernels": ALWAYS, "backbone/until_8": (0.0, 2.0)}
    stages = {"cls": dataclasses.replace(finished.config.stages["cls"], freeze=freeze)}
    config = dataclasses.replace(finished.config, stages=stages)
    assert extend_command._kept_features(config, "cls") == ("backbone/kernels",)
    assert extend_command._kept_features(finished.config, "cls") == ()


def test_within_a_percentage_the_usual_methods_hold_the_old_tasks(finished):
    config = joined(finished, addition(), 2.0)
    assert config.contract.max_drop_percent == 2.0
    assert config.stages["det"].old_outputs == "may_change"
    assert set(config.stages["det"].keep) == {"lwf"}  # the old run left no exemplars
    assert config.stages["det"].train_batch_norm == "new_levels"
    assert not planned(finished, config, 2).objectives[0].frozen


def test_a_damaged_or_newer_parent_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished.path.parent.parent, tmp_path / "old")
    files.write_json(folder / "config.json", {"versions": {"mtl_jax": "99.0"}})
    with pytest.raises(UserError, match=r"trained by mtl_jax 99\.0, this is the older"):
        extend(folder, tmp_path / "new", addition())
    damaged = next(path for path in (folder / "checkpoints").rglob("*") if path.is_file() and "json" not in path.name)
    damaged.write_bytes(damaged.read_bytes() + b"!")
    with pytest.raises(CheckpointError, match="is damaged"):
        extend(folder, tmp_path / "new", addition())
    assert not (tmp_path / "new").exists()


def test_a_task_that_joins_the_flagship_costs_less_than_a_tenth_of_it():
    config = config_lib.load_page(CONFIGS / "seq.py").get_config()
    tasks = tasks_lib.build(config.tasks.to_dict())
    new = parameters(config, tasks)
    total, by_task = sum(new.values()), dict.fromkeys(tasks, 0)
    for path, size in new.items():
        owner = owner_of(tuple(path.split("/")), tuple(tasks))
        if owner is not None:
            by_task[owner] += size
    assert all(size < 0.1 * (total - size) for size in by_task.values())
    largest = max(by_task, key=lambda name: by_task[name])
    without = parameters(config, {name: task for name, task in tasks.items() if name != largest})
    assert total - sum(without.values()) == by_task[largest] > 0


def parameters(config, tasks) -> dict[str, int]:
    """Path -> size."""
    model = multi_task.build(config.model, tasks)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    return {path_of(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"])}


@pytest.mark.slow
def test_within_a_percentage_shared_parts_move_and_the_old_run_s_figures_judge(grown, no_report):
    folder, _ = grown
    del no_report
    contract = extend(folder / "old", folder / "loose", addition(), keep="60%")
    old = json.loads((folder / "old" / "contract.json").read_text())
    assert contract["max_drop_percent"] == 60.0
    for task in ("seg", "cls"):
        entry = contract["tasks"][task]
        assert entry["baseline_from"] == f"run {folder / 'old'}"
        assert entry["baseline"] == old["tasks"][task]["final"]
        assert entry["largest_output_change"] > 0.0
    before, after = (trained.load(folder / name).variables["params"] for name in ("old", "loose"))
    path = ("backbone", "conv_8", "kernel")
    kernels = [tree[path[0]][path[1]][path[2]] for tree in (before, after)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


@pytest.mark.slow
def test_more_data_refines_one_task_and_leaves_the_others(grown, no_report):
    folder, _ = grown
    del no_report
    page = addition()
    with page.unlocked(), page.ignore_type():
        del page.tasks["det"]
        page.tasks.cls = {"kind": "classification", "classes": ("0", "1")}
        options = {"labels": "classification", "size": 64, "length": 16, "digits": ("0", "1")}
        del page.streams["boxes"]
        page.streams.zeros = config_lib.stream("digits", {"cls": "classification"}, options=options, batch_size=4)
        page.stages.again = config_lib.stage(("zeros",), epochs=1.0, learning_rate=1e-3)
        del page.stages["det"]
        page.order = ("again",)
    contract = extend(folder / "old", folder / "again", page, refine=True)
    assert contract["tasks"]["seg"]["largest_output_change"] == 0.0
    assert contract["tasks"]["cls"]["largest_output_change"] > 0.0
    old = json.loads((folder / "old" / "contract.json").read_text())["tasks"]["cls"]["final"]
    fell = contract["tasks"]["cls"]["final"] < 0.95 * old
    assert ("refused" in contract) == fell
    assert (folder / "again" / "refused").exists() == fell
