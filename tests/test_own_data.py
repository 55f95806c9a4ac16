"""One's own data: what is found in it, what is chosen for it, the page that says so, and the sheet to look at."""

import dataclasses
import io
import json
import re
import shutil

import label_files
import numpy as np
import pytest
from PIL import Image

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config import overrides
from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.data import drawing
from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.label_shapes.colours import colour
from mtl_jax.errors import UserError
from mtl_jax.own_data import choices as choices_lib
from mtl_jax.own_data import contact_sheet, inspection, table
from mtl_jax.own_data import page as page_lib
from mtl_jax.own_data import request as request_lib
from mtl_jax.own_data import summary as summary_lib
from mtl_jax.own_data.choices import Growth
from mtl_jax.own_data.machine import Machine, measure
from mtl_jax.own_data.request import Request
from mtl_jax.own_data.summary import DatasetSummary

LIKE = StreamSettings(image_size=224)
LAPTOP = Machine("cpu", 2, False, image_seconds=0.07, start_seconds=25.0, stage_seconds=40.0)


def found(kind: str = "boxes", name: str = "", **changes) -> DatasetSummary:
    """A dataset of 200 photographs."""
    inputs = DatasetSummary(
        request=Request(kind, name or kind, f"/photos/{kind}"),
        format="coco",
        classes=("cat", "dog"),
        train=160,
        val=40,
        splits="20% by content",
        sizes=((640, 480),) * 160,
        counts={"cat": 300, "dog": 20},
    )
    return dataclasses.replace(inputs, **changes)


def choose(*entry: DatasetSummary, minutes: float = 4.0, machine: Machine = LAPTOP, **growth):
    return choices_lib.choose(entry, machine, minutes=minutes, growth=Growth(**growth) if growth else None)


