"""Lays mini sets out below a data root: complete and verified byte for byte, or not at all."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtl_jax.data.minis.archives import read_files
from mtl_jax.data.minis.download import disk_errors, download
from mtl_jax.data.minis.mini_sets import SETS, Origin, load_id_list
from mtl_jax.data.minis.open_images_mini import convert
from mtl_jax.data.minis.staging import exclusive_access, staging
from mtl_jax.errors import UserError

DOWNLOADS = "downloads"  # folder next to the sets; archives stay there, so that a repair needs no network
CONVERTED: dict[str, Callable[..., str]] = {"open-images": convert}  # sets that are made of others on the disk
CONNECTIONS = 4  # at once, for the set whose images are fetched one by one

OnProgress = Callable[[int, int | None], None]
Bars = Callable[[str, str], OnProgress]  # (description, unit: "bytes" or "files") -> what moves that bar


def find_problems(folder: Path, sha256: Mapping[str, str]) -> list[str]:
    """Compares a folder with the checksums of an id list.

    Args:
        folder: the folder of a set.
        sha256: relative path to checksum.

    Returns:
        One phrase for each missing, changed or unexpected file; empty where all is well. Names that begin
        with a dot are not looked at.
    """
    existing_files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems = [f"{path} is missing" for path in sha256 if path not in existing_files]
    for path in sorted(existing_files):
        if path not in sha256:
            if not Path(path).name.startswith("."):
                problems.append(f"{path} does not belong there")
        elif hashlib.sha256((folder / path).read_bytes()).hexdigest() != sha256[path]:
            problems.append(f"{path} differs")
    return problems


def _no_bars(description: str, unit: str) -> OnProgress:
    del description, unit
    return lambda completed, total: None


@contextlib.contextmanager
def rich_bars() -> Iterator[Bars]:
    """Shows progress bars on stderr, where that is a terminal, while the context lasts.

    Yields:
        A function (description, "bytes" or "files") -> what moves that bar: (done, in all or None).
    """
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[amount]}"),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    is_hidden = not console.is_terminal  # in a file or a pipe, stderr is for errors
    with progress.Progress(*columns, console=console, transient=True, disable=is_hidden) as display:

        def start(description: str, unit: str) -> OnProgress:
            task = display.add_task(description, total=None, amount="")

            def move(completed: int, total: int | None) -> None:
                display.update(task, completed=completed, total=total, amount=_amount(completed, total, unit))

            return move

        yield start


def _amount(completed: int, total: int | None, unit: str) -> str:
    if unit != "bytes":
        return f"{completed} of {total or '?'} {unit}"
    return f"{completed / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{completed / 1e6:.1f} MB"


@dataclasses.dataclass(frozen=True)
class Supply:
    """Source of the official files of one set; `fetch` reads them there."""

    base_url: str
    downloads: Path
    from_dir: Path | None
    sha256: Mapping[str, str]
    bars: Bars

    def fetch(self, origin: Origin, targets: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yields (path in the set, content) for `targets`: {name at the origin: path in the set}."""
        if self.from_dir is None:
            place = self._downloaded(origin, targets)
        else:
            place = self._on_disk(origin, targets, self.from_dir)
        prefix = "" if place.is_dir() else f"{origin.archive_folder}/"
        names = {prefix + name: path for name, path in targets.items()}
        for name, content in read_files(place, names):
            yield names[name], content

    def _on_disk(self, origin: Origin, targets: Mapping[str, str], from_dir: Path) -> Path:
        archive = Path(origin.path).name
        with disk_errors(from_dir):
            if (from_dir / archive).is_file():
                return from_dir / archive
            for folder in origin.extracted:
                if any((from_dir / folder / name).is_file() for name in targets):
                    return from_dir / folder
        folders = ", ".join(folder for folder in origin.extracted if folder != ".")
        raise UserError(
            f"{from_dir}: expected {archive} or its extracted folder ({folders}), found neither;"
            f" fetch {self.base_url}/{origin.path}, or leave --from_dir out"
        )

    def _downloaded(self, origin: Origin, targets: Mapping[str, str]) -> Path:
        archive = Path(origin.path).name
        if origin.single_files is None:
            url, bar = f"{self.base_url}/{origin.path}", self.bars(archive, "bytes")
            return download(url, self.downloads / archive, sha256=origin.sha256, on_bytes=bar)
        folder = self.downloads / origin.single_files
        bar = self.bars(f"{origin.single_files} images", "files")
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            fetch_one = functools.partial(self._download_one, origin.single_files, folder)
            for completed, _ in enumerate(pool.map(fetch_one, targets, targets.values()), start=1):
                bar(completed, len(targets))
        finally:
            pool.shutdown(cancel_futures=True)  # after one error the others need not be tried
        return folder

    def _download_one(self, served: str, folder: Path, name: str, path: str) -> None:
        download(f"{self.base_url}/{served}/{name}", folder / name, sha256=self.sha256[path])


