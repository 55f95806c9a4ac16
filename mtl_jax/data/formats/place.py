"""Index of the files below a dataset's path, and lookup of the images that label files name."""

from __future__ import annotations

import functools
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from mtl_jax.data.files import is_image, is_system, walk
from mtl_jax.data.formats.entries import split_of
from mtl_jax.data.formats.parsing import header_of, lines_of, read_xml
from mtl_jax.data.sources.base import read_json
from mtl_jax.errors import UserError

DETECTION_FILES = 8  # files of a suffix that format detection reads


class Place:
    """Location of a dataset: a folder, or one file.

    Args:
        path: the folder or file; "table.csv:column" names a column of a table.
        images: folder of the images, if it is separate.

    Raises:
        UserError: the path does not exist.
    """

    def __init__(self, path: str | Path, *, images: str | Path | None = None) -> None:
        self._json: dict[Path, Any] = {}
        self.broken: list[UserError] = []  # errors of files that format detection read
        self.path, self.column = _with_column(Path(path).expanduser())
        self.is_file = self.path.is_file()
        self.root = self.path.parent if self.is_file else self.path
        self.images_root = Path(images).expanduser() if images is not None else None
        if self.images_root is not None and not self.images_root.is_dir():
            raise UserError(f"{self.images_root}: expected the folder of the images, found none; correct the path")

    @functools.cached_property
    def files(self) -> list[Path]:
        """All files below the folder, sorted, without system files; or the single file."""
        if self.is_file:
            return [self.path]
        return [path for path in walk(self.root) if not is_system(path)]

    def by_suffix(self, *suffixes: str) -> list[Path]:
        """Returns the files with one of the suffixes, ignoring case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def split_of(self, file: Path) -> str:
        """Returns the split that the folders of a file denote; the nearest folder has priority."""
        folders = file.relative_to(self.root).parts[:-1] if self.root in file.parents else file.parts[:-1]
        return split_of(*reversed(folders))

    def listed_split_of(self, image: Path) -> str:
        """Returns the split whose list, such as train.txt, contains an image; "" if none does."""
        return self._index.get(image.stem, "")

    @functools.cached_property
    def _index(self) -> dict[str, str]:
        """Image stem -> split, from the list files."""
        stems = {image.stem for image in self.images}
        splits: dict[str, str] = {}
        for file in (file for file in self.below if file.suffix.lower() == ".txt" and split_of(file.stem)):
            for line in _lines(file):
                name = line.replace("\\", "/").rpartition("/")[2]
                stem = PurePosixPath(name).stem if is_image(PurePosixPath(name)) else name
                if stem in stems:
                    splits.setdefault(stem, split_of(file.stem))
        return splits

    @functools.cached_property
    def below(self) -> list[Path]:
        """All files below the folder, or below the folder of the file."""
        return [path for path in walk(self.root) if not is_system(path)] if self.is_file else self.files

    @functools.cached_property
    def images(self) -> list[Path]:
        """The images: of the separate image folder, otherwise of the label folder or its parent."""
        if self.images_root is not None:
            return [path for path in walk(self.images_root) if is_image(path)]
        return [path for path in self.below if is_image(path)] or [
            path for path in ([] if self.is_file else walk(self.root.parent)) if is_image(path)
        ]

    @functools.cached_property
    def below_images(self) -> list[Path]:
        """The images below the folder."""
        return [path for path in self.below if is_image(path)]

    def json(self, file: Path) -> Any:
        """Returns the content of a JSON file, which is cached.

        Raises:
            UserError: the file cannot be read, or is not JSON.
        """
        if file not in self._json:
            self._json[file] = read_json(file)
        return self._json[file]

    def first_json(self) -> Iterator[Any]:
        """Yields the content of the first readable JSON files, for format detection; errors are added to `broken`."""
        yield from self._first(self.by_suffix(".json"), self.json)

    def first_xml(self) -> Iterator[ElementTree.Element]:
        """Yields the first readable XML files, for format detection."""
        yield from self._first(self.by_suffix(".xml"), read_xml)

    def first_tables(self) -> Iterator[tuple[Path, list[str]]]:
        """Yields the first readable tables with their headers, for format detection."""
        yield from self._first(self.by_suffix(".csv", ".tsv"), lambda file: (file, header_of(file)))

    def _first(self, files: list[Path], reader: Callable[[Path], Any]) -> Iterator[Any]:
        for file in files[:DETECTION_FILES]:
            try:
                yield reader(file)
            except UserError as error:
                self.broken.append(error)


class Finder:
    """Resolves image names of label files among the indexed images; no other file is ever opened.

    Args:
        place: location of the dataset.

    Attributes:
        by_name_alone: number of images found in another folder than the named one.
    """

    def __init__(self, place: Place) -> None:
        self.by_name_alone = 0
        self._roots = [place.root, *([place.images_root] if place.images_root else [])]
        self._index: dict[str, Path] = {}
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._add(place.images)
        self._above = place.root.parent if place.is_file and place.images_root is None else None

    def _add(self, images: list[Path]) -> None:
        for path in images:
            self._index.setdefault(_key(path.as_posix()), path)
            for name in {_key(path.name), _key(path.stem)}:
                self._by_name[name].append(path)

    def find(self, name: str, near: Path) -> Path | None:
        """Returns the image of a name in a label file; None if there is none, or several.

        Args:
            name: name in the file: a path relative to the file or the dataset, or of another machine.
            near: folder of the label file.
        """
        image = self._find(name, near)
        if image is None and self._above is not None:  # a label file next to the image folder
            above, self._above = self._above, None
            self._add([path for path in walk(above) if is_image(path)])
            image = self._find(name, near)
        return image

    def _find(self, name: str, near: Path) -> Path | None:
        clean_name = name.replace("\\", "/").removeprefix("file://")
        for spelling in dict.fromkeys((clean_name, unquote(clean_name), unquote(clean_name).partition("?d=")[2])):
            if not spelling:
                continue
            for folder in (near, *self._roots):
                image = self._index.get(_key(posixpath.normpath(posixpath.join(folder.as_posix(), spelling))))
                if image is not None:
                    return image
            ends = self._ends_with(_key(spelling))
            if len(ends) == 1:
                self.by_name_alone += 1
                return ends[0]
        return None

    def _ends_with(self, name: str) -> list[Path]:
        """Returns the images whose path shares the longest trailing part with a name."""
        components = PurePosixPath(name).parts
        best, length = self._by_name.get(components[-1], []) if components else [], 1
        while len(best) > 1 and length < len(components):
            length += 1
            closer = [path for path in best if _key(path.as_posix()).split("/")[-length:] == list(components[-length:])]
            if not closer:
                break
            best = closer
        return best


def _lines(file: Path) -> list[str]:
    try:
        return [line for _, line in lines_of(file)]
    except UserError:  # not a text file
        return []


def _key(path: str) -> str:
    """Normalises a name: systems differ in case and in the encoding of accents."""
    return unicodedata.normalize("NFC", path).casefold()


def _with_column(path: Path) -> tuple[Path, str | None]:
    try:
        if path.exists():
            return path, None
        file_name, colon, column = path.name.rpartition(":")
        if colon and file_name and path.with_name(file_name).is_file():
            return path.with_name(file_name), column
    except (OSError, ValueError):  # not a valid file name
        pass
    raise UserError(f"{path}: expected a folder or file of labels, found none; correct the path")
