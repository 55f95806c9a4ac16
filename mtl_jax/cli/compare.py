"""Trains several configurations over several seeds and compares them.

mtl-jax compare --out runs/ablation --seeds 0,1,2 configs/ablation_seq.py
mtl-jax compare --out runs/ways configs/seq.py "branched=configs/seq.py:branched" -- --config.data_root=data

Arguments after -- apply to every run; {seed} in them, or in a variant's overrides, is replaced by the run's seed.
A run is identified by its resolved configuration, its code and its data: if page, flags or data have changed, it is
trained again, and the old run is kept next to the new one.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.cli import flags

TRAIN = (sys.executable, "-m", "mtl_jax", "train")


class Variant(NamedTuple):
    """A configuration to compare."""

    label: str
    arguments: tuple[str, ...]  # arguments of `mtl-jax train`


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("compare", __doc__)
    parser.add_argument("variants", nargs="+", help='"[label=]page.py[:argument] [--config.field=value …]"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the comparison")
    parser.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, 1 where a run failed, 2 for a usage error."""
    arguments = list(arguments)
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser().parse_args(arguments[:separator])
    options.out = options.out.expanduser()
    common = tuple(arguments[separator + 1 :])
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"--seeds: expected different whole numbers from 0, such as 0,1,2, found {options.seeds}")
        variants = [variant for text in options.variants for variant in parse(text)]
        labels = [_folder(variant.label) for variant in variants]
        repeated = {label for label in labels if labels.count(label) > 1}
        if repeated:
            names = ", ".join(sorted(repeated))
            raise ValueError(f"expected variants of different names, found {names} twice; label them: name=page.py")
        for variant in variants:  # a mistake in the last is reported before the first is trained
            resolve_arguments(_arguments(variant, seeds[0], common))
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return flags.fail(error)
    return compare(options.out, variants, seeds, common)


def parse(text: str) -> list[Variant]:
    """Parses a positional argument; a page with VARIANTS and no argument yields one variant for each of them.

    Raises:
        UserError: the page is missing or cannot be read.
    """
    from mtl_jax.config import load_page

    page, *overrides = shlex.split(text)
    label, equals, page_path = page.partition("=")
    page = page_path if equals else page
    path, colon, argument = page.partition(":")
    variants = getattr(load_page(Path(path)), "VARIANTS", ())
    names = () if colon else variants
    if names:
        prefix = f"{label} " if equals else ""
        return [Variant(prefix + name, (f"--config={path}:{name}", *overrides)) for name in names]
    options_shown = [
        Path(path).stem + (f":{argument}" if colon else ""),
        *(word.removeprefix("--config.") for word in overrides),
    ]
    return [Variant(label if equals else " ".join(options_shown), (f"--config={page}", *overrides))]


def compare(out: Path, variants: list[Variant], seeds: list[int], common: tuple[str, ...]) -> int:
    """Trains the missing runs, and rewrites the comparison after every run."""
    from mtl_jax.errors import UserError
    from mtl_jax.report import comparison, comparison_page
    from mtl_jax.workdir.files import replace_text

    results, failed, start_time = [], 0, time.monotonic()
    runs = [
        (variant, seed) for seed in seeds for variant in variants
    ]  # seeds in the outer loop: a first comparison of all variants comes early
    for number, (variant, seed) in enumerate(runs, 1):
        workdir = out / _folder(variant.label) / f"seed_{seed}"
        minutes = (time.monotonic() - start_time) / 60
        print(f"[{number}/{len(runs)}] {variant.label}, seed {seed} ({minutes:.0f} min so far)", flush=True)
        problem = train(workdir, _arguments(variant, seed, common))
        try:
            result = None if problem else comparison.read(variant.label, seed, workdir)
        except UserError as error:
            result, problem = None, str(error)
        if result is None:
            failed += 1
            print(f"  failed: {problem or 'no contract.json was written'}", flush=True)
            continue
        print(f"  contract {'PASSED' if result.contract['passed'] else 'BROKEN'}", flush=True)
        order = [variant.label for variant in variants]
        results = sorted([*results, result], key=lambda entry: (order.index(entry.variant), entry.seed))
        replace_text(out / "comparison.md", comparison.as_markdown(results))
        replace_text(out / "comparison.csv", comparison.as_csv(results))
        replace_text(out / "comparison.html", comparison_page.as_html(out.name, results))
        replace_text(out / "training_history.json", comparison.as_history(results))
        replace_text(out / "heatmaps.svg", comparison_page.heatmaps_svg(results))
        replace_text(out / "tradeoffs.svg", comparison_page.tradeoffs_svg(results))
    if results:
        print(f"\n{comparison.as_markdown(results)}\n{out}/comparison.html")
    return 1 if failed else 0


