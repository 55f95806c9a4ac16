"""The mini sets: laid out whole from archives, folders and a server on localhost, or not at all."""

import copy
import filecmp
import importlib.util
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_server import LocalServer, serve
from synthetic_archives import (
    COCO,
    SYNTHETIC,
    VOC,
    coco_official,
    official_archives,
    sha256,
    synthetic_coco,
    synthetic_imagenette,
    synthetic_voc,
    tar_bytes,
    write_archives,
)

from mtl_jax.data.minis import download as download_module
from mtl_jax.data.minis.mini_sets import SETS, coco_subset, load_id_list
from mtl_jax.data.minis.prepare import find_problems, prepare, prepare_set
from mtl_jax.errors import UserError

REPOSITORY = Path(__file__).parents[1]


def nothing_written(data_root: Path) -> bool:
    return {path.name for path in data_root.iterdir()} <= {"downloads"} if data_root.exists() else True


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    with serve() as state:
        yield state


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Lets the official archives have the checksums of synthetic ones."""
    from mtl_jax.data.minis import mini_sets

    def pin(archives: dict[str, bytes]) -> None:
        for name in ("VOC_TRAINVAL", "COCO_IMAGES", "COCO_ANNOTATIONS", "IMAGENETTE"):
            origin = getattr(mini_sets, name)
            if origin.path in archives:
                monkeypatch.setattr(mini_sets, name, origin._replace(sha256=sha256(archives[origin.path])))

    return pin


@pytest.mark.parametrize("name", SETS)
def test_archives_on_disk_become_exactly_the_listed_files(name: str, tmp_path: Path) -> None:
    archives, id_list = SYNTHETIC[name]()
    from_dir = write_archives(tmp_path / "archives", archives)
    root = tmp_path / "data"
    completed = prepare_set(name, data_root=root, from_dir=from_dir, id_list=id_list)
    target = root / SETS[name].folder
    assert completed == f"{target}: laid out and verified ({len(id_list['sha256'])} files)"
    assert find_problems(target, id_list["sha256"]) == []
    assert [path.name for path in root.iterdir()] == [target.name]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("depth", ["beside", "inside"])
def test_extracted_folders_serve_as_well_as_archives(name: str, depth: str, tmp_path: Path) -> None:
    archives, id_list = SYNTHETIC[name]()
    extracted = tmp_path / "extracted"
    for path in write_archives(tmp_path / "archives", archives).iterdir():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(extracted)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(extracted, filter="data")
    if depth == "inside" and name != "coco":
        extracted = extracted / {"voc": "VOCdevkit/VOC2012", "imagenette": "imagenette2-160"}[name]
    prepare_set(name, data_root=tmp_path / "data", from_dir=extracted, id_list=id_list)
    assert find_problems(tmp_path / "data" / SETS[name].folder, id_list["sha256"]) == []


@pytest.mark.parametrize("name", SETS)
def test_sets_are_downloaded_and_laid_out(name: str, server: LocalServer, pinned, tmp_path: Path) -> None:
    archives, id_list = SYNTHETIC[name]()
    pinned(archives)
    server.files = archives
    bars = []

    def record(description: str, unit: str) -> Callable[[int, int | None], None]:
        return lambda completed, total: bars.append((description, unit, completed, total))

    prepare_set(name, data_root=tmp_path, base_url=server.url, id_list=id_list, bars=record)
    target = tmp_path / SETS[name].folder
    assert find_problems(target, id_list["sha256"]) == []
    files = len(id_list["sha256"])
    assert bars[-1] == (target.name, "files", files, files)
    assert sum(unit == "bytes" for _, unit, _, _ in bars) > 0
    # COCO's images are fetched one by one: the archive of 816 MB is not asked for.
    assert not any(path == f"/{COCO}" for path, _ in server.requests)
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_run_says_so_and_does_nothing(server: LocalServer, pinned, tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    pinned(archives)
    server.files = archives
    options = {"data_root": tmp_path, "base_url": server.url, "id_list": id_list}
    prepare_set("voc", **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "complete and verified already (9 files)" in prepare_set("voc", **options)
    assert "complete and verified already" in prepare_set("voc", force=True, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(server.requests) == 1


def test_an_interrupted_download_leaves_its_part_and_the_next_run_ends_it(
    server: LocalServer, pinned, tmp_path: Path
) -> None:
    archives, id_list = synthetic_voc()
    pinned(archives)
    server.files = archives
    server.cut_after = [100] * download_module.ATTEMPTS
    options = {"data_root": tmp_path, "base_url": server.url, "id_list": id_list}
    with pytest.raises(UserError, match="run the same command again to resume") as error:
        prepare_set("voc", **options)
    one_line(error)
    assert nothing_written(tmp_path)
    prepare_set("voc", **options)
    assert server.requests[-1][1] == f"bytes={100 * download_module.ATTEMPTS}-"


def test_an_archive_with_another_checksum_is_refused(server: LocalServer, tmp_path: Path) -> None:
    server.files, id_list = synthetic_voc()
    with pytest.raises(UserError, match="expected SHA-256 e14f763270cf") as error:
        prepare_set("voc", data_root=tmp_path, base_url=server.url, id_list=id_list)
    assert VOC in one_line(error)
    assert nothing_written(tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_one_missing_image_on_the_server_ends_the_set(server: LocalServer, pinned, tmp_path: Path) -> None:
    archives, id_list = synthetic_coco()
    pinned(archives)
    server.files = {path: content for path, content in archives.items() if "000003.jpg" not in path}
    with pytest.raises(UserError, match="found the server's status 404") as error:
        prepare_set("coco", data_root=tmp_path, base_url=server.url, id_list=id_list)
    assert "000000000003.jpg" in one_line(error)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "changed", "extra"])
def test_a_set_that_is_not_whole_is_named_and_replaced_only_by_force(damage: str, tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    from_dir = write_archives(tmp_path / "archives", archives)
    options = {"data_root": tmp_path / "data", "from_dir": from_dir, "id_list": id_list}
    prepare_set("voc", **options)
    target = tmp_path / "data" / "mini-voc-seg"
    image = target / "JPEGImages" / "b.jpg"
    words = {
        "missing": "b.jpg is missing",
        "changed": "b.jpg differs",
        "extra": "d.jpg does not belong",
    }
    if damage == "missing":
        image.unlink()
    elif damage == "changed":
        image.write_bytes(image.read_bytes()[:-1] + b"?")
    else:
        (target / "JPEGImages" / "d.jpg").write_bytes(b"mine")
    before = sorted(target.rglob("*"))
    with pytest.raises(UserError, match=words[damage]) as error:
        prepare_set("voc", **options)
    assert "--force" in one_line(error)
    assert sorted(target.rglob("*")) == before
    prepare_set("voc", force=True, **options)
    assert find_problems(target, id_list["sha256"]) == []
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mini-voc-seg"]


def test_a_failed_repair_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    target = tmp_path / "data" / "mini-voc-seg"
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("keep")
    from_dir = write_archives(tmp_path / "archives", {VOC: archives[VOC][:5000]})
    with pytest.raises(UserError, match="truncated"):
        prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list, force=True)
    assert [path.name for path in target.parent.rglob("*")] == ["mini-voc-seg", "mine.txt"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    remaining = tmp_path / "data" / ".mini-voc-seg.partial"
    remaining.mkdir(parents=True)
    (remaining / "half.jpg").write_bytes(b"half")
    from_dir = write_archives(tmp_path / "archives", archives)
    prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mini-voc-seg"]


def test_two_preparations_do_not_run_in_one_folder(tmp_path: Path) -> None:
    import fcntl

    archives, id_list = synthetic_voc()
    from_dir = write_archives(tmp_path / "archives", archives)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="wait until it has ended"):
            prepare_set("voc", data_root=tmp_path, from_dir=from_dir, id_list=id_list)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("keep", [0, 0.3, 0.6])
def test_a_truncated_archive_is_refused(name: str, keep: float, tmp_path: Path) -> None:
    archives, id_list = SYNTHETIC[name]()
    cut = {path: content[: int(keep * len(content))] for path, content in archives.items()}
    from_dir = write_archives(tmp_path / "archives", cut)
    with pytest.raises(UserError) as error:
        prepare_set(name, data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    assert "truncated or damaged" in one_line(error)
    assert str(from_dir) in one_line(error)
    assert nothing_written(tmp_path / "data")


def test_a_tar_cut_between_two_members_misses_files(tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    with tarfile.open(fileobj=io.BytesIO(archives[VOC])) as archive:
        third = archive.getmembers()[3].offset
    from_dir = write_archives(tmp_path / "archives", {VOC: archives[VOC][:third]})
    with pytest.raises(UserError, match="expected 6 files of the id list, found 2, without"):
        prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    assert nothing_written(tmp_path / "data")


def test_an_image_of_another_content_is_refused(tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    id_list["sha256"]["JPEGImages/b.jpg"] = sha256(b"the official one")
    from_dir = write_archives(tmp_path / "archives", archives)
    with pytest.raises(UserError, match=r"JPEGImages/b\.jpg: expected the official file") as error:
        prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    one_line(error)
    assert nothing_written(tmp_path / "data")


@pytest.mark.parametrize("name", SETS)
def test_an_unsafe_archive_lays_nothing_out(name: str, tmp_path: Path) -> None:
    archives, id_list = SYNTHETIC[name]()
    for path, content in archives.items():
        if path.endswith(".zip"):
            buffer = io.BytesIO(content)
            with zipfile.ZipFile(buffer, "a") as archive:
                archive.writestr("../evil", b"evil")
            archives[path] = buffer.getvalue()
        elif path.endswith(("tar", "tgz")):
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                files = {member.name: archive.extractfile(member).read() for member in archive}
            archives[path] = tar_bytes(files | {"../evil": b"evil"})
    from_dir = write_archives(tmp_path / "archives", archives)
    with pytest.raises(UserError, match="leads outside"):
        prepare_set(name, data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    assert nothing_written(tmp_path / "data")
    assert not list(tmp_path.rglob("evil"))


def test_a_folder_without_the_archive_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected imagenette2-160\.tgz or its extracted folder") as error:
        prepare_set("imagenette", data_root=tmp_path / "data", from_dir=tmp_path)
    assert "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz" in one_line(error)
    assert nothing_written(tmp_path / "data")


def test_a_data_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    archives, id_list = synthetic_voc()
    (tmp_path / "data").write_text("not a folder")
    from_dir = write_archives(tmp_path / "archives", archives)
    with pytest.raises(UserError, match="expected a usable file or folder") as error:
        prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    one_line(error)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives, id_list = synthetic_voc()
    from_dir = write_archives(tmp_path / "archives", archives)

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="found it full") as error:
        prepare_set("voc", data_root=tmp_path / "data", from_dir=from_dir, id_list=id_list)
    one_line(error)
    assert nothing_written(tmp_path / "data")


def test_coco_keeps_the_order_of_the_id_list_whatever_the_official_one() -> None:
    official = coco_official([3, 1, 2])
    shuffled = copy.deepcopy(official)
    shuffled["images"].reverse()
    shuffled["annotations"].reverse()
    ids = {"image_ids": [2, 3], "annotation_ids": [32, 22], "category_ids": [2]}
    subset = coco_subset(official, **ids)
    assert subset == coco_subset(shuffled, **ids)
    assert [box["id"] for box in subset["annotations"]] == [32, 22]
    assert subset["annotations"][0] == official["annotations"][1]  # polygons and all


def test_coco_ids_that_are_not_official_are_named() -> None:
    with pytest.raises(UserError, match="2 annotations of the id list, found 1, without id 99;"):
        coco_subset(coco_official([1]), image_ids=[1], annotation_ids=[11, 99], category_ids=[1])


@pytest.mark.parametrize("content", [b"{not json", b"\xff\xfe\x00"])
def test_coco_annotations_that_are_no_json_are_refused(content: bytes, tmp_path: Path) -> None:
    _, id_list = synthetic_coco()
    (tmp_path / "instances_val2017.json").write_bytes(content)
    with pytest.raises(UserError, match="expected JSON") as error:
        prepare_set("coco", data_root=tmp_path / "data", from_dir=tmp_path, id_list=id_list)
    one_line(error)


@pytest.mark.parametrize("name", SETS)
def test_the_committed_id_lists_hold_240_and_60_distinct_images(name: str) -> None:
    id_list = load_id_list(name)
    assert (len(id_list["train"]), len(id_list["val"])) == (240, 60)
    assert len({*id_list["train"], *id_list["val"]}) == 300
    images = [path for path in id_list["sha256"] if path.endswith((".jpg", ".JPEG"))]
    assert len(images) == 300
    assert all(len(checksum) == 64 for checksum in id_list["sha256"].values())


def test_the_committed_coco_list_has_the_known_boxes_and_categories() -> None:
    id_list = load_id_list("coco")
    assert {split: len(ids) for split, ids in id_list["annotations"].items()} == {"train": 793, "val": 167}
    assert id_list["categories"] == [1, 14, 39, 42, 52, 65, 67, 73, 74, 88]


@pytest.mark.parametrize("name", SETS)
def test_the_committed_id_lists_match_the_real_sets(name: str, data_root: Path) -> None:
    assert find_problems(data_root / SETS[name].folder, load_id_list(name)["sha256"]) == []


def test_official_archives_become_the_real_sets_byte_for_byte(data_root: Path, tmp_path: Path) -> None:
    from_dir = official_archives(data_root, tmp_path / "archives")
    lines = list(prepare(list(SETS), data_root=tmp_path / "data", from_dir=from_dir))
    assert [line.endswith("laid out and verified (603 files)") for line in lines] == [True, False, False]
    for mini in SETS.values():
        expected, actual = data_root / mini.folder, tmp_path / "data" / mini.folder
        files = files_below(expected)
        assert files_below(actual) == files
        matches, different, unreadable = filecmp.cmpfiles(expected, actual, files, shallow=False)
        assert (len(matches), different, unreadable) == (len(files), [], [])


@pytest.fixture(scope="module")
def command() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("prepare_data", REPOSITORY / "scripts/prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sets", "voc,cifar"], "expected names of sets (voc, coco, imagenette, open-images), found 'cifar'"),
        (["--sets", ","], "found none"),
        (["--from_dir", "nowhere"], "nowhere: expected VOCtrainval_11-May-2012.tar"),
        (["--base_url", "voc"], "expected NAME=URL"),
        (["--base_url", "open-images=http://localhost"], "(voc, coco, imagenette), found 'open-images'"),
        (["--sets", "open-images"], "mini-coco-det/annotations/instances_train.json: expected"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(
    arguments: list[str], words: str, command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(["--data_root", str(tmp_path / "data"), *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("prepare_data: ")
    assert words in line


def test_an_unknown_flag_is_one_line_and_status_2(command, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(["--set", "voc", "--dataroot", "x"])
    assert stopped.value.code == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_help_names_every_flag(command, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    out = capfd.readouterr().out
    assert all(flag in out for flag in ("--data_root", "--sets", "--from_dir", "--force", "--base_url"))


def test_the_command_downloads_from_a_mirror_and_says_what_it_did(
    command, server: LocalServer, pinned, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    archives, id_list = synthetic_imagenette()
    pinned(archives)
    server.files = archives
    monkeypatch.setattr("mtl_jax.data.minis.prepare.load_id_list", lambda name: id_list)
    monkeypatch.setattr(
        "mtl_jax.data.minis.prepared.describe", lambda name, data_root: [f"{name} in {data_root} was seen"]
    )
    mirror = f"imagenette={server.url}/"
    assert command(["--data_root", str(tmp_path), "--sets", "imagenette", "--base_url", mirror]) == 0
    completed, observed = capfd.readouterr().out.splitlines()
    assert completed == f"{tmp_path}/imagenette-160: laid out and verified (4 files)"
    assert observed == f"  imagenette in {tmp_path} was seen"
