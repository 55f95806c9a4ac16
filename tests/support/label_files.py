"""Writes one small dataset in every label format, each as other programs write it, by plain text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee")


class Object(NamedTuple):
    """A polygon with whole corners, whose box is around them."""

    label: str
    corners: tuple[tuple[int, int], ...]

    @property
    def box(self) -> tuple[int, int, int, int]:
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def rectangle(label: str, left: int, top: int, right: int, bottom: int) -> Object:
    return Object(label, ((left, top), (right, top), (right, bottom), (left, bottom)))


class Picture(NamedTuple):
    name: str
    size: tuple[int, int]  # width, height
    split: str
    objects: tuple[Object, ...]
    label: str  # of the whole image
    value: float

    @property
    def mask(self) -> np.ndarray:
        """Class of each pixel: no object lies over another, and every side runs along an axis."""
        mask = np.zeros(self.size[::-1], np.uint8)
        for entry in self.objects:
            for y in range(mask.shape[0]):
                for x in range(mask.shape[1]):
                    if _inside(entry.corners, x + 0.5, y + 0.5):
                        mask[y, x] = CLASSES.index(entry.label) + 1
        return mask


def _inside(corners: Sequence[tuple[int, int]], x: float, y: float) -> bool:
    edges = zip(corners, (*corners[1:], corners[0]), strict=True)
    return sum(x0 == x1 and min(y0, y1) < y < max(y0, y1) and x0 > x for (x0, y0), (x1, y1) in edges) % 2 == 1


L_SHAPE = Object("bee", ((2, 3), (9, 3), (9, 6), (5, 6), (5, 11), (2, 11)))
PICTURES = (
    Picture("Käfer 1.png", (32, 24), "train", (rectangle("ant", 12, 5, 31, 20), L_SHAPE), "ant", 1),
    Picture("b c.png", (24, 30), "train", (rectangle("bee", 0, 0, 24, 7), rectangle("ant", 3, 10, 8, 29)), "bee", 2.5),
    Picture("007.png", (30, 30), "train", (), "ant", -3),
    Picture("x.y.png", (40, 20), "val", (rectangle("bee", 11, 2, 39, 19),), "bee", 4),
    Picture("z.png", (21, 33), "val", (rectangle("ant", 1, 12, 20, 30), L_SHAPE._replace(label="ant")), "ant", 0),
)


def put(file: Path, picture: Picture) -> Path:
    """Writes the pixels of a picture, which its name decides."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(list(picture.name.encode()))
    Image.fromarray(numbers.integers(0, 256, (*picture.size[::-1], 3), np.uint8)).save(file)
    return file


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def coco(root: Path, *, outlines: str = "") -> None:
    for split in ("train", "val"):
        images, annotations = [], []
        for number, picture in enumerate(entry for entry in PICTURES if entry.split == split):
            put(root / split / picture.name, picture)
            width, height = picture.size
            images.append({"id": number + 5, "file_name": picture.name, "width": width, "height": height})
            for entry in picture.objects:
                left, top, right, bottom = entry.box
                annotation = {"id": len(annotations), "image_id": number + 5, "iscrowd": 0}
                annotation |= {"category_id": 3 + 4 * CLASSES.index(entry.label)}
                annotation |= {"bbox": [left, top, right - left, bottom - top]}
                if outlines == "polygons":
                    annotation["segmentation"] = [[side for corner in entry.corners for side in corner]]
                if outlines == "runs":
                    alone = picture._replace(objects=(entry,)).mask > 0
                    annotation["segmentation"] = {"size": [height, width], "counts": runs(alone)}
                annotations.append(annotation)
        categories = [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        text(root / "annotations" / f"instances_{split}.json", json.dumps(content))


def runs(inside: np.ndarray) -> list[int]:
    counts, last = [0], False
    for value in inside.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def voc(root: Path) -> None:
    for picture in PICTURES:
        put(root / "JPEGImages" / picture.name, picture)
        width, height = picture.size
        objects = "".join(
            f"<object><name>{entry.label}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for entry in picture.objects
            for left, top, right, bottom in [entry.box]
        )
        text(
            root / "Annotations" / f"{picture.name.removesuffix('.png')}.xml",
            f'<?xml version="1.0" encoding="utf-8"?><annotation><filename>{picture.name}</filename><size><width>{width}'
            f"</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>",
        )
    for split in ("train", "val"):
        names = [picture.name.removesuffix(".png") for picture in PICTURES if picture.split == split]
        text(root / "ImageSets/Main" / f"{split}.txt", "\n".join(names))


def yolo(root: Path, *, outlines: str = "") -> None:
    for picture in PICTURES:
        put(root / "images" / picture.split / picture.name, picture)
        width, height = picture.size
        lines = []
        for entry in picture.objects:
            left, top, right, bottom = entry.box
            box = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width)
            numbers = [*box, (bottom - top) / height]
            if outlines:
                numbers = [side for x, y in entry.corners for side in (x / width, y / height)]
            lines.append(f"{CLASSES.index(entry.label)} " + " ".join(f"{number:.6f}" for number in numbers))
        if lines:
            text(root / "labels" / picture.split / f"{picture.name.removesuffix('.png')}.txt", "\n".join(lines))
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: ant\n  1: bee\n")


