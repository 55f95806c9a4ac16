"""Downloads against a server on localhost: resumed, verified, refused, and never half-written."""

import errno
import hashlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import LocalServer, serve

from mtl_jax.data.minis import download as download_module
from mtl_jax.data.minis.download import disk_errors, download, file_sha256
from mtl_jax.errors import UserError

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("no_proxy", "*")
    with serve() as state:
        state.files["archive.tar"] = CONTENT
        yield state


def fetch(server: LocalServer, folder: Path, **options) -> Path:
    defaults = {"sha256": SHA256, "first_wait_s": 0.0, "attempts": 3, "timeout_s": 5.0}
    return download(f"{server.url}/archive.tar", folder / "archive.tar", **(defaults | options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_file_arrives_whole_and_reports_its_progress(server: LocalServer, tmp_path: Path) -> None:
    observed = []
    target = fetch(server, tmp_path / "new", on_bytes=lambda completed, total: observed.append((completed, total)))
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["archive.tar"]
    assert observed[-1] == (len(CONTENT), len(CONTENT))
    assert [completed for completed, _ in observed] == sorted({completed for completed, _ in observed})


def test_a_file_that_is_there_and_matches_is_not_asked_for(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.requests == []


def test_a_file_that_is_there_and_differs_is_fetched_anew(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(b"bit rot")
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_broke(server: LocalServer, tmp_path: Path) -> None:
    server.cut_after = [300_000, 100_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=300000-", "bytes=400000-"]


def test_cuts_without_end_are_an_error_and_the_next_call_goes_on(server: LocalServer, tmp_path: Path) -> None:
    server.cut_after = [1000, 1000, 1000]
    with pytest.raises(UserError, match="run the same command again to resume") as error:
        fetch(server, tmp_path)
    assert "failed 3 times" in one_line(error)
    assert "3000 bytes are kept" in one_line(error)
    assert len(server.requests) == 3
    assert names(tmp_path) == ["archive.tar.part"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=3000-"
    assert names(tmp_path) == ["archive.tar"]


def test_a_server_that_ignores_range_starts_over(server: LocalServer, tmp_path: Path) -> None:
    server.cut_after, server.ignore_range = [300_000], True
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=300000-"]


def test_a_server_that_sends_another_range_is_asked_for_the_whole(server: LocalServer, tmp_path: Path) -> None:
    server.cut_after, server.wrong_range = [300_000], True
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=300000-", None]


def test_a_part_that_is_complete_only_needs_its_name(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["archive.tar"]


def test_a_server_that_tells_no_length_is_believed(server: LocalServer, tmp_path: Path) -> None:
    server.without_length = True
    totals = set()
    assert fetch(server, tmp_path, on_bytes=lambda completed, total: totals.add(total)).read_bytes() == CONTENT
    assert totals == {None}


@pytest.mark.parametrize("length", ["many", "-5"])
def test_a_length_that_is_none_counts_as_not_told(server: LocalServer, tmp_path: Path, length: str) -> None:
    server.length = length
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("section", [b"", b"of another file"])
def test_a_wrong_checksum_removes_the_download(server: LocalServer, tmp_path: Path, section: bytes) -> None:
    (tmp_path / "archive.tar.part").write_bytes(section)
    if not section:
        server.files["archive.tar"] = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=f"expected SHA-256 {SHA256}, found ") as error:
        fetch(server, tmp_path)
    assert "archive.tar" in one_line(error)
    assert names(tmp_path) == []


def test_a_refusal_is_an_error_at_once(server: LocalServer, tmp_path: Path) -> None:
    del server.files["archive.tar"]
    with pytest.raises(UserError, match="found the server's status 404 Not Found;") as error:
        fetch(server, tmp_path)
    assert server.url in one_line(error)
    assert len(server.requests) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again(server: LocalServer, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_is_away_is_an_error_after_the_last_attempt(server: LocalServer, tmp_path: Path) -> None:
    server.statuses = [503, 503, 503]
    with pytest.raises(UserError, match=r"failed 3 times \(last: status 503 Service Unavailable\)"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_nobody_listening_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serve() as gone:
        pass
    with pytest.raises(UserError, match="Connection refused") as error:
        fetch(gone, tmp_path)
    one_line(error)


def test_a_server_that_never_answers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tar"
        with pytest.raises(UserError, match="timed out") as error:
            download(url, tmp_path / "archive.tar", sha256=SHA256, attempts=1, timeout_s=0.1)
    one_line(error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_an_error(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="found it full") as error:
        fetch(server, tmp_path)
    assert "archive.tar.part" in one_line(error)
    assert not (tmp_path / "archive.tar").exists()
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/archive.tar", "data/archive.tar"])
def test_only_http_addresses_are_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected an http or https address"):
        download(url, tmp_path / "archive.tar", sha256=SHA256)


def test_a_disk_too_small_is_told_before_the_first_byte(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="expected 1024000 free bytes on the disk, found 1000"):
        fetch(server, tmp_path)
    assert not (tmp_path / "archive.tar").exists()


def test_a_folder_that_cannot_be_made_is_an_error(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="expected a usable file or folder") as error:
        fetch(server, tmp_path / "file" / "downloads")
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "found it full"),
        (errno.EACCES, "expected permission to read and write"),
        (errno.EROFS, "expected permission to read and write"),
        (errno.EISDIR, "expected a usable file or folder"),
    ],
)
def test_errors_of_the_disk_read_as_one_line_with_the_name(number: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error, disk_errors(tmp_path / "name"):
        raise OSError(number, "reason")
    assert str(tmp_path / "name") in one_line(error)


def test_the_checksum_is_the_published_one_of_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
