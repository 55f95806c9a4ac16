"""The images that a list names, each with maps of the same name in other folders: masks, depths."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtl_jax.data import orientation
from mtl_jax.data.files import SUFFIXES, ImageFolderIndex, read_names
from mtl_jax.data.images import read_header
from mtl_jax.data.sources.base import Reading, warn_once
from mtl_jax.errors import UserError


class ListedImages:
    """Files by their number in a list.

    Args:
        file: the list, one name per line, with or without suffix.
        images: folder of the images.
        maps: kind of a map -> its folder; the size of the first decides how images that EXIF turns are meant.
        annotated_on: one of `orientation.ANNOTATED_ON`.

    Raises:
        UserError: the list cannot be read or is empty.
    """

    def __init__(self, file: Path, *, images: Path, maps: Mapping[str, Path], annotated_on: str) -> None:
        self.file = file
        self._images = ImageFolderIndex(images)
        names, repeated = read_names(file)
        self.names = _unique_names(names, self._images)
        self._repeated = repeated + len(names) - len(self.names)
        self._maps = {kind: ImageFolderIndex(folder) for kind, folder in maps.items()}
        self._map_nouns = " and ".join(f"{kind}s" for kind in maps)
        self._annotated_on = orientation.check(annotated_on)
        self.is_read = False  # whether `reading` was accessed; until then warnings are logged immediately

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Path:
        """Returns the file of an image."""
        return self._images.find(self.names[index])

    def map(self, kind: str, index: int) -> Path:
        """Returns the file of a map, whose suffix need not be its image's."""
        return self._maps[kind].find(str(Path(self.names[index]).with_name(self.image(index).stem)))

    def is_stored(self, header: orientation.Header, index: int) -> bool:
        """Whether the maps of an image are taken as stored, where their size fits the upright image too.

        Raises:
            UserError: nothing decides.
        """
        if not header.is_turned or header.upright_size != (header.width, header.height):
            return False
        return self._convention.decided(self.image(index), self._map_nouns)

    def reading(self, notes: tuple[str, ...] = ()) -> Reading:
        """Returns what was found, with more notes; looks at the head of every image."""
        self.is_read = True
        counts = {"images": len(self), "names listed twice": self._repeated, "images turned": self._convention.turned}
        return Reading({name: count for name, count in counts.items() if count}, (*self._convention.notes, *notes))

    @functools.cached_property
    def _convention(self) -> orientation.Convention:
        convention = orientation.judge(
            self._sizes(), annotated_on=self._annotated_on, noun=self._map_nouns, location=self.file
        )
        for note in () if self.is_read else convention.notes:
            warn_once(note)
        return convention

    def _sizes(self) -> Iterator[tuple[str, orientation.Header, tuple[int, int] | None]]:
        kind = next(iter(self._maps))
        for index, name in enumerate(self.names):
            try:
                header = read_header(self.image(index))
                of_map = read_header(self.map(kind, index)) if header.is_turned else header
            except UserError:
                continue  # is reported when the image is read
            yield name, header, (of_map.width, of_map.height)

    def maps(self, kind: str) -> Iterator[Path]:
        """Yields the files of a kind of map, those that are there."""
        for index in range(len(self)):
            with contextlib.suppress(UserError):  # is reported when the map is read
                yield self.map(kind, index)


def _unique_names(names: Sequence[str], images: ImageFolderIndex) -> tuple[str, ...]:
    """Leaves out names that mean the file of an earlier one, as "a" and "a.jpg" do."""
    spellings = Counter(_without_suffix(name) for name in names)
    unique_names: list[str] = []
    files: set[Path] = set()
    for name in names:
        if spellings[_without_suffix(name)] > 1:
            with contextlib.suppress(UserError):  # is reported when the image is read
                file = images.find(name)
                if file in files:
                    continue
                files.add(file)
        unique_names.append(name)
    return tuple(unique_names)


def _without_suffix(name: str) -> Path:
    path = Path(name)
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
