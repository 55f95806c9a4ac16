"""Files of predictions: their names, how they are written, and how they are recognised."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.pixel_labels import write_png
from mtl_jax.errors import UserError

FIELDS = {"image", "height", "width", "overlay", "tasks"}  # of a prediction's JSON, by which it is known again


def names_for(paths: Sequence[Path], tasks: Iterable[str] = ()) -> list[str]:
    """Returns a name for the files of each image: its own without suffix, numbered where an earlier one has it.

    Names that differ in case alone count as one, as some file systems see them.

    Args:
        paths: of the images.
        tasks: whose maps are written too, as <name>.<task>.<map>.png.
    """
    used: set[str] = set()
    owners: set[str] = set()  # whose map would be called as a taken name's picture
    inner = tuple(f".{task.casefold()}." for task in tasks)
    names = []
    for path in paths:
        stem = path.stem.casefold()
        mapped = {stem[: stem.index(infix)] for infix in inner if infix in stem}
        if stem in used | owners or mapped & used:
            numbered = (f"{path.stem}-{number}" for number in itertools.count(2))  # which no map is called
            names.append(next(name for name in numbered if name.casefold() not in used | owners))
        else:
            names.append(path.stem)
            owners |= mapped
        used.add(names[-1].casefold())
    return names


def make_room(out: Path, names: Mapping[Path, str], tasks: Iterable[str]) -> None:
    """Makes the folder of the predictions, and checks that only earlier predictions are replaced in it.

    Args:
        out: the folder.
        names: by image, from `names_for`.
        tasks: whose maps are written too.

    Raises:
        UserError: a file of another origin, one of the images or another program's, stands where one would be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    maps = tuple(f".{task}." for task in tasks)
    written_names = {f"{name}{ending}" for name in names.values() for ending in (".json", ".png")}
    stems = set(names.values())

    def in_the_way(path: Path) -> bool:
        of_maps = path.suffix == ".png" and any(path.name.rpartition(infix)[0] in stems for infix in maps)
        return (path.name in written_names or of_maps) and not is_prediction(path)

    foreign_files = sorted(path.name for path in out.iterdir() if in_the_way(path))
    if foreign_files:
        remainder = f" and {len(foreign_files) - 3} more" if len(foreign_files) > 3 else ""
        raise UserError(
            f"--out {out}: {', '.join(foreign_files[:3])}{remainder} there did not come from predictions and would be "
            "overwritten; name another folder"
        )


def is_prediction(path: Path) -> bool:
    """Says whether an earlier prediction wrote a file: its JSON, or a picture that the JSON next to it names."""
    if path.suffix == ".json":
        return bool(_pictures(path))
    ends = [index for index, letter in enumerate(path.name) if letter == "."]
    return any(path.name in _pictures(path.with_name(f"{path.name[:end]}.json")) for end in ends)


def _pictures(record: Path) -> set[str]:
    """The pictures that a prediction's JSON names; nothing where it is none."""
    try:
        tree = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(tree, dict) or not tree.keys() >= FIELDS or not isinstance(tree["tasks"], dict):
        return set()
    outputs = [output for output in tree["tasks"].values() if isinstance(output, dict)]
    named = (value for output in outputs for value in output.values() if isinstance(value, str))
    return {str(tree["overlay"]), *(value for value in named if value.endswith(".png"))}


def write(
    out: Path,
    name: str,
    *,
    image: Path,
    size: tuple[int, int],
    overlay: bytes,
    outputs: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Writes <name>.json, the overlay <name>.png, and <name>.<task>.<map>.png for every map in the outputs.

    The JSON comes first: it says whose the other files are, should the program end between them.

    Args:
        out: the folder.
        name: from `names_for`.
        image: where it came from.
        size: of the image: height and width.
        overlay: a PNG file.
        outputs: by task, in JSON's terms but for maps.

    Returns:
        The path of the JSON file.
    """
    record: dict[str, Any] = {"image": str(image), "height": size[0], "width": size[1], "overlay": f"{name}.png"}
    record["tasks"] = {}
    maps: dict[str, np.ndarray] = {}
    for task, output in outputs.items():
        files = {key: f"{name}.{task}.{key}.png" for key, value in output.items() if isinstance(value, np.ndarray)}
        maps |= {file: output[key] for key, file in files.items()}
        record["tasks"][task] = dict(output) | files
    path = out / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.png").write_bytes(overlay)
    for file, value in maps.items():
        write_png(out / file, value)
    return path
