"""The TFDS source, on a dataset that is prepared and read without TensorFlow."""

import importlib
import io
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.data.orientation import Header
from mtl_jax.data.sources import registry, tfds
from mtl_jax.errors import UserError

FIELDS = {
    "image": "image",
    "classification": "label",
    "segmentation": "mask",
    "detection": {"boxes": "objects/bbox", "label": "objects/label", "crowd": "objects/is_crowd"},
}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def examples(count, box):
    for i in range(count):
        boxes = [
            {"bbox": box(0.1, 0.2, 0.5, 0.6), "label": 1, "is_crowd": i == 1},
            {"bbox": box(0.5, 0.5, 0.5, 0.9), "label": 0, "is_crowd": False},  # of no height
        ]
        yield (
            i,
            {
                "image": png(np.full((20, 30, 3), i, np.uint8)),
                "mask": png(np.full((20, 30), i, np.uint8)),
                "outline": png(np.full((20, 30), 255 * (i % 2), np.uint8)),
                "label": i % 2,
                "objects": boxes,
            },
        )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The root of a tiny dataset, as `tfds build` leaves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's own
        tfds = importlib.import_module("tensorflow_datasets")
    features = tfds.features

    class TinyScenes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            box = {
                "bbox": features.BBoxFeature(),
                "label": features.ClassLabel(names=["mug", "cup"]),
                "is_crowd": np.bool_,
            }
            content = {
                "image": features.Image(shape=(None, None, 3)),
                "mask": features.Image(shape=(None, None, 1)),
                "outline": features.Image(shape=(None, None, 1)),
                "label": features.ClassLabel(names=["cat", "dog"]),
                "objects": features.Sequence(box),
            }
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(content))

        def _split_generators(self, _):
            return {"train": examples(3, features.BBox), "validation": examples(2, features.BBox)}

        def _generate_examples(self):
            raise NotImplementedError

    root = tmp_path_factory.mktemp("tfds")
    builder = TinyScenes(data_dir=root / "tensorflow_datasets", file_format="array_record")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return root


def opened(root, split="train", **options):
    return registry.build("tfds", data_root=root, split=split, **{"name": "tiny_scenes", "fields": FIELDS, **options})


def by_level(source):
    """Samples in the order they were made; TFDS shuffles on writing."""
    return sorted((source[i] for i in range(len(source))), key=lambda sample: int(sample["image"][0, 0, 0]))


def test_every_label_is_read_by_its_field(prepared):
    source = opened(prepared, classes={"segmentation": ("a", "b", "c")})
    samples = by_level(source)
    assert len(samples) == 3
    assert source.class_names == {
        "classification": ("cat", "dog"),
        "segmentation": ("a", "b", "c"),
        "detection": ("mug", "cup"),
    }
    for level, sample in enumerate(samples):
        assert (sample["image"] == level).all()
        assert (sample["labels"]["segmentation"]["mask"] == level).all()
        assert int(sample["labels"]["classification"]["label"]) == level % 2
    assert "tensorflow" not in sys.modules


def test_normalised_boxes_become_pixels_x_first_without_degenerate_ones(prepared):
    fields = by_level(opened(prepared))[1]["labels"]["detection"]
    np.testing.assert_allclose(fields["boxes_xyxy"], [[6, 2, 18, 10]], rtol=1e-6)
    assert fields["label"].tolist() == [1]
    assert fields["crowd"].tolist() == [True]
    np.testing.assert_allclose(fields["area"], [96], rtol=1e-6)


def test_validation_and_slices_of_splits_are_found(prepared):
    assert len(opened(prepared, "val")) == 2
    assert len(opened(prepared, "val", splits={"val": "train[:1]"})) == 1


def test_mask_value_outside_the_given_classes_is_refused(prepared):
    source = opened(prepared, classes={"segmentation": ("a", "b")})
    with pytest.raises(UserError, match=r"tiny_scenes train example \d mask: expected class indices 0 to 1"):
        by_level(source)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("void", "value"), [(None, 1), (255, 255)])
