"""Finds a dataset's files: which are images by their suffix, which belong to an operating system, what a list names."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from mtl_jax.data.sources.base import file_in, read_text
from mtl_jax.errors import UserError

# Of the formats that `images.FORMATS` names, as Pillow registers them.
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs"),
    )
)
# What Windows, macOS, Linux and file servers leave in folders, besides all that begins with a dot.
SYSTEM_NAMES = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle", "@recycle"),
        *("lost+found", "$recycle.bin", "system volume information", "__pycache__"),
    )
)


def is_image(path: PurePath) -> bool:
    """Whether a file is an image by its suffix, and no system's own."""
    return path.suffix.lower() in SUFFIXES and not is_system(path)


def is_system(path: PurePath) -> bool:
    """Whether a file or folder is one that an operating system makes, such as .DS_Store, ._photo.jpg or Thumbs.db."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and the folders below it, sorted, in no system's folder; links are followed once."""
    visited: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # What is sorted in place is walked in that order; a folder that leads back into itself is not entered again.
        folders[:] = [] if real in visited else sorted(name for name in folders if not is_system(PurePath(name)))
        if real not in visited:
            yield from (Path(place, name) for name in sorted(names))
        visited.add(real)


def skipped(paths: list[Path]) -> Counter[str]:
    """Counts files that are not read by their suffix, systems' own together."""
    kinds = ("a system's own" if is_system(path) else path.suffix.lower() or "no suffix" for path in paths)
    return Counter(f"files skipped: {kind}" for kind in kinds)


def read_names(file: Path, *, noun: str = "image name") -> tuple[tuple[str, ...], int]:
    """Reads a list with one name per line; spaces inside a name are part of it.

    Args:
        file: the list.
        noun: a line is, as the error names it.

    Returns:
        Each name once, in the list's order; and how many lines repeat an earlier one.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    lines = [name for line in read_text(file).splitlines() if (name := line.strip())]
    if not lines:
        raise UserError(f"{file}: expected one {noun} per line, found none; use a complete copy")
    names = tuple(dict.fromkeys(lines))
    return names, len(lines) - len(names)


class ImageFolderIndex:
    """Finds the images of one folder by name, with or without suffix, whatever readable suffix they have.

    Args:
        folder: may have folders inside, which names may lead into with "/".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stems = functools.cache(_stems)

    def names(self) -> set[str]:
        """Returns the images' names without suffix."""
        return set(self._stems(self.folder))

    def find(self, name: str) -> Path:
        """Returns the file that a name means: itself, or the one that has it as its stem.

        Raises:
            UserError: there is none, there are several, or the name leads outside.
        """
        path = file_in(self.folder, name)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            return path
        names = self._stems(path.parent).get(path.name, [])
        if len(names) > 1:
            raise UserError(
                f"{path}: expected one image of this name, found {', '.join(names)}; remove all but one, or write the "
                "suffix in the list"
            )
        if not names:
            raise UserError(
                f"{path}: expected an image of this name (.jpg, .png or another of {len(SUFFIXES)} suffixes), found "
                "none; add the file or correct the list"
            )
        return path.parent / names[0]


def _stems(folder: Path) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_image(path):
            stems.setdefault(path.stem, []).append(path.name)
    return stems
