"""Answers about images: at their own resolution, one set of files each, whatever stands beside them."""

import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tiny import KINDS, save_checkpoint

from mtl_jax import predict, tasks
from mtl_jax.cli import predict as command
from mtl_jax.data.images import decode_image
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Geometry
from mtl_jax.workdir import predicted_files
from mtl_jax.workdir.checkpoints import CheckpointError

RECORDS = tasks.build(KINDS)
HALF_WIDTH = Geometry(0.5, 0.5, 0.0, 16.0, 64, 128)  # an image of 128 x 64 px, in the middle of 64 x 64 px


@pytest.fixture(scope="module")
def weights(tiny_backbone, tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0-all").parent.parent


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images of the same name, one of another, and a file that is no image."""
    rng = np.random.default_rng(0)
    for name, size in (("a/x.jpg", (40, 90)), ("b/x.png", (70, 30)), ("b/y.png", (300, 200))):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    (tmp_path / "b" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "b" / "notes.txt").write_text("not an image either")
    return tmp_path


def answer(name: str, prediction: dict, threshold: float | None = None) -> dict:
    return RECORDS[name].to_json(RECORDS[name].at_original(prediction, HALF_WIDTH), threshold)


def test_masks_come_back_at_original_size_with_each_class_s_pixels():
    mask = np.zeros((64, 64), np.int32)
    mask[16:24, :32] = 2
    result = answer("seg", {"mask": mask})
    assert result["classes"] == {
        "background": {"pixels": 128 * 64 - 16 * 64, "share": 0.875},
        "dog": {"pixels": 16 * 64, "share": 0.125},
    }
    assert result["mask"].shape == (64, 128)
    assert result["mask"].dtype == np.uint8
    assert (result["mask"][:16, :64] == 2).all()


def test_boxes_come_back_in_original_pixels_without_those_below_the_threshold():
    prediction = {
        "boxes_xyxy": np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 5.0, 40.0], [0.0] * 4]),
        "score": np.array([0.9, 0.25, 0.0]),
        "label": np.array([1, 0, 0]),
        "valid": np.array([True, True, False]),
    }
    expected = {"boxes_xyxy": [[20.0, 8.0, 60.0, 64.0]], "label": ["ball"], "score": [0.9]}
    assert answer("det", prediction) == expected
    assert answer("det", prediction, 0.2)["label"] == ["ball", "cup"]
    assert answer("det", prediction, 0.2)["boxes_xyxy"][1] == [0.0, 0.0, 10.0, 48.0]
    assert answer("det", prediction, 0.0)["score"] == [0.9, 0.25]


def test_answers_for_a_whole_image_have_names():
    probability = {"probability": np.array([0.2, 0.6], np.float32)}
    assert answer("cls", probability) == {"label": "outdoors", "probability": {"outdoors": 0.6, "indoors": 0.2}}
    assert list(answer("cls", probability)["probability"]) == ["outdoors", "indoors"]
    assert answer("tags", probability) == {"tags": {"rain": 0.6}, "probability": {"rain": 0.6, "sun": 0.2}}
    assert answer("tags", probability, 0.1)["tags"] == {"rain": 0.6, "sun": 0.2}
    assert answer("age", {"value": np.array(34.25)}) == {"value": 34.25, "unit": "years"}


def test_depth_is_told_in_millimetres():
    depth = np.full((64, 64), 1.2344, np.float32)
    depth[20, 0] = 100.0
    result = answer("depth", {"depth": depth})
    assert result["depth_mm"].dtype == np.uint16
    assert result["depth_mm"].shape == (64, 128)
    assert (result["min_m"], result["median_m"], result["max_m"]) == (1.2344, 1.2344, 100.0)
    assert sorted(set(result["depth_mm"].ravel().tolist())) == [1234, 65535]


def test_words_about_the_whole_image_are_one_caption():
    axes = Figure().add_subplot()
    RECORDS["cls"].draw(axes, {"probability": np.array([0.25, 0.75])})
    RECORDS["age"].draw(axes, {"value": np.array(34.25)})
    assert [text.get_text() for text in axes.texts] == ["outdoors 75%\nindoors 25%\nage 34.25 years"]


def test_every_image_gets_its_own_files_and_an_unreadable_one_is_told(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    places = [str(photos / "a" / "*.jpg"), str(photos / "b"), str(photos / "missing.jpg")]
    status = command.main(["--weights", str(weights), "--out", str(out), *places])
    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {photos / 'b' / 'broken.jpg'}: expected an image")
    assert errors[1].startswith(f"error: {photos / 'missing.jpg'}: expected an image file, found No such file")
    assert {path.name for path in out.glob("*.json")} == {"x.json", "x-2.json", "y.json"}
    for name, source, size in (("x", "a/x.jpg", (40, 90)), ("x-2", "b/x.png", (70, 30)), ("y", "b/y.png", (300, 200))):
        record = json.loads((out / f"{name}.json").read_text())
        assert record["image"] == str(photos / source)
        assert (record["height"], record["width"]) == size
        assert list(record["tasks"]) == list(KINDS)
        mask = np.asarray(Image.open(out / record["tasks"]["seg"]["mask"]))
        assert mask.shape == size
        assert sum(entry["pixels"] for entry in record["tasks"]["seg"]["classes"].values()) == mask.size
        assert np.asarray(Image.open(out / record["tasks"]["depth"]["depth_mm"])).dtype == np.uint16
        overlay = decode_image(out / record["overlay"])
        side = 640 / max(size)  # and a panel for the mask beside one for depth
        assert overlay.shape[0] > size[0] * side  # words stand below
        assert overlay.shape[1] >= round(2 * size[1] * side) - 1


def test_tasks_see_images_as_they_were_validated(weights, photos):
    (result,) = predict.predict(weights, [photos / "a" / "x.jpg"], tasks="cls,age")
    assert list(result.outputs) == ["cls", "age"]
    assert result.geometries["cls"].scale_x == pytest.approx(32 / 40)  # the largest square of 40 x 90 px
    assert result.geometries["age"].scale_x == pytest.approx(64 / 90)


def test_what_an_image_is_told_does_not_depend_on_its_neighbours(weights, photos):
    paths = [photos / "a" / "x.jpg", photos / "b" / "x.png", photos / "b" / "y.png"]
    together = list(predict.predict(weights, paths, tasks="age", batch_size=2))
    assert [result.path for result in together] == paths
    (alone,) = predict.predict(weights, paths[-1:], tasks="age")
    assert together[-1].outputs["age"]["value"] == pytest.approx(alone.outputs["age"]["value"], rel=1e-6)


def test_without_a_listener_an_unreadable_image_raises(weights, photos):
    with pytest.raises(UserError, match=r"broken\.jpg"):
        list(predict.predict(weights, [photos / "b" / "broken.jpg"], tasks="age"))


def test_images_are_found_once_in_order_and_nothing_found_is_told(photos):
    result = predict.find_images([str(photos / "b"), str(photos / "b" / "y.png"), str(photos / "*" / "x.*")])
    assert [str(path.relative_to(photos)) for path in result] == ["b/broken.jpg", "b/x.png", "b/y.png", "a/x.jpg"]
    for nothing in (photos, photos / "*.gif"):
        with pytest.raises(UserError, match=r"expected images .* found none"):
            predict.find_images([str(nothing)])


def test_names_stay_apart():
    paths = [Path(name) for name in ("a/x.jpg", "a/x.png", "x-2.jpg", "b/x.jpg")]
    assert predicted_files.names_for(paths) == ["x", "x-2", "x-2-2", "x-3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--tasks", "pose"],
            "expected some of seg, det, cls, tags, age, depth, which this checkpoint has learnt, or all, found pose",
        ),
        (["--weights", "nowhere"], "neither a work directory"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(weights, photos, tmp_path, capsys, arguments, words):
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), *arguments, str(photos / "a")]
    assert command.main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_no_image_is_overwritten(weights, photos, capsys):
    before = (photos / "b" / "x.png").read_bytes()
    assert command.main(["--weights", str(weights), "--out", str(photos / "b"), str(photos / "b")]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (photos / "b" / "x.png").read_bytes() == before


LABELME = '{"version": "5.4", "shapes": [{"label": "cat", "points": [[1, 2], [30, 40]]}], "imagePath": "x.jpg"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.json", LABELME), ("x.json", "[1, 2"), ("x.seg.mask.png", "a mask of one's own"), ("x.png", "another picture")],
)
def test_files_of_other_programs_are_not_overwritten_and_named_before_the_start(
    weights, photos, capsys, monkeypatch, name, content
):
    (photos / "a" / name).write_text(content)
    monkeypatch.setattr(predict, "by_network", lambda *arguments, **settings: pytest.fail("started"))
    assert command.main(["--weights", str(weights), "--out", str(photos / "a"), str(photos / "a" / "x.jpg")]) == 2
    error = capsys.readouterr().err
    assert f"{name} there did not come from predictions and would be overwritten" in error
    assert error.count("\n") == 1
    assert (photos / "a" / name).read_text() == content


def test_predictions_beside_their_images_are_replaced_and_not_looked_at(weights, photos, capsys):
    flags = ["--weights", str(weights), "--tasks", "seg,age", "--out", str(photos / "a"), str(photos / "a")]
    for _ in range(2):
        assert command.main(flags) == 0
        assert capsys.readouterr().out.count(" -> ") == 1
    assert {path.name for path in (photos / "a").iterdir()} == {"x.jpg", "x.json", "x.png", "x.seg.mask.png"}


def test_a_name_that_is_not_utf_8_is_an_image_like_another(weights, photos, tmp_path, monkeypatch):
    odd = os.fsdecode(b"caf\xe9.jpg")
    (photos / "a" / "x.jpg").rename(photos / "a" / odd)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict", write_through=True))
    flags = ["--weights", str(weights), "--tasks", "age", "--out", str(tmp_path / "out"), str(photos / "a")]
    assert command.main(flags) == 0
    assert b"caf\\udce9.jpg -> " in printed.getvalue()
    (record,) = (tmp_path / "out").glob("*.json")
    assert json.loads(record.read_bytes())["image"] == str(photos / "a" / odd)


def test_names_do_not_meet_another_s_maps_or_differ_in_case_alone():
    paths = [Path(name) for name in ("x.jpg", "x.seg.mask.png", "X.png", "y.seg.mask.png", "y.jpg")]
    assert predicted_files.names_for(paths, ["seg"]) == ["x", "x.seg.mask-2", "X-2", "y.seg.mask", "y-2"]


def test_the_home_folder_may_be_written_as_a_tilde(weights, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(weights)
    assert command.main(["--weights", "~/run", "--tasks", "age", "--out", "~/found", "~/a/*.jpg"]) == 0
    assert (tmp_path / "found" / "x.json").is_file()


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 1.5])
def test_a_threshold_that_is_no_score_is_refused(weights, photos, capsys, threshold):
    assert command.main(["--weights", str(weights), "--threshold", str(threshold), str(photos / "a")]) == 2
    assert "expected a score from 0 to 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected a score from 0 to 1"):
        next(predict.predict(weights, [photos / "a" / "x.jpg"], threshold=threshold))


def test_a_missing_checkpoint_is_told_to_callers_too(photos, tmp_path):
    with pytest.raises(CheckpointError, match="neither a work directory"):
        next(predict.predict(tmp_path, [photos / "a" / "x.jpg"]))
