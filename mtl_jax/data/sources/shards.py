"""A dataset that `mtl-jax prepare --shards` has written: a few large ArrayRecord files."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

from mtl_jax.data import records
from mtl_jax.data.shards import VERSION, index_name
from mtl_jax.data.sources.base import Sample, check_split, file_in, find_first, read_json
from mtl_jax.errors import UserError


class Shards:
    """The samples of another source, with all of its labels, in its order.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val".
        folder: the dataset's folder below `data_root`.

    Raises:
        UserError: no list of shards there, a shard that is missing or not as long as it was written, or no library for
            ArrayRecord.
    """

    def __init__(self, *, data_root: str | Path, split: str, folder: str) -> None:
        check_split(split)
        base = Path(data_root).expanduser() / folder
        index = find_first([base / index_name(split)], noun="the list of a split's shards", data_root=data_root)
        index_content = _checked(read_json(index), index)
        self.class_names = {label: tuple(names) for label, names in index_content["class_names"].items()}
        self.labelled_classes = {label: tuple(names) for label, names in index_content["labelled_classes"].items()}
        self._files = [file_in(base, shard["file"]) for shard in index_content["shards"]]
        self._ends: list[int] = []
        for shard in index_content["shards"]:
            self._ends.append(shard["samples"] + (self._ends[-1] if self._ends else 0))
        self._records = _open_shards(self._files, [shard["bytes"] for shard in index_content["shards"]], index)
        if len(self._records) != len(self):
            raise UserError(
                f"{index}: expected {len(self)} records, found {len(self._records)}; write the shards again"
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        number = index - (self._ends[shard - 1] if shard else 0)
        location = f"{self._files[shard]}, record {number}"
        try:
            record = self._records[index]
        except Exception as error:  # of a library in C++, which raises what it likes for what it cannot read
            raise UserError(
                f"{location}: expected a record, found {str(error).splitlines()[0]}; copy it again"
            ) from error
        return records.decode(record, location=location)


def _checked(index_content: Any, index: Path) -> dict[str, Any]:
    """Refuses a list that another program wrote, or another version of this one."""
    version = index_content.get("version") if isinstance(index_content, dict) else None
    expected = {"class_names": dict, "labelled_classes": dict, "shards": list}
    if version != VERSION or not all(isinstance(index_content.get(name), kind) for name, kind in expected.items()):
        raise UserError(f"{index}: expected a list of shards of version {VERSION}, found {version}; write them again")
    fields = {"file": str, "samples": int, "bytes": int}
    for shard in index_content["shards"]:
        if not isinstance(shard, dict) or not all(isinstance(shard.get(name), kind) for name, kind in fields.items()):
            raise UserError(f"{index}: expected {', '.join(fields)} of each shard, found {shard!r}; write them again")
    return index_content


def _open_shards(files: list[Path], sizes: list[int], index: Path) -> Any:
    for file, size in zip(files, sizes, strict=True):
        file_size = file.stat().st_size if file.is_file() else None
        if file_size != size:
            file_size = "no such file" if file_size is None else f"{file_size} bytes"
            raise UserError(f"{file}: expected {size} bytes, as {index.name} says, found {file_size}; copy it again")
    if not files:
        return []
    try:
        from grain.sources import ArrayRecordDataSource

        return ArrayRecordDataSource([str(file) for file in files])
    except Exception as error:  # as above; the library may be missing too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{index}: expected shards that can be opened, found {reason}; copy them again") from error