def cvat(root: Path, *, outlines: str = "") -> None:
    images = []
    for number, picture in enumerate(PICTURES):
        put(root / "images" / picture.split / picture.name, picture)
        rendered = ""
        for entry in picture.objects:
            left, top, right, bottom = entry.box
            points = ";".join(f"{x}.00,{y}.00" for x, y in entry.corners)
            rendered += {
                "": f'<box label="{entry.label}" occluded="0" xtl="{left}.00" ytl="{top}.00" xbr="{right}.00" '
                f'ybr="{bottom}.00" z_order="0"></box>',
                "polygons": f'<polygon label="{entry.label}" points="{points}"></polygon>',
                "runs": _cvat_mask(entry, picture),
            }[outlines]
        width, height = picture.size
        images.append(
            f'<image id="{number}" name="{picture.name}" subset="{picture.split}" width="{width}" height="{height}">'
            f"{rendered}</image>"
        )
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in CLASSES)
    head = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    text(root / "annotations.xml", f'<?xml version="1.0"?><annotations>{head}{"".join(images)}</annotations>')


def _cvat_mask(entry: Object, picture: Picture) -> str:
    left, top, right, bottom = entry.box
    inside = picture._replace(objects=(entry,)).mask[top:bottom, left:right] > 0
    rle = ", ".join(map(str, runs(inside.T)))
    return (
        f'<mask label="{entry.label}" rle="{rle}" left="{left}" top="{top}" width="{right - left}" '
        f'height="{bottom - top}"></mask>'
    )


def labelme(root: Path, *, outlines: str = "") -> None:
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        shapes = []
        for entry in picture.objects:
            left, top, right, bottom = entry.box  # dragged from the lower right
            points, form = [[right, bottom], [left, top]], "rectangle"
            if outlines:
                points, form = [list(corner) for corner in entry.corners], "polygon"
            shapes.append({"label": entry.label, "points": points, "group_id": None, "shape_type": form, "flags": {}})
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": picture.name, "imageData": None}
        content |= {"imageWidth": picture.size[0], "imageHeight": picture.size[1]}
        text(root / picture.split / f"{picture.name.removesuffix('.png')}.json", json.dumps(content))


def label_studio(root: Path, *, outlines: str = "") -> None:
    tasks = []
    for number, picture in enumerate(PICTURES):
        put(root / picture.split / picture.name, picture)
        width, height = picture.size
        results = []
        for entry in picture.objects:
            left, top, right, bottom = entry.box
            value: dict = {"x": 100 * left / width, "y": 100 * top / height, "rotation": 0}
            value |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
            form = "rectanglelabels"
            if outlines:
                value = {"points": [[100 * x / width, 100 * y / height] for x, y in entry.corners]}
                form = "polygonlabels"
            result = {"type": form, "value": value | {form: [entry.label]}, "from_name": "label", "to_name": "image"}
            results.append(result | {"original_width": width, "original_height": height, "image_rotation": 0})
        address = f"/data/upload/1/0a1b2c3d-{quote(picture.name)}"
        data = {"image": address, "split": picture.split}
        tasks.append({"id": number, "data": data, "annotations": [{"result": results, "was_cancelled": False}]})
    text(root / "project-1.json", json.dumps(tasks))


def via(root: Path, *, outlines: str = "") -> None:
    for split in ("train", "val"):
        content = {}
        for picture in (entry for entry in PICTURES if entry.split == split):
            put(root / split / picture.name, picture)
            regions = []
            for entry in picture.objects:
                left, top, right, bottom = entry.box
                rendered: dict = {"name": "rect", "x": left, "y": top, "width": right - left, "height": bottom - top}
                if outlines:
                    xs, ys = map(list, zip(*entry.corners, strict=True))
                    rendered = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
                regions.append({"shape_attributes": rendered, "region_attributes": {"class": entry.label}})
            content[f"{picture.name}999"] = {"filename": picture.name, "size": 999, "regions": regions}
            content[f"{picture.name}999"]["file_attributes"] = {"caption": "", "public_domain": "no"}
        text(root / split / "via_region_data.json", json.dumps(content))


