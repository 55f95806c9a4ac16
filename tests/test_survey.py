"""Every image of a split is looked at once, and what was seen is kept until a file changes."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import opened, survey, survey_cache
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset


def write(file, seed, size=(12, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path):
    for number in range(4):
        write(tmp_path / f"set/train/{'ab'[number % 2]}/{number}.png", number)
    return tmp_path


def look(root, **settings):
    with opened.recording() as files:
        source = registry.build("image_folder", data_root=root, split="train", folder="set")
    return survey.look(source, files=files, name=str(root), **settings)


def test_ids_sizes_and_labels_are_those_of_the_files_in_order(root):
    write(root / "set/train/b/5.png", 5, size=(3, 4))
    observed = look(root)
    assert (observed.images, observed.errors, observed.complete) == (5, (), True)
    assert [sample.id for sample in observed.samples] == ["a/0.png", "a/2.png", "b/1.png", "b/3.png", "b/5.png"]
    assert (observed.samples[-1].width, observed.samples[-1].height) == (3, 4)
    assert [sample.labels["classification"]["class"] for sample in observed.samples] == [0, 0, 1, 1, 1]


def test_every_file_that_cannot_be_read_is_told(root):
    for name in ("a/0", "b/3"):
        file = root / f"set/train/{name}.png"
        file.write_bytes(file.read_bytes()[:60])
    observed = look(root)
    assert [error.split(":")[0] for error in observed.errors] == [
        str(root / f"set/train/{n}.png") for n in ("a/0", "b/3")
    ]
    assert len(observed.samples) == 2
    assert observed.complete


@pytest.fixture
def worth_keeping(monkeypatch):
    monkeypatch.setattr(survey, "WORTH_KEEPING_S", -1.0)


@pytest.fixture
def decodes(monkeypatch):
    """Counts the samples that are decoded."""
    from mtl_jax.data.sources.image_folder import ImageFolder

    counted, loaded = [], ImageFolder.__getitem__
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda self, index: counted.append(index) or loaded(self, index))
    return counted


def test_what_was_seen_is_not_looked_at_again(root, tmp_path, worth_keeping, decodes):
    first = look(root, cache=tmp_path / "cache")
    assert len(decodes) == 4
    assert look(root, cache=tmp_path / "cache") == first
    assert len(decodes) == 4


@pytest.mark.parametrize("change", ["write", "add", "remove", "rename"])
def test_a_file_that_was_written_added_removed_or_renamed_is_seen(root, tmp_path, worth_keeping, decodes, change):
    before = look(root, cache=tmp_path / "cache")
    file = root / "set/train/b/3.png"
    if change in ("write", "add"):
        write(file if change == "write" else file.with_name("4.png"), seed=99)
    elif change == "remove":
        file.unlink()
    else:
        file.rename(file.with_name("4.png"))
    after = look(root, cache=tmp_path / "cache")
    assert len(decodes) > 4
    assert after == look(root)
    assert after.digest(["classification"]) != before.digest(["classification"])


def test_a_damaged_cache_and_one_that_cannot_be_written_cost_time_alone(root, tmp_path, worth_keeping, caplog):
    first = look(root, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert look(root, cache=tmp_path / "cache") == first
    (tmp_path / "file").write_text("")
    assert look(root, cache=tmp_path / "file") == first
    assert "is not kept" in caplog.text


def test_another_version_of_the_readers_looks_again(root, tmp_path, worth_keeping, decodes, monkeypatch):
    look(root, cache=tmp_path / "cache")
    monkeypatch.setattr(survey_cache, "_code", lambda: "another")
    look(root, cache=tmp_path / "cache")
    assert len(decodes) == 8


def test_of_many_images_a_few_are_spread_over_the_split(root):
    observed = look(root, most=2)
    assert [sample.id for sample in observed.samples] == ["a/0.png", "b/1.png"]
    assert (observed.images, observed.complete) == (4, False)


def test_the_digest_is_of_ids_pixels_and_the_labels_that_count(root):
    observed = look(root)
    first, *remainder = observed.samples
    for changed in (
        first._replace(id="other"),
        first._replace(pixels="other"),
        first._replace(labels={"classification": {**first.labels["classification"], "digest": "other"}}),
    ):
        another = observed._replace(samples=(changed, *remainder))
        assert another.digest(["classification"]) != observed.digest(["classification"])
    assert another.digest([]) == observed.digest([])
    again = observed._replace(samples=(first._replace(content="another file of the same pixels"), *remainder))
    assert again.digest(["classification"]) == observed.digest(["classification"])


def test_embedded_scenes_are_kept_and_sources_without_files_are_not(tmp_path, worth_keeping):
    scenes = registry.build("digits", data_root=None, split="val", labels="detection", size=32, length=2)
    survey.look(scenes, name="scenes", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    survey.look(Subset(scenes, [0]), name="a part", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    scenes.embedded = False
    survey.look(scenes, name="other", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