def prepare(
    names: Sequence[str],
    *,
    data_root: Path,
    from_dir: Path | None = None,
    base_urls: Mapping[str, str] | None = None,
    force: bool = False,
) -> Iterator[str]:
    """Lays sets out one after another, with progress bars.

    Args:
        names: keys of `SETS` and `CONVERTED`, which come after what they are made of.
        data_root: the folder that holds the sets.
        from_dir: as in `prepare_set`.
        base_urls: {name: base URL} for sets that are to be downloaded from elsewhere.
        force: as in `prepare_set`.

    Yields:
        One line about each set, when it is done.

    Raises:
        UserError: as in `prepare_set`, and for a name that is not a set.
    """
    if not names:
        raise UserError(f"expected names of sets ({', '.join([*SETS, *CONVERTED])}), found none; name at least one")
    for requested, available in ((names, [*SETS, *CONVERTED]), (base_urls or {}, SETS)):
        for name in requested:
            if name not in available:
                raise UserError(f"expected names of sets ({', '.join(available)}), found {name!r}; correct the name")
    for name in names:
        if name in CONVERTED:
            yield CONVERTED[name](data_root, force=force)
            continue
        with rich_bars() as bars:
            url = (base_urls or {}).get(name)
            line = prepare_set(name, data_root=data_root, from_dir=from_dir, base_url=url, force=force, bars=bars)
        yield line


def prepare_set(
    name: str,
    *,
    data_root: Path,
    from_dir: Path | None = None,
    base_url: str | None = None,
    id_list: Mapping[str, Any] | None = None,
    force: bool = False,
    bars: Bars = _no_bars,
) -> str:
    """Lays one set out below `data_root`, whole and verified or not at all.

    Args:
        name: a key of `SETS`.
        data_root: the folder that holds the sets.
        from_dir: folder with the official archives, or with their extracted folders; nothing is downloaded.
        base_url: downloads from here instead of the official address.
        id_list: what `load_id_list` returns; by default the committed list.
        force: replaces a set that is there but incomplete or changed.
        bars: makes progress bars.

    Returns:
        What was done, in one line.

    Raises:
        UserError: the official files are absent, unreadable or not the expected ones; the set is there but
            incomplete or changed; the disk is full or not writable.
    """
    mini = SETS[name]
    id_list = load_id_list(name) if id_list is None else id_list
    sha256: Mapping[str, str] = id_list["sha256"]
    target = Path(os.path.realpath(data_root / mini.folder))  # where it is a link, its target is what counts
    with disk_errors(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            problems = find_problems(target, sha256)
            if not problems:
                return f"{target}: complete and verified already ({len(sha256)} files)"
            if not force:
                raise UserError(
                    f"{target}: expected the {len(sha256)} files of the id list, found problems"
                    f" ({len(problems)} in all; {problems[0]}): run again with --force to replace this folder"
                )
    supply = Supply(base_url or mini.base_url, data_root / DOWNLOADS, from_dir, sha256, bars)
    with disk_errors(target), exclusive_access(data_root), staging(target) as folder:
        _write(folder, mini.contents(id_list, supply.fetch), sha256, bars(mini.folder, "files"))
    return f"{target}: laid out and verified ({len(sha256)} files)"


def _write(
    folder: Path, contents: Iterator[tuple[str, bytes]], sha256: Mapping[str, str], on_files: OnProgress
) -> None:
    for completed, (path, content) in enumerate(contents, start=1):
        if hashlib.sha256(content).hexdigest() != sha256[path]:
            raise UserError(
                f"{path}: expected the official file (SHA-256 {sha256[path][:16]}…), found another;"
                " fetch the official data again"
            )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        on_files(completed, len(sha256))
    problems = find_problems(folder, sha256)
    if problems:
        raise UserError(f"{folder}: expected {len(sha256)} files, {problems[0]}: the disk may be failing")