def open_images(root: Path) -> None:
    text(root / "class-descriptions-boxable.csv", "/m/0a,ant\n/m/0b,bee\n")
    for split, folder in (("train", "train"), ("val", "validation")):
        boxes = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
        presences = ["ImageID,Source,LabelName,Confidence"]
        for picture in (entry for entry in PICTURES if entry.split == split):
            put(root / folder / picture.name, picture)
            name, (width, height) = picture.name.removesuffix(".png"), picture.size
            for entry in picture.objects:
                left, top, right, bottom = entry.box
                sides = (left / width, right / width, top / height, bottom / height)
                row = ",".join(f"{side:.6f}" for side in sides)
                boxes.append(f"{name},xclick,/m/0{entry.label[0]},1,{row},0,0,0")
            shown = {entry.label for entry in picture.objects}
            presences += [f"{name},verification,/m/0{label[0]},{int(label in shown)}" for label in CLASSES]
        text(root / f"{folder}-annotations-bbox.csv", "\n".join(boxes))
        text(root / f"{folder}-annotations-human-imagelabels-boxable.csv", "\n".join(presences))


def csv_boxes(root: Path) -> None:
    for split in ("train", "val"):
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for picture in (entry for entry in PICTURES if entry.split == split):
            put(root / split / picture.name, picture)
            start = f"{picture.name},{picture.size[0]},{picture.size[1]}"
            rows += [f"{start},{entry.label},{','.join(map(str, entry.box))}" for entry in picture.objects]
            rows += [] if picture.objects else [f"{start},,,,,"]
        text(root / f"{split}.csv", "\r\n".join(rows))


COLOURS = {"background": (0, 0, 0), "ant": (200, 10, 10), "bee": (0, 0, 250)}


def colour_masks(root: Path) -> None:
    table = np.array(list(COLOURS.values()), np.uint8)
    for picture in PICTURES:
        put(root / picture.split / "images" / picture.name, picture)
        (root / picture.split / "masks").mkdir(exist_ok=True)
        Image.fromarray(table[picture.mask]).save(root / picture.split / "masks" / picture.name)
    text(root / "palette.csv", "name,r,g,b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in COLOURS.items()))


def number_masks(root: Path) -> None:
    for picture in PICTURES:
        put(root / "images" / picture.split / picture.name, picture)
        file = root / "labels" / picture.split / f"{picture.name.removesuffix('.png')}_mask.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.mask).save(file)
    text(root / "classes.txt", "background\nant\nbee\n")


def label_map(root: Path) -> None:
    """As CVAT exports masks: PASCAL VOC's folders, and its own file of colours."""
    table = np.array(list(COLOURS.values()), np.uint8)
    for picture in PICTURES:
        put(root / "JPEGImages" / picture.name, picture)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(table[picture.mask]).save(root / "SegmentationClass" / picture.name)
    lines = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLOURS.items())
    text(root / "labelmap.txt", f"# label:color_rgb:parts:actions\n{lines}")
    for split in ("train", "val"):
        names = [picture.name.removesuffix(".png") for picture in PICTURES if picture.split == split]
        text(root / "ImageSets/Segmentation" / f"{split}.txt", "\n".join(names))


def class_masks(root: Path) -> None:
    for picture in PICTURES:
        put(root / picture.split / "images" / picture.name, picture)
        for value, name in enumerate(CLASSES, 1):
            file = root / picture.split / "masks" / name / picture.name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(picture.mask == value, 255, 0).astype(np.uint8)).save(file)


def class_masks_by_name(root: Path) -> None:
    for picture in PICTURES:
        put(root / "images" / picture.split / picture.name, picture)
        for value, name in enumerate(CLASSES, 1):
            file = root / "masks" / picture.split / f"{picture.name.removesuffix('.png')}_{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(picture.mask == value, 1, 0).astype(np.uint8)).save(file)


def class_folders(root: Path) -> None:
    for picture in PICTURES:
        put(root / picture.split / picture.label / picture.name, picture)


def csv_classes(root: Path) -> None:
    rows = ["image,split,kind"]
    for picture in PICTURES:
        put(root / "images" / picture.name, picture)
        rows.append(f"images/{picture.name},{picture.split},{picture.label}")
    text(root / "labels.csv", "\ufeff" + "\r\n".join(rows))


