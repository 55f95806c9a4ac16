"""Archives: chosen members are read, damage is told, and nothing can lead outside."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from synthetic_archives import tar_bytes, zip_bytes

from mtl_jax.data.minis import archives
from mtl_jax.data.minis.archives import read_files
from mtl_jax.errors import UserError


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_members_are_read_alike_from_tar_zip_and_folder(tmp_path: Path) -> None:
    files = {"a/b.txt": b"1", "c.txt": b"", "not/wanted": b"3"}
    (tmp_path / "plain.tar").write_bytes(tar_bytes(files))
    (tmp_path / "packed.tgz").write_bytes(tar_bytes(files, mode="w:gz"))
    (tmp_path / "packed.zip").write_bytes(zip_bytes(files))
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "folder" / "a" / "b.txt").write_bytes(b"1")
    (tmp_path / "folder" / "c.txt").write_bytes(b"")
    for place in ("plain.tar", "packed.tgz", "packed.zip", "folder"):
        assert dict(read_files(tmp_path / place, ["a/b.txt", "c.txt"])) == {"a/b.txt": b"1", "c.txt": b""}


@pytest.mark.parametrize("place", ["a.tar", "a.zip", "folder"])
def test_missing_members_are_counted_and_the_first_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"wanted": b"1"}))
    (tmp_path / "a.zip").write_bytes(zip_bytes({"wanted": b"1"}))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "wanted").write_bytes(b"1")
    with pytest.raises(UserError, match="expected 3 files of the id list, found 1, without x;") as error:
        list(read_files(tmp_path / place, ["x", "wanted", "y"]))
    assert place in one_line(error)


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"wanted": bytes(range(256))}))
    content[60] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_files(tmp_path / "a.zip", ["wanted"]))


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file") as error:
        list(read_files(tmp_path / "a.tar", ["wanted"]))
    assert "a.tar" in one_line(error)


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    for name in ("page.zip", "page.tgz"):
        (tmp_path / name).write_bytes(b"<html>404</html>")
        with pytest.raises(UserError, match="truncated or damaged") as error:
            list(read_files(tmp_path / name, ["a"]))
        assert name in one_line(error)


UNSAFE = ("../evil", "/tmp/evil", "a/../../evil", "a\\..\\..\\evil", "C:\\evil", "VOCdevkit/../evil")


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_path_that_leads_outside_is_refused(path: str, kind: str, tmp_path: Path) -> None:
    place = tmp_path / f"archive.{kind}"
    place.write_bytes((tar_bytes if kind == "tar" else zip_bytes)({"wanted": b"1", path: b"evil"}))
    with pytest.raises(UserError, match="leads outside") as error:
        list(read_files(place, ["wanted"]))
    assert repr(path) in one_line(error)
    assert str(place) in one_line(error)


def tar_link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_a_link_that_leads_outside_a_tar_is_refused(kind: bytes, target: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"wanted": b"1"}, extra=(tar_link("x/link", target, kind),)))
    with pytest.raises(UserError, match=r"the link 'x/link' to .* leads outside"):
        list(read_files(tmp_path / "a.tar", ["wanted"]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_in_place_of_a_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"other": b"1"}, extra=(tar_link("wanted", "other", kind),)))
    with pytest.raises(UserError, match="expected wanted to be a file, found a link or device"):
        list(read_files(tmp_path / "a.tar", ["wanted"]))


@pytest.mark.parametrize(("target", "words"), [("/etc/passwd", "leads outside"), ("other", "found a link")])
def test_a_symlink_in_a_zip_is_refused(target: str, words: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("wanted")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, target)
    with pytest.raises(UserError, match=words):
        list(read_files(tmp_path / "a.zip", ["wanted"]))


def test_a_link_nobody_asked_for_that_stays_inside_does_no_harm(tmp_path: Path) -> None:
    link = tar_link("x/link", "../wanted", tarfile.SYMTYPE)
    (tmp_path / "a.tar").write_bytes(tar_bytes({"./wanted": b"1"}, extra=(link,)))
    assert list(read_files(tmp_path / "a.tar", ["wanted"])) == [("wanted", b"1")]


def zeros_as(kind: str, place: Path, count: int) -> Path:
    """Packs that many zeros as `wanted`."""
    if kind == "zip":
        with zipfile.ZipFile(place / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("wanted", bytes(count))
        return place / "bomb.zip"
    member = tarfile.TarInfo("wanted")
    member.size = count
    with tarfile.open(place / "bomb.tgz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(bytes(count)))
    return place / "bomb.tgz"


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_file_too_large_for_the_memory_is_refused_unread(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    assert dict(read_files(zeros_as(kind, tmp_path, 1 << 20), ["wanted"])) == {"wanted": bytes(1 << 20)}
    with pytest.raises(UserError, match=f"bomb.{kind}: expected at most 1048576 bytes.* found more in wanted"):
        list(read_files(zeros_as(kind, tmp_path, 1 + (1 << 20)), ["wanted"]))


def test_a_tar_that_unpacks_to_more_than_any_images_would_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 10)
    with pytest.raises(UserError, match=r"bomb\.tgz: expected at most \d+ bytes"):
        list(read_files(zeros_as("tgz", tmp_path, 1 << 24), ["other"]))


def test_a_zip_whose_directory_hides_the_length_is_refused(tmp_path: Path) -> None:
    place = zeros_as("zip", tmp_path, 1 << 24)
    content = place.read_bytes()
    place.write_bytes(content.replace((1 << 24).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_files(place, ["wanted"]))


def test_a_zip_in_a_method_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("wanted", bytes(100))
    with pytest.raises(UserError, match=r"expected .* bytes, stored or deflated"):
        list(read_files(tmp_path / "a.zip", ["wanted"]))


@pytest.mark.parametrize("size", [1 << 30, -(1 << 20)])
def test_attributes_of_a_tar_without_end_are_refused(size: int, tmp_path: Path) -> None:
    member = tarfile.TarInfo("attributes")
    member.type, member.size = tarfile.XHDTYPE, size
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_files(tmp_path / "a.tar", ["wanted"]))