def test_labels_on_the_command_line_are_read_in_the_order_in_which_they_are_learnt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["values.age=faces.csv:age", "classes=flowers/", "boxes.people=/a=b.json", "masks=photos/masks"]
    assert request_lib.parse(words) == (
        Request("masks", "masks", str(tmp_path / "photos/masks")),
        Request("boxes", "people", "/a=b.json"),
        Request("classes", "classes", str(tmp_path / "flowers")),
        Request("values", "age", str(tmp_path / "faces.csv:age")),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos"], "expected a kind of label and where it is"),
        (["masks="], "found the argument masks="),
        (["boxes.=a"], "found the argument boxes.=a"),
        (["class=a"], "expected a kind of label, found 'class'; did you mean classes"),
        (["boxes=a", "boxes=b"], "found boxes twice; tell them apart by names: boxes.one="),
        (["boxes.x=a", "masks.x=b"], "expected each name once, found x twice"),
    ],
)
def test_a_word_that_asks_nothing_is_refused(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        request_lib.parse(words)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> DatasetSummary:
    root = tmp_path_factory.mktemp("own data")
    label_files.coco(root)
    return summary_lib.summarise(Request("boxes", "bees", str(root)))


def test_a_dataset_is_found_with_its_classes_splits_sizes_and_boxes(boxes):
    train = [picture for picture in label_files.PICTURES if picture.split == "train"]
    rendered = [entry for picture in train for entry in picture.objects]
    assert (boxes.format, boxes.classes, boxes.splits) == ("coco", label_files.CLASSES, "as the dataset has them")
    assert (boxes.train, boxes.val) == (len(train), len(label_files.PICTURES) - len(train))
    assert sorted(boxes.sizes) == sorted(picture.size for picture in train)
    assert sum(boxes.counts.values()) == len(boxes.box_shares) == len(rendered)
    assert boxes.most_boxes == max(len(picture.objects) for picture in train)
    assert boxes.label == "detection"


@pytest.mark.parametrize(
    ("kind", "write", "place", "holds"),
    [
        ("masks", label_files.colour_masks, "", "3 classes: background, ant, bee"),
        ("classes", label_files.class_folders, "", "2 classes: ant, bee"),
        ("tags", label_files.coco, "", "2 classes: ant, bee"),
        ("values", label_files.csv_values, "", "around 1, by 1.83"),
        ("depth", label_files.depth, "", "around"),
    ],
)
def test_every_kind_of_label_is_found_chosen_for_and_inspected(tmp_path, kind, write, place, holds):
    write(tmp_path)
    observed = summary_lib.summarise(Request(kind, kind, str(tmp_path / place)))
    assert holds in table.holds(observed)
    assert observed.train + observed.val == len(label_files.PICTURES)
    (selected,) = choose(observed)
    page_lib.write(tmp_path / "page.py", [selected], name="one", made_from="[]")
    config = overrides.load(str(tmp_path / "page.py"), [])
    config_lib.resolve(config)
    experiment.build(config.to_dict(), data_root=tmp_path)
    html = contact_sheet.render([inspect(observed)], [], images=3)
    assert all(name in html for name in observed.classes)


def test_without_splits_a_share_of_the_images_validates(tmp_path):
    label_files.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").unlink()
    shutil.rmtree(tmp_path / "val")
    observed = summary_lib.summarise(Request("boxes", "boxes", str(tmp_path), val_share=0.4))
    assert observed.splits == "40% by content"
    assert observed.val > 0
    assert observed.train + observed.val == sum(picture.split == "train" for picture in label_files.PICTURES)


def test_more_time_buys_larger_images_and_more_epochs_up_to_what_is_of_use():
    selected = [
        choose(found("masks", classes=("sky", "tree"), counts={"sky": 1, "tree": 1}), minutes=m)[0] for m in MINUTES
    ]
    assert [entry.image_size for entry in selected] == sorted(entry.image_size for entry in selected)
    assert selected[0].image_size < selected[-1].image_size == 512
    assert selected[0].epochs < selected[-1].epochs == choices_lib.EPOCHS["masks"]
    assert all(entry.seconds <= 60 * minutes for entry, minutes in zip(selected[1:], MINUTES[1:], strict=True))
    assert selected[0].steps >= choices_lib.MIN_STEPS - 1


MINUTES = (0.1, 4.0, 10.0, 1000.0)


def test_boxes_take_most_of_the_time_and_what_a_task_cannot_use_goes_to_the_others():
    masks, boxes = choose(found("masks"), found(), minutes=4.0)
    assert 2 * masks.seconds < boxes.seconds
    few, remainder = choose(found("classes", train=20, sizes=((96, 96),) * 20), found("masks"), minutes=4.0)
    available = 4 * 60 - LAPTOP.start_seconds - 2 * LAPTOP.stage_seconds
    assert few.seconds < 0.3 * available
    assert remainder.seconds > 0.5 * available


def test_a_stage_that_holds_older_tasks_takes_longer():
    stages = choose(found("masks", "a"), found("masks", "b"), found("masks", "c"), minutes=1000.0)
    first, held, locked = (stage.seconds / (stage.epochs * stage.train_image_size**2) for stage in stages)
    assert held > 1.3 * first
    assert locked == pytest.approx(first, rel=0.1)


def test_boxes_are_looked_for_at_the_size_of_their_training_images():
    (selected,) = choose(found(), minutes=1000.0)
    assert selected.train_image_size == selected.image_size == 512


def test_classes_that_a_detector_gets_later_are_trained_twice_as_long():
    for kind, factor in (("boxes", 2), ("masks", 1), ("tags", 1)):
        (first,), (later,) = (choose(found(kind), minutes=1000.0, is_later=later) for later in (False, True))
        assert later.epochs == factor * first.epochs


def test_more_labels_of_a_task_are_shown_as_its_network_knows_images():
    augment = {"scale_min": 0.5, "flip_probability": 0.5, "mosaic_probability": 0.5}
    like = dataclasses.replace(LIKE, train_image_size=192, augment=augment)
    (selected,) = choose(found(train=400), minutes=1000.0, like=like)
    assert (selected.image_size, selected.train_image_size, selected.crop) == (224, 192, False)
    assert selected.augment == augment
    assert selected.task == {"kind": "detection"}  # whose settings the old run has
    (short,) = choose(found(classes=("left hand", "right hand")), minutes=1.0, like=like)
    assert short.augment == {"scale_min": 0.5}
    assert choose(found(), like=like, is_refined=True)[0].learning_rate == choices_lib.REFINING_RATE


def test_the_page_of_an_addition_says_nothing_of_the_network_and_has_known_classes_first(tmp_path):
    (selected,) = choose(found(classes=("cat", "dog", "hound")), like=LIKE)
    page_lib.write_addition(
        tmp_path / "page.py",
        [selected],
        name="more",
        made_from='["a"]',
        command='mtl-jax extend --from runs/old\\"',
        latency_image_size=288,
        freeze=("backbone/kernels",),
        known_classes={"dog": "dog", "fox": "fox", "hound": "dog"},
    )
    assert page_lib.made_from(tmp_path / "page.py") == '["a"]'
    text = (tmp_path / "page.py").read_text()
    assert f"mtl-jax extend --from runs/old\\\\' --config {tmp_path / 'page.py'}\n" in text
    config = config_lib.read_settings(overrides.load(str(tmp_path / "page.py"), []))
    assert config.model == type(config.model)()
    assert config.contract.latency_image_size == 288
    assert config.tasks["boxes"] == {"kind": "detection", "classes": ("dog", "fox", "cat")}
    assert config.streams["boxes"].options["classes"] == {"detection": ("cat", "dog", "hound")}
    assert set(config.stages["boxes"].freeze) == {"backbone/kernels"}
    assert (config.order, config.streams["boxes"].image_size) == (("boxes",), 224)


def test_numbers_are_named_as_the_classes_of_the_task_that_gets_the_labels():
    numbered = dataclasses.replace(found(), classes=("0", "1"), counts={"0": 3, "1": 4})
    named = summary_lib.with_names(numbered, ("cat", "dog", "fox"), of="pets")
    assert (named.classes, named.counts) == (("cat", "dog"), {"cat": 3, "dog": 4})
    assert named.notes[-1] == "numbers are taken as the classes of pets, in their order: 0 cat, 1 dog."
    with pytest.raises(
        UserError, match=r"boxes=.*: its files number 2 classes and name none, and pets has 1; name them"
    ):
        summary_lib.with_names(numbered, ("cat",), of="pets")
    for names in (("0", "1", "2"), ()):  # those that they have
        assert summary_lib.with_names(numbered, names, of="pets") == numbered
    assert summary_lib.with_names(found(), ("fox", "hen"), of="pets") == found()  # which has names


def test_passes_of_old_tasks_take_epochs_and_no_fixed_time():
    alone, retained = (choose(found(train=400), minutes=4.0, passes=passes, like=LIKE)[0] for passes in (1.0, 3.0))
    assert retained.epochs == pytest.approx(alone.epochs / 3, rel=0.05)
    assert retained.seconds == pytest.approx(alone.seconds, rel=0.05)


def test_short_detection_stages_train_without_mosaics_and_at_a_higher_rate():
    (short,), (long,) = choose(found(), minutes=2.0), choose(found(train=400), minutes=1000.0)
    assert "mosaic_probability" not in short.augment
    assert long.augment["mosaic_probability"] == 0.5
    assert short.learning_rate == 2 * long.learning_rate


def test_images_are_not_enlarged_but_for_tiny_ones():
    assert choose(found("classes", sizes=((160, 120),) * 160), minutes=1000.0)[0].image_size == 160
    assert choose(found("classes", sizes=((28, 28),) * 160), minutes=1000.0)[0].image_size == 96


def test_few_images_are_shown_more_often_in_batches_that_they_fill():
    (few,) = choose(found("classes", train=5, val=2, sizes=((64, 64),) * 5), minutes=1000.0)
    assert few.batch_size == 5
    assert few.steps >= choices_lib.TARGET_STEPS - 1
    assert few.eval_batch_size == 2


@pytest.mark.parametrize(
    ("sides_px", "expected"),
    [((10, 20, 30), (8,)), ((10, 100, 400), (8, 16, 32)), ((200, 300, 400), (32,)), ((), (8, 16, 32))],
)
def test_a_detector_reads_the_levels_that_its_boxes_need(sides_px, expected):
    shares = tuple(side / 512 for side in sides_px)
    assert choices_lib.strides(found(box_shares=shares), 512) == expected


def test_there_is_room_for_the_boxes_of_several_images_in_one():
    assert [choose(found(most_boxes=most))[0].max_boxes for most in (3, 20, 1000)] == [16, 40, 256]


def test_small_boxes_ask_for_large_images():
    small = choose(found(box_shares=(0.03,) * 9))[0]
    large = choose(found(box_shares=(0.5,) * 9))[0]
    assert small.image_size > large.image_size


def test_left_and_right_are_not_mirrored():
    assert "flip_probability" not in choose(found(classes=("left hand", "right hand")))[0].augment
    assert "flip_probability" in choose(found(classes=("bright lamp", "laptop")))[0].augment


def test_a_background_of_most_pixels_counts_less():
    weighted = choose(found("masks", classes=("background", "cat"), counts={"background": 900, "cat": 100}))[0]
    assert weighted.task["class_weights"] == (0.3, 1.0)
    even = choose(found("masks", classes=("sky", "sea"), counts={"sky": 50, "sea": 50}))[0]
    assert "class_weights" not in even.task


def test_numbers_are_learnt_around_their_middle():
    task = choose(found("values", classes=(), counts={}, center=33.0, scale=12.5))[0].task
    assert task == {"kind": "regression", "center": 33.0, "scale": 12.5}


def test_the_machine_is_measured():
    machine = measure()
    assert machine.cores >= 1
    assert not machine.accelerated
    assert 0 < machine.image_seconds < 60
    assert "CPU core" in str(machine)


@pytest.fixture
def page(tmp_path):
    """A page of three tasks, of which the names of classes are awkward."""
    awkward = ('it\'s "a" cat', "Hündin\\", "a name with spaces, and commas " * 4)
    sets = (
        found("masks", classes=("background", *awkward), counts=dict.fromkeys(("background", *awkward), 1)),
        found("boxes", "people", classes=awkward, box_shares=(0.1,), most_boxes=3),
        found("values", "age", classes=(), counts={}),
    )
    reading = {"val_share": 0.3, "annotated_on": "stored"}
    sets = tuple(dataclasses.replace(entry, request=entry.request._replace(**reading)) for entry in sets)
    path = tmp_path / "a run" / "page.py"
    selected = choose(*sets)
    page_lib.write(path, selected, name="mine", made_from='["a"]', baselines={"masks": "/elsewhere"})
    return path, sets, selected


def test_the_page_holds_what_was_found_and_chosen(page):
    path, sets, selected = page
    config = overrides.load(str(path), [])
    config_lib.resolve(config)
    experiment.build(config.to_dict(), data_root=path.parent)
    assert config.order == ("masks", "people", "age")
    for entry, choice in zip(sets, selected, strict=True):
        name = entry.request.name
        stream = config.streams[name]
        assert tuple(config.tasks[name].get("classes", ())) == entry.classes
        assert stream.options.path == entry.request.path
        assert (stream.options.val_share, stream.options.annotated_on) == (0.3, "stored")
        assert (stream.image_size, stream.batch_size) == (choice.image_size, choice.batch_size)
        assert config.stages[name].epochs == choice.epochs
    assert config.contract.baseline_from.masks == "/elsewhere"


@pytest.mark.parametrize(
    ("variant", "order"), [("together", ("together",)), ("alone_people", ("people",)), ("alone_age", ("age",))]
)
def test_the_page_s_variants_train_together_or_alone(page, variant, order):
    config = overrides.load(f"{page[0]}:{variant}", [])
    config_lib.resolve(config)
    assert config.order == order
    assert set(config.stages) == set(order)
    if variant == "together":
        assert config.stages.together.streams == ("masks", "people", "age")
    else:
        assert not any(config.contract.baseline_from.values())


def test_without_published_features_the_first_task_learns_the_kernels(page):
    path, sets, selected = page
    frozen = {}
    for pretrained in ("", "features.npz"):
        page_lib.write(path, selected, name="mine", made_from="[]", pretrained=pretrained)
        config = overrides.load(str(path), [])
        assert config.pretrained == pretrained
        frozen[pretrained] = [bool(config.stages[entry.request.name].freeze) for entry in sets]
    assert frozen == {"": [False, True, True], "features.npz": [True, True, True]}


def test_an_unknown_variant_of_the_page_is_refused(page):
    with pytest.raises(UserError, match="expected one of one_after_another, together, alone_masks"):
        overrides.load(f"{page[0]}:apart", [])


def test_a_page_says_what_it_was_made_from(page, tmp_path):
    assert page_lib.made_from(page[0]) == '["a"]'
    assert page_lib.made_from(tmp_path / "nowhere.py") is None


def test_the_table_says_what_was_found_and_chosen(boxes, capsys):
    table.show([boxes], choose(boxes))
    printed = " ".join(capsys.readouterr().out.split())
    assert "boxes (coco)" in printed
    assert f"{boxes.train} + {boxes.val}" in printed
    assert "strides" in printed


def inspect(entry: DatasetSummary) -> inspection.Inspected:
    return inspection.inspect(entry, cache=None, on_progress=lambda completed, total: None)


def test_copies_leaks_and_empty_images_are_suspicious(tmp_path):
    label_files.coco(tmp_path)
    first, validated = (
        next(entry for entry in label_files.PICTURES if entry.split == split) for split in ("train", "val")
    )
    listed = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(listed.read_text())
    content["images"][0] |= dict(zip(("width", "height"), first.size, strict=True))
    listed.write_text(json.dumps(content))
    shutil.copy(tmp_path / "train" / first.name, tmp_path / "val" / validated.name)
    observed = inspect(summary_lib.summarise(Request("boxes", "bees", str(tmp_path))))
    assert inspection.leaks([observed]) == [
        f"bees: 1 validation image of {observed.dataset.val} in training too (first: {validated.name}, which bees "
        f"trains on as {first.name}); take them out of one of the two"
    ]
    empty = [picture.name for picture in label_files.PICTURES if picture.split == "train" and not picture.objects]
    assert any("without boxes" in line and name in line for line in observed.suspicious for name in empty)
    assert any("hardly enough" in line for line in observed.suspicious)


def test_how_files_were_read_is_a_note_and_nothing_suspicious(tmp_path):
    label_files.coco(tmp_path)
    observed = inspect(
        summary_lib.summarise(Request("boxes", "bees", str(tmp_path / "annotations" / "instances_train.json")))
    )
    assert any("without splits" in note for note in observed.notes)
    assert not any("without splits" in line for line in observed.suspicious)


def test_the_number_zero_is_a_number(tmp_path):
    label_files.csv_values(tmp_path)
    observed = inspect(summary_lib.summarise(Request("values", "age", f"{tmp_path}/faces.csv:age")))
    assert not any("without a number" in line for line in observed.suspicious)


def test_a_healthy_dataset_has_no_leak(boxes):
    assert inspection.leaks([inspect(boxes)]) == []


def test_the_sheet_holds_its_pictures_and_escapes_what_it_is_told(boxes):
    html = contact_sheet.render([inspect(boxes)], ["<script>"], images=3)
    assert "http" not in html.replace("http-equiv", "")
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert 1 <= html.count("data:image/jpeg;base64,") <= 3
    assert all(name in html for name in label_files.CLASSES)


def opened(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)), np.int32)