def _arguments(variant: Variant, seed: int, common: tuple[str, ...]) -> tuple[str, ...]:
    arguments = [word.replace("{seed}", str(seed)) for word in (*variant.arguments, *common)]
    return (*arguments, f"--config.seed={seed}")


def train(workdir: Path, arguments: tuple[str, ...]) -> str:
    """Trains a run unless it is finished with equal settings and data; returns an error message or an empty string."""
    from mtl_jax.errors import UserError
    from mtl_jax.workdir.files import write_json

    try:
        existing = inspect_run(workdir, arguments)
    except UserError as error:
        return str(error)
    if existing.changed:
        backup = _set_aside(workdir)
        print(f"  trained again ({'; '.join(existing.changed[:3])}); the old run is kept in {backup}", flush=True)
    if existing.is_finished and not existing.changed:
        if existing.code_changed:
            print(f"  was trained with other code of the package; remove {workdir} to train it again", flush=True)
        return ""
    log = workdir.with_name(f"{workdir.name}.log")
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [*TRAIN, *arguments, f"--workdir={workdir}"]
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'nothing was printed'} (exit status {status}, {log})"
    write_json(_record(workdir), {"arguments": list(arguments), "data": existing.data})
    return ""


def resolve_arguments(arguments: tuple[str, ...]) -> Any:
    """Resolves the configuration of a run.

    Raises:
        UserError: the page or a setting is wrong.
    """
    from mtl_jax import config as config_lib
    from mtl_jax.config import overrides

    page, changes, _ = overrides.split(arguments)
    config = overrides.load(page, changes)
    return config_lib.resolve(config)


class FormerRun(NamedTuple):
    """State of a work directory, compared with the requested run."""

    is_finished: bool  # finished, and judged by the requested limits
    changed: list[str]  # differences of settings or data since the training
    code_changed: bool
    data: str  # digest of the current data


def inspect_run(workdir: Path, arguments: tuple[str, ...]) -> FormerRun:
    """Compares a finished run with the requested one, by resolved configuration, code and data.

    Raises:
        UserError: the page or a setting is wrong, or a file of the run is damaged.
    """
    from mtl_jax import config as config_lib
    from mtl_jax.workdir import continuation, run_record
    from mtl_jax.workdir.files import read_json, without_nan

    config = resolve_arguments(arguments)
    requested_config, data = without_nan(config.to_dict()), data_digest(config)
    training_record = read_json(workdir / run_record.RECORD)
    if training_record is None:
        return FormerRun(is_finished=False, changed=[], code_changed=False, data=data)
    before = without_nan(config_lib.completed(training_record.get("config", {})))
    changed = continuation.differences(continuation.learnt_from(before), continuation.learnt_from(requested_config))
    record = json.loads(_record(workdir).read_text()) if _record(workdir).is_file() else {}
    if isinstance(record, dict) and record.get("data", data) != data:
        changed.append("files of its datasets have changed")
    is_finished = (workdir / "contract.json").is_file() and before["contract"] == requested_config["contract"]
    return FormerRun(is_finished, changed, training_record.get("code") != run_record.code_digest(), data)


def data_digest(config: Any) -> str:
    """Returns a digest of names and sizes of the files in the folders of a configuration's sources."""
    from mtl_jax import config as config_lib

    root, digest = config_lib.data_root(config), hashlib.sha256()
    for name, stream in sorted(config.streams.items()):
        options = {**_defaults(stream.source), **stream.options}.values()
        folders = {root / value for value in options if isinstance(value, str) and value and (root / value).is_dir()}
        for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
            digest.update(os.fsencode(f"{name}/{path.relative_to(root)}:{path.stat().st_size}\n"))
    return digest.hexdigest()[:16]


def _defaults(source: str) -> dict[str, Any]:
    from mtl_jax.data.sources.registry import SOURCES

    parameters = inspect.signature(SOURCES[source]).parameters.values() if source in SOURCES else ()
    return {parameter.name: parameter.default for parameter in parameters}


def _record(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.json")


def _set_aside(workdir: Path) -> Path:
    candidates = (workdir.with_name(f"{workdir.name}.old-{number}") for number in itertools.count(1))
    backup = next(candidate for candidate in candidates if not candidate.exists())
    _record(workdir).unlink(missing_ok=True)
    return workdir.rename(backup)


def _folder(label: str) -> str:
    """Converts a label to a folder name; a digest keeps labels apart that lose characters."""
    name = re.sub(r"[^\w.+=-]+", "_", label).strip("._") or "variant"
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