def cvat_tags(root: Path) -> None:
    images = []
    for picture in PICTURES:
        put(root / "images" / picture.split / picture.name, picture)
        width, height = picture.size
        tag = f'<tag label="{picture.label}" source="manual"></tag>'
        head = f'<image id="0" name="{picture.split}/{picture.name}" subset="{picture.split}"'
        images.append(f'{head} width="{width}" height="{height}">{tag}</image>')
    text(root / "annotations.xml", f"<annotations><version>1.1</version>{''.join(images)}</annotations>")


def choices(root: Path) -> None:
    tasks = []
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        result = {"type": "choices", "value": {"choices": [picture.label]}, "from_name": "a", "to_name": "image"}
        number = {"type": "number", "value": {"number": picture.value}, "from_name": "b", "to_name": "image"}
        data = {"image": f"/data/local-files/?d=x/{quote(picture.name)}", "split": picture.split}
        tasks.append({"data": data, "annotations": [{"result": [result, number]}]})
    text(root / "export.json", json.dumps(tasks))


def flags(root: Path) -> None:
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        content = {"flags": {name: name == picture.label for name in CLASSES}, "shapes": []}
        content |= {"imagePath": f"..\\{picture.split}\\{picture.name}", "imageData": None}
        text(root / picture.split / f"{picture.name.removesuffix('.png')}.json", json.dumps(content))


def csv_values(root: Path) -> None:
    rows = ["file;age;other"]
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        rows.append(f"{picture.name};{str(picture.value).replace('.', ',')};x")
    text(root / "faces.csv", "\n".join(rows))


def csv_flags(root: Path) -> None:
    rows = ["image," + ",".join(CLASSES)]
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        shown = {entry.label for entry in picture.objects}
        rows.append(f"{picture.name}," + ",".join(str(int(name in shown)) for name in CLASSES))
    text(root / "tags.csv", "\n".join(rows))


def csv_tags(root: Path) -> None:
    rows = ["image,tags"]
    for picture in PICTURES:
        put(root / picture.split / picture.name, picture)
        rows.append(f"{picture.name},{'|'.join(sorted({entry.label for entry in picture.objects}))}")
    text(root / "tags.csv", "\n".join(rows))


def depth(root: Path) -> None:
    for picture in PICTURES:
        put(root / "rgb" / picture.split / picture.name, picture)
        file = root / "depth" / picture.split / picture.name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(millimetres(picture)).save(file)


def millimetres(picture: Picture) -> np.ndarray:
    """0 is missing."""
    numbers = np.random.default_rng(list(picture.name.encode()))
    return numbers.integers(0, 9000, picture.size[::-1]).astype(np.uint16)


Writer = Callable[[Path], None]
BOXES: dict[str, tuple[str, Writer]] = {  # name of the test -> format, writer
    "coco": ("coco", coco),
    "voc": ("voc", voc),
    "yolo": ("yolo", yolo),
    "cvat": ("cvat", cvat),
    "labelme": ("labelme", labelme),
    "label studio": ("label_studio", label_studio),
    "via": ("via", via),
    "open images": ("open_images", open_images),
    "csv": ("csv", csv_boxes),
}
MASKS: dict[str, tuple[str, Writer]] = {
    "coco polygons": ("coco", functools.partial(coco, outlines="polygons")),
    "coco runs": ("coco", functools.partial(coco, outlines="runs")),
    "yolo": ("yolo", functools.partial(yolo, outlines="polygons")),
    "cvat polygons": ("cvat", functools.partial(cvat, outlines="polygons")),
    "cvat masks": ("cvat", functools.partial(cvat, outlines="runs")),
    "labelme": ("labelme", functools.partial(labelme, outlines="polygons")),
    "label studio": ("label_studio", functools.partial(label_studio, outlines="polygons")),
    "via": ("via", functools.partial(via, outlines="polygons")),
    "colours": ("masks", colour_masks),
    "numbers": ("masks", number_masks),
    "label map": ("masks", label_map),
    "class masks": ("class_masks", class_masks),
    "class masks by name": ("class_masks", class_masks_by_name),
}
CLASS_LABELS: dict[str, tuple[str, Writer]] = {
    "folders": ("class_folders", class_folders),
    "csv": ("csv", csv_classes),
    "cvat": ("cvat", cvat_tags),
    "label studio": ("label_studio", choices),
    "labelme": ("labelme", flags),
}
TAGS: dict[str, tuple[str, Writer]] = {
    "coco": ("coco", coco),
    "open images": ("open_images", open_images),
    "csv of 0 and 1": ("csv", csv_flags),
    "csv of lists": ("csv", csv_tags),
}