def test_boxes_are_drawn_as_frames_and_masks_as_colours():
    grey = np.full((40, 60, 3), 128, np.uint8)
    framed, size = drawing.draw(grey, {"boxes_xyxy": np.float32([[10, 10, 50, 30]]), "label": np.int32([1])})
    pixels = opened(framed)
    assert size == (60, 40)
    assert np.abs(pixels[20, 10] - colour(1)).max() < 90
    assert np.abs(pixels[20, 30] - 128).max() < 20
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:], mask[:, 50:] = 2, 255
    coloured = opened(drawing.draw(grey, {"mask": mask})[0])
    assert np.abs(coloured[20, 10] - 128).max() < 20
    assert np.abs(coloured[20, 40] - (np.array(colour(2)) + 128) / 2).max() < 30
    assert np.abs(coloured[20, 56] - 128).max() < 20


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": np.array(1, np.int32)}, "dog"),
        ({"label": np.array(-1, np.int32)}, "nothing"),
        ({"label": np.float32([1, np.nan])}, "cat"),
        ({"label": np.int32([1, 1]), "boxes_xyxy": np.zeros((2, 4), np.float32)}, "dog"),
        ({"mask": np.uint8([[0, 255]])}, "cat"),
        ({"value": np.array(3.5, np.float32)}, "3.5"),
    ],
)
def test_a_caption_says_what_a_label_holds(fields, words):
    assert shape_of(fields).caption(fields, ("cat", "dog")) == words
