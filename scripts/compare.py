"""Trains several configurations over several seeds and puts them side by side.

python scripts/compare.py --out runs/ablation --seeds 0,1,2 configs/ablation_seq.py
python scripts/compare.py --out runs/ways configs/seq.py "branched=configs/seq.py:branched" -- --config.data_root=data

What stands after -- is for every run; {seed} in it, or in a variant's overrides, becomes the run's seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

TRAIN = Path(__file__).with_name("train.py")


class Variant(NamedTuple):
    """One configuration."""

    label: str
    arguments: tuple[str, ...]  # of train.py


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 where a run failed, 2 for a user's mistake."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", help='"[label=]page.py[:argument] [--config.field=value …]"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the comparison")
    parser.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    options = parser.parse_args(arguments[:cut])
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        variants = [variant for text in options.variants for variant in parse(text)]
        labels = [_folder(variant.label) for variant in variants]
        repeated = {label for label in labels if labels.count(label) > 1}
        if repeated:
            raise ValueError(f"several variants are called {', '.join(sorted(repeated))}; label them: name=page.py")
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return compare(options.out, variants, seeds, tuple(arguments[cut + 1 :]))


def parse(text: str) -> list[Variant]:
    """Reads one positional argument; a page with VARIANTS and no argument gives one variant for each of them.

    Raises:
        UserError: the page is not there, or cannot be read.
    """
    from mtl_jax.config import load_page

    page, *overrides = shlex.split(text)
    label, equals, rest = page.partition("=")
    page = rest if equals else page
    path, colon, argument = page.partition(":")
    variants = getattr(load_page(Path(path)), "VARIANTS", ())
    names = () if colon else variants
    if names:
        prefix = f"{label} " if equals else ""
        return [Variant(prefix + name, (f"--config={path}:{name}", *overrides)) for name in names]
    shown = [
        Path(path).stem + (f":{argument}" if colon else ""),
        *(word.removeprefix("--config.") for word in overrides),
    ]
    return [Variant(label if equals else " ".join(shown), (f"--config={page}", *overrides))]


def compare(out: Path, variants: list[Variant], seeds: list[int], common: tuple[str, ...]) -> int:
    """Trains what is not trained yet, and rewrites the comparison after every run."""
    from mtl_jax import comparison
    from mtl_jax.contract import replace_text
    from mtl_jax.errors import UserError

    results, failed, started = [], 0, time.monotonic()
    runs = [(variant, seed) for seed in seeds for variant in variants]  # a first look at all of them comes early
    for number, (variant, seed) in enumerate(runs, 1):
        workdir = out / _folder(variant.label) / f"seed_{seed}"
        minutes = (time.monotonic() - started) / 60
        print(f"[{number}/{len(runs)}] {variant.label}, seed {seed} ({minutes:.0f} min so far)", flush=True)
        given = [word.replace("{seed}", str(seed)) for word in (*variant.arguments, *common)]
        problem = train(workdir, (*given, f"--config.seed={seed}"))
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
        results = sorted([*results, result], key=lambda each: (order.index(each.variant), each.seed))
        replace_text(out / "comparison.md", comparison.as_markdown(results))
        replace_text(out / "comparison.csv", comparison.as_csv(results))
        replace_text(out / "comparison.html", comparison.as_html(out.name, results))
        replace_text(out / "training_history.json", comparison.as_history(results))
        replace_text(out / "heatmaps.svg", comparison.heatmaps_svg(results))
        replace_text(out / "tradeoffs.svg", comparison.tradeoffs_svg(results))
    if results:
        print(f"\n{comparison.as_markdown(results)}\n{out}/comparison.html")
    return 1 if failed else 0


def train(workdir: Path, arguments: tuple[str, ...]) -> str:
    """Runs train.py, unless the same arguments have been run to the end; returns what went wrong, or nothing."""
    record = workdir.with_name(f"{workdir.name}.json")
    log = workdir.with_name(f"{workdir.name}.log")
    done = record.is_file() and json.loads(record.read_text()) == list(arguments)
    if done and (workdir / "contract.json").is_file():
        return ""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [sys.executable, str(TRAIN), *arguments, f"--workdir={workdir}"]
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'nothing was printed'} (exit status {status}, {log})"
    record.write_text(json.dumps(list(arguments)) + "\n")
    return ""


def _folder(label: str) -> str:
    """A label as a folder's name; those that lose characters keep apart by a digest."""
    name = re.sub(r"[^\w.+=-]+", "_", label).strip("._") or "variant"
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
