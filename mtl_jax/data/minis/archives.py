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

from mtl_jax.data.minis.download import disk_errors
from mtl_jax.errors import UserError

# What the readers of the standard library raise on damaged input; RuntimeError: an encrypted zip.
MAX_FILE_BYTES = 1 << 29  # of a file that is read into memory: the largest official one, COCO's train boxes, has 450 MB
MAX_LINK_BYTES = 1 << 12  # of a link's target, as of any path
MAX_EXTENSION_BYTES = 1 << 20  # of a tar's long names and attributes, which its reader takes in whole
MAX_RATIO = 100  # of a tar's length to that of its file; zeros reach 1000, images 1, JSON 10
SMALL_BYTES = 1 << 26  # a tar up to this length may have any ratio

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
    reader = _read_folder if place.is_dir() else _read_zip if place.suffix == ".zip" else _read_tar
    missing = dict.fromkeys(names)
    with disk_errors(place):
        try:
            for name, content in reader(place, frozenset(names)):
                missing.pop(name, None)
                yield name, content
        except DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise UserError(
                f"{place}: expected a whole archive, found a truncated or damaged one ({reason});"
                " remove it and fetch it again"
            ) from error
    if missing:
        raise UserError(
            f"{place}: expected {len(names)} files of the id list, found {len(names) - len(missing)}, without "
            f"{next(iter(missing))}; fetch the official data again"
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
                target = _unzipped(place, archive, member, MAX_LINK_BYTES).decode(errors="replace")
                link = posixpath.join(posixpath.dirname(member.filename), target)
            _refuse_unsafe(place, member.filename, link)
            if link is not None and member.filename in names:
                raise _not_a_file(place, member.filename)
        for member in members:
            if member.filename in names:
                yield member.filename, _unzipped(place, archive, member, MAX_FILE_BYTES)


def _unzipped(place: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.file_size > limit or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _too_large(place, member.filename, limit)
    with archive.open(member) as file:
        return file.read(member.file_size + 1)  # with a number, it stops where the directory's size is a lie


def _read_tar(place: Path, names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    limit = max(SMALL_BYTES, MAX_RATIO * place.stat().st_size)
    with tarfile.open(place, tarinfo=_Member) as archive:
        for member in archive:  # to the end, so that a truncated archive is noticed
            if not 0 <= member.size <= limit - member.offset_data:
                raise _too_large(place, member.name, limit)
            link = None
            if member.issym():
                link = posixpath.join(posixpath.dirname(member.name), member.linkname)
            elif member.islnk():
                link = member.linkname
            _refuse_unsafe(place, member.name, link)
            name = member.name.removeprefix("./")
            if name not in names:
                continue
            if member.size > MAX_FILE_BYTES:
                raise _too_large(place, name, MAX_FILE_BYTES)
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                raise _not_a_file(place, member.name)
            with file:
                yield name, file.read()


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.size > MAX_EXTENSION_BYTES and not member.isfile() and not member.issparse()):
            raise tarfile.ReadError(f"{member.size} bytes of attributes")
        return member


def _too_large(place: Path, name: str, limit: int) -> UserError:
    return UserError(
        f"{place}: expected at most {limit} bytes, stored or deflated, found more in {name}; fetch the official archive"
        " again"
    )


def _not_a_file(place: Path, name: str) -> UserError:
    return UserError(f"{place}: expected {name} to be a file, found a link or device; fetch the official archive again")


def _leads_outside(path: str) -> bool:
    path = path.replace("\\", "/")
    return bool(re.match(r"/|[A-Za-z]:", path)) or posixpath.normpath(path).split("/")[0] == ".."


def _refuse_unsafe(place: Path, name: str, link: str | None) -> None:
    if ".." in name.replace("\\", "/").split("/") or _leads_outside(name):
        problem = f"the path {name!r}"
    elif link is not None and _leads_outside(link):
        problem = f"the link {name!r} to {link!r}"
    else:
        return
    raise UserError(
        f"{place}: expected paths inside the archive only, found {problem}, which leads outside;"
        " do not trust this archive, fetch the official one"
    )
