"""The three mini sets: the official files that they are cut from, and the parts cut out, by id lists."""

import importlib.resources
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.errors import UserError


class Origin(NamedTuple):
    """One official download and the places where its files may lie."""

    path: str  # below the base URL; the last part is the name of the archive
    sha256: str
    archive_folder: str  # folder inside the archive that the needed names are relative to
    extracted: tuple[str, ...]  # folders below --from_dir that an already extracted archive may have
    single_files: str | None = None  # path below the base URL where the files are served one by one


# Checksums: TensorFlow Datasets 4.9.10, url_checksums/voc.txt, url_checksums/coco_captions.txt and
# datasets/imagenette/checksums.tsv; torchvision and others publish MD5 sums of the same files.
VOC_TRAINVAL = Origin(
    "VOCtrainval_11-May-2012.tar",  # 2.0 GB
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "VOCdevkit/VOC2012",
    ("VOCdevkit/VOC2012", "VOC2012", "."),
)
COCO_IMAGES = Origin(
    "zips/val2017.zip",  # 816 MB, so without --from_dir the 300 images are fetched singly (48 MB)
    "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "val2017",
    ("val2017", "images/val2017", "."),
    single_files="val2017",
)
COCO_ANNOTATIONS = Origin(
    "annotations/annotations_trainval2017.zip",  # 253 MB
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "annotations",
    ("annotations", "."),
)
IMAGENETTE = Origin(
    "imagenette2-160.tgz",  # 99 MB
    "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
    "imagenette2-160",
    ("imagenette2-160", "."),
)

# (origin, {name at the origin: path in the set}) -> (path in the set, content)
Fetch = Callable[[Origin, Mapping[str, str]], Iterator[tuple[str, bytes]]]


class MiniSet(NamedTuple):
    """How one set is made."""

    folder: str
    base_url: str
    contents: Callable[[Mapping[str, Any], Fetch], Iterator[tuple[str, bytes]]]


def _voc_contents(id_list: Mapping[str, Any], fetch: Fetch) -> Iterator[tuple[str, bytes]]:
    stems = sorted(id_list["train"] + id_list["val"])
    for split, ids in {"train": id_list["train"], "val": id_list["val"], "trainval": stems}.items():
        yield f"ImageSets/Segmentation/{split}.txt", "".join(f"{stem}\n" for stem in ids).encode()
    paths = [path for stem in stems for path in (f"JPEGImages/{stem}.jpg", f"SegmentationClass/{stem}.png")]
    yield from fetch(VOC_TRAINVAL, {path: path for path in paths})


def _coco_contents(id_list: Mapping[str, Any], fetch: Fetch) -> Iterator[tuple[str, bytes]]:
    targets = {f"{stem}.jpg": f"{split}/{stem}.jpg" for split in ("train", "val") for stem in id_list[split]}
    for _, content in fetch(COCO_ANNOTATIONS, {"instances_val2017.json": "annotations"}):
        try:
            official = json.loads(content)
        except ValueError as error:
            raise UserError(f"instances_val2017.json: expected JSON, found {error}; fetch the official file") from error
        for split in ("train", "val"):
            subset = coco_subset(
                official,
                image_ids=[int(stem) for stem in id_list[split]],
                annotation_ids=id_list["annotations"][split],
                category_ids=id_list["categories"],
            )
            yield f"annotations/instances_{split}.json", json.dumps(subset).encode()
    yield from fetch(COCO_IMAGES, targets)


def _imagenette_contents(id_list: Mapping[str, Any], fetch: Fetch) -> Iterator[tuple[str, bytes]]:
    yield "wnid_to_name.json", json.dumps(id_list["class_names"], indent=1).encode()
    paths = [f"{split}/{stem}.JPEG" for split in ("train", "val") for stem in id_list[split]]
    yield from fetch(IMAGENETTE, {path: path for path in paths})


SETS: dict[str, MiniSet] = {
    "voc": MiniSet("mini-voc-seg", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012", _voc_contents),
    "coco": MiniSet("mini-coco-det", "http://images.cocodataset.org", _coco_contents),
    "imagenette": MiniSet("imagenette-160", "https://s3.amazonaws.com/fast-ai-imageclas", _imagenette_contents),
}


def load_id_list(name: str) -> dict[str, Any]:
    """Reads the committed id list of a set.

    Args:
        name: a key of `SETS`.

    Returns:
        `train` and `val` (ids), `sha256` (relative path to checksum, every file of the set) and what the set
        needs besides: `annotations` and `categories` (COCO), `class_names` (Imagenette).
    """
    file = importlib.resources.files("mtl_jax.data.minis") / "id_lists" / f"{SETS[name].folder}.json"
    return json.loads(file.read_text())


def coco_subset(
    official: Mapping[str, Any],
    *,
    image_ids: Sequence[int],
    annotation_ids: Sequence[int],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Filters COCO annotations down to the given images, boxes and categories, in the given order.

    Args:
        official: a parsed `instances_*.json`.
        image_ids: images to keep.
        annotation_ids: boxes to keep.
        category_ids: categories to keep; ids stay as they are.

    Returns:
        The same structure, smaller.

    Raises:
        UserError: an id is not in the official file.
    """
    id_lists = {"categories": category_ids, "images": image_ids, "annotations": annotation_ids}
    subset = {"info": official.get("info", {}), "licenses": official.get("licenses", [])}
    for section, ids in id_lists.items():
        by_id = {entry["id"]: entry for entry in official.get(section, [])}
        missing = [entry_id for entry_id in ids if entry_id not in by_id]
        if missing:
            raise UserError(
                f"instances_val2017.json: expected {len(ids)} {section} of the id list, found "
                f"{len(ids) - len(missing)}, without id {missing[0]}; fetch the official "
                "annotations_trainval2017.zip again"
            )
        subset[section] = [by_id[entry_id] for entry_id in ids]
    return subset
