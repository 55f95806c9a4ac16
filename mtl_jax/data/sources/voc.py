"""PASCAL VOC semantic segmentation: JPEGImages, SegmentationClass and the lists of ImageSets/Segmentation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import masks
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import read_image
from mtl_jax.data.pixel_labels import decode_mask, mask_palette, mask_values
from mtl_jax.data.sources.base import SPLITS, Reading, Sample, check_split, find_first, is_chosen, warn_once
from mtl_jax.data.sources.listed import ListedImages
from mtl_jax.errors import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VocSegmentation:
    """Images with masks; label "segmentation".

    Images and masks may have any suffix that is read; a name with two files in one folder is refused.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; the list ImageSets/Segmentation/{split}.txt.
        folder: the dataset's folder below `data_root`; VOC2012 or VOCdevkit/VOC2012 inside it is found too.
        classes: names of the mask values, from 0.
        as_background: names of classes whose pixels are read as the first class, as if nobody had looked for them.
        images_with: names of classes; only images that show one of them are kept. Empty keeps all. Like
            `images_without`, it reads all masks once.
        images_without: names of classes; images that show one of them are left out.
        void: the only mask value of pixels that nobody labelled; by default 255 (65535 of more than 255 classes) and
            `ignore_label`. Without it, masks of two classes that hold 0 and 255 alone are read as the two classes.
        ignore_label: what the task calls void.
        annotated_on: the masks of images that EXIF turns are of the "upright" or the "stored" pixels where their size
            does not decide; "auto" follows those where it does.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

    Raises:
        UserError: no dataset there, an empty list of images, an unknown class, or no image left.

    References:
        Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes
        (VOC) Challenge", 2010.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        folder: str = "mini-voc-seg",
        classes: Sequence[str] = VOC_CLASSES,
        as_background: Sequence[str] = (),
        images_with: Sequence[str] = (),
        images_without: Sequence[str] = (),
        void: int | None = None,
        ignore_label: int | None = None,
        annotated_on: str = "auto",
        grey_bits: int = 0,
    ) -> None:
        self.grey = GreyBits(grey_bits)
        base = Path(data_root).expanduser() / folder
        tails = ("", "VOC2012", "VOCdevkit/VOC2012")
        index = find_first(
            [base / tail / "ImageSets/Segmentation" / f"{check_split(split)}.txt" for tail in tails],
            noun="a VOC segmentation dataset",
            data_root=data_root,
        )
        self.folder = index.parents[2]
        self.class_names = {"segmentation": tuple(classes)}
        count = len(self.class_names["segmentation"])
        self.labelled_classes = {"segmentation": tuple(name for name in classes if name not in as_background)}
        self._background_values = _numbers("as_background", as_background, tuple(classes))
        self._void = masks.void_values(void, ignore_label, count)
        self._may_be_binary = void is None and count == 2
        self._files = _listed_images(index, self.folder, annotated_on)
        if images_with or images_without:
            self._keep(images_with, images_without)

    def __len__(self) -> int:
        return len(self._files)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._files.image(index)

    def __getitem__(self, index: int) -> Sample:
        image = read_image(self.image_origin(index), grey_bits=self.grey)
        mask = decode_mask(
            self._files.map("mask", index),
            image=image,
            class_count=len(self.class_names["segmentation"]),
            void=self._void,
            binary=self._is_binary,
            stored=self._files.is_stored(image.header, index),
        )
        mask[np.isin(mask, self._background_values)] = 0
        return {"image": image.upright, "labels": {"segmentation": {"mask": mask}}, "id": self._files.names[index]}

    @functools.cached_property
    def reading(self) -> Reading:
        """Counts and warnings of reading; looks at the head of every file, and at every mask of two classes."""
        self._files.is_read = True
        notes = [*self._palettes()]
        if self._is_binary:
            notes.append(self._binary_note())
        elif self._may_be_binary and self._hold_0_and_255(self._files.file):
            notes.append(
                f"The masks of this split hold 0 and 255 alone (first: {next(self._files.maps('mask'), 'none')}), but "
                "the training masks do not: 255 is void, as there; export both splits alike if it is a class."
            )
        return self._files.reading(tuple(notes))

    @functools.cached_property
    def _is_binary(self) -> bool:
        """The training masks decide for both splits, so that one value means one class."""
        if not self._may_be_binary:
            return False
        training = self._files.file.with_name(f"{SPLITS[0]}.txt")
        decides = training if training.exists() else self._files.file
        is_binary = self._hold_0_and_255(decides)
        if is_binary and not self._files.is_read:
            warn_once(self._binary_note())
        return is_binary

    def _hold_0_and_255(self, names: Path) -> bool:
        # Both change when files come or go, so that a run looks once at masks that it opens many times.
        changed_ns = tuple(path.stat().st_mtime_ns for path in (names, self.folder / "SegmentationClass"))
        return _are_binary(names, self.folder, changed_ns)

    def _binary_note(self) -> str:
        return masks.binary_note(next(self._files.maps("mask"), "none"), self.class_names["segmentation"])

    def _keep(self, images_with: Sequence[str], images_without: Sequence[str]) -> None:
        table = self.class_names["segmentation"]
        included = _numbers("images_with", images_with, table)
        excluded = _numbers("images_without", images_without, table)
        chosen_names = []
        for index, name in enumerate(self._files.names):
            with contextlib.suppress(UserError):  # is reported when the mask is read
                if not is_chosen(self._classes_shown(index), included, excluded):
                    continue
            chosen_names.append(name)
        if not chosen_names:
            expected = f"images with {tuple(images_with)}, without {tuple(images_without)}"
            raise UserError(f"{self._files.file}: expected {expected}, found none; choose other classes")
        self._files.names = tuple(chosen_names)

    def _classes_shown(self, index: int) -> set[int]:
        values = set(np.unique(mask_values(self._files.map("mask", index))).tolist())
        return {int(value > 0) for value in values} if self._is_binary else values

    def _palettes(self) -> Iterator[str]:
        """Yields a note where one value has two colours."""
        first_palette: tuple[Path, bytes] | None = None
        for file in self._files.maps("mask"):
            palette = mask_palette(file)
            if palette is None:
                continue
            file_before, before = first_palette = first_palette or (file, palette)
            count = min(len(before), len(palette), 3 * len(self.class_names["segmentation"]))
            if before[:count] != palette[:count]:
                value = next(i for i in range(count) if before[i] != palette[i]) // 3
                yield (
                    f"Value {value} has another colour in the palette of {file} than in that of {file_before}: values "
                    "are read, not colours; look whether it is the same class, or export all masks with one palette."
                )
                return


def _numbers(option: str, names: Sequence[str], classes: Sequence[str]) -> list[int]:
    unknown = [name for name in names if name not in classes[1:]]
    if unknown:
        raise UserError(f"{option}: expected some of {', '.join(classes[1:])}, found {', '.join(unknown)}")
    return [classes.index(name) for name in names]


def _listed_images(file: Path, folder: Path, annotated_on: str) -> ListedImages:
    maps = {"mask": folder / "SegmentationClass"}
    return ListedImages(file, images=folder / "JPEGImages", maps=maps, annotated_on=annotated_on)


@functools.lru_cache(maxsize=16)
def _are_binary(file: Path, folder: Path, changed_ns: tuple[int, ...]) -> bool:
    """Whether the masks of a list hold 0 and 255 alone; `changed_ns` distinguishes states of the folder."""
    del changed_ns
    files = _listed_images(file, folder, "auto")
    return masks.is_binary(_readable(files.maps("mask")), 2)


def _readable(files: Iterable[Path]) -> Iterator[np.ndarray]:
    for file in files:
        with contextlib.suppress(UserError):  # is reported when the mask is read
            yield mask_values(file)
