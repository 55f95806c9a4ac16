"""Reads chosen files out of a tar, a zip or a folder. Nothing is unpacked, so nothing can land elsewhere."""

import gzip
import lzma
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from mtl_jax.data.download import disk_errors
from mtl_jax.errors import UserError

# What the readers of the standard library raise on damaged input; RuntimeError: an encrypted zip.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def read_files(place: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Reads the named files, in the order in which the archive holds them.

    Args:
        place: a folder, a `.zip`, or a tar in any compression.
        names: relative paths with forward slashes.

    Yields:
        (name, content) of each.

    Raises:
        UserError: the archive is truncated or damaged; a name leads outside it (absolute or with `..`); a
            link leads outside it or stands where a file is wanted; a file is missing.
    """
    read = _read_folder if place.is_dir() else _read_zip if place.suffix == ".zip" else _read_tar
    missing = dict.fromkeys(names)
    with disk_errors(place):
        try:
            for name, content in read(place, frozenset(names)):
                missing.pop(name, None)
                yield name, content
        except DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise UserError(
                f"{place}: expected a whole archive, found a truncated or damaged one ({reason}):"
                " remove it and fetch it again"
            ) from error
    if missing:
        raise UserError(
            f"{place}: expected {len(names)} files of the id list, {len(missing)} are missing,"
            f" {next(iter(missing))} first: fetch the official data again"
        )


def _read_folder(place: Path, names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    for name in sorted(names):
        if (place / name).is_file():
            yield name, (place / name).read_bytes()


def _read_zip(place: Path, names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(place) as archive:
        members = archive.infolist()
        for member in members:
            link = None
            if stat.S_ISLNK(member.external_attr >> 16):  # the upper half holds the Unix mode
                link = posixpath.join(posixpath.dirname(member.filename), archive.read(member).decode(errors="replace"))
            _refuse_unsafe(place, member.filename, link)
            if link is not None and member.filename in names:
                raise _not_a_file(place, member.filename)
        for member in members:
            if member.filename in names:
                yield member.filename, archive.read(member)


def _read_tar(place: Path, names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(place) as archive:
        for member in archive:  # to the end, so that a truncated archive is noticed
            link = None
            if member.issym():
                link = posixpath.join(posixpath.dirname(member.name), member.linkname)
            elif member.islnk():
                link = member.linkname
            _refuse_unsafe(place, member.name, link)
            name = member.name.removeprefix("./")
            if name not in names:
                continue
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                raise _not_a_file(place, member.name)
            with file:
                yield name, file.read()


def _not_a_file(place: Path, name: str) -> UserError:
    return UserError(f"{place}: expected {name} to be a file, found a link or device: fetch the official archive again")


def _leads_outside(path: str) -> bool:
    path = path.replace("\\", "/")
    return bool(re.match(r"/|[A-Za-z]:", path)) or posixpath.normpath(path).split("/")[0] == ".."


def _refuse_unsafe(place: Path, name: str, link: str | None) -> None:
    if ".." in name.replace("\\", "/").split("/") or _leads_outside(name):
        found = f"the path {name!r}"
    elif link is not None and _leads_outside(link):
        found = f"the link {name!r} to {link!r}"
    else:
        return
    raise UserError(
        f"{place}: expected paths inside the archive only, found {found}, which leads outside:"
        " do not trust this archive, fetch the official one"
    )