def test_masks_of_0_and_255_are_two_classes_unless_255_is_named_void(prepared, split, void, value):
    fields = {"image": "image", "segmentation": "outline"}
    source = opened(prepared, split, fields=fields, classes={"segmentation": ("out", "in")}, void=void)
    assert [source.class_names["segmentation"][0] in note for note in source.reading.notes] == [True] * (void is None)
    result = [np.unique(sample["labels"]["segmentation"]["mask"]).tolist() for sample in by_level(source)]
    assert result == [[value if level % 2 else 0] for level in range(len(source))]


def test_a_class_outside_the_given_table_is_refused(prepared):
    for label, path in (
        ("classification", "label"),
        ("detection", {"boxes": "objects/bbox", "label": "objects/label"}),
    ):
        source = opened(prepared, fields={"image": "image", label: path}, classes={label: ("only",)})
        with pytest.raises(UserError, match=rf"{label}: expected classes .* to 0, found 1; list every class"):
            by_level(source)


def test_labels_without_names_are_refused_for_a_task_that_has_classes(prepared, tiny_backbone):
    config = config_lib.base()
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.seg = {"kind": "segmentation", "classes": ("a", "b", "c")}
    options = {"name": "tiny_scenes", "fields": {"image": "image", "segmentation": "mask"}}
    config.streams.s = config_lib.stream("tfds", {"seg": "segmentation"}, options=options)
    with pytest.raises(UserError, match=r"classes: expected names .* set it to {'segmentation': 3 \(a, b, c\)}"):
        experiment.source(experiment.build(config.to_dict(), data_root=prepared), "s", training=True)


def test_what_was_read_is_counted(prepared):
    counts = {"images": 3, "boxes": 3, "boxes dropped: degenerate": 3, "crowds among them": 1}
    assert opened(prepared).reading.counts == counts


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "no_such_scenes"}, "expected the TFDS dataset no_such_scenes .*array_record"),
        ({"splits": {"train": "holdout"}}, "Unknown split 'holdout'"),
        ({"fields": {"image": "picture"}}, "expected a field 'picture', found .*image"),
        ({"fields": {"image": "image", "classification": "objects/name"}}, "expected a field 'objects/name'"),
        ({"fields": {"classification": "label"}}, "expected fields with an image"),
        ({"fields": {"image": "image", "age": "label"}}, "expected fields with an image, of"),
        ({"fields": {"image": "image", "detection": {"boxes": "objects/bbox"}}}, "with boxes, label"),
    ],
)
def test_what_is_not_there_is_refused_with_the_reason(prepared, options, reason):
    with pytest.raises(UserError, match=reason):
        opened(prepared, **options)


def boxes_of(*rows):
    example = {"boxes": np.array(rows, np.float32).reshape(-1, 4), "label": np.arange(len(rows)) * 0}
    paths = {"boxes": "boxes", "label": "label"}
    return tfds._boxes(example, paths, Header(20, 10, 1), False, "x")


def test_boxes_in_pixels_are_refused_instead_of_clipped_to_the_whole_image():
    with pytest.raises(UserError, match=r"expected corners of boxes as shares of the image, .*, found 4"):
        boxes_of((0, 0, 4, 8))


def test_a_box_that_is_listed_twice_is_one():
    retained, dropped = boxes_of((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5), (0, 0, 1.0, 0.5), (0.5, 0.5, 0.5, 0.6))
    assert retained["boxes_xyxy"].tolist() == [[0, 0, 10, 5], [0, 0, 10, 10]]
    assert dropped == {"boxes dropped: degenerate": 1, "boxes dropped: listed twice": 1}


def test_a_mask_in_colour_is_refused():
    with pytest.raises(UserError, match=r"expected a mask of one channel, found the shape \[2, 2, 3\]"):
        tfds._numbers(np.zeros((2, 2, 3), np.uint8), "x")
