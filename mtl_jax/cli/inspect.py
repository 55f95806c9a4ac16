"""Inspects datasets: content, suspicious labels, and images with their labels drawn.

mtl-jax inspect masks=photos/masks boxes=labels.json classes=flowers/ --out inspect.html
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.cli import flags
from mtl_jax.errors import UserError

MAX_IMAGES = 200  # of a dataset; larger pages open slowly
PROGRESS_SECONDS = 10.0  # between progress lines in a log


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("inspect", __doc__)
    parser.add_argument("labels", nargs="+", metavar="KIND=PATH", help="kind of label, and its folder or file")
    parser.add_argument("--out", type=Path, default=Path("inspect.html"), help="output page; default inspect.html")
    parser.add_argument("--images", type=int, default=24, help="largest number of images of a dataset")
    flags.add_reading(parser)
    flags.add_minutes(parser)
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints the table of datasets, notes and suspicious labels, and writes the page; returns 0 or 2."""
    options = parser().parse_args(arguments)
    if not 1 <= options.images <= MAX_IMAGES:
        raise UserError(f"--images: expected 1 to {MAX_IMAGES}, found {options.images}")
    from mtl_jax.cli import own_run
    from mtl_jax.own_data import contact_sheet, inspection, request
    from mtl_jax.workdir import data_record, files

    datasets = request.parse(options.labels, val_share=options.val_share, annotated_on=options.annotated_on)
    choices, _ = own_run.inspect_data(datasets, options)
    inspected = [
        inspection.inspect(
            choice.dataset,
            cache=data_record.cache_folder(),
            on_progress=_progress(choice.dataset.request.name),
        )
        for choice in choices
    ]
    leaks = inspection.leaks(inspected)
    for line in (note for record in inspected for note in record.notes):
        print(f"note: {line}")
    for line in [*leaks, *(line for record in inspected for line in record.suspicious)]:
        print(f"suspicious: {line}")
    out = options.out.expanduser()
    try:
        files.replace_text(out, contact_sheet.render(inspected, leaks, images=options.images))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another file with --out") from error
    print(f"images with their labels: {out}")
    return 0


class _progress:
    """Progress of the inspection: one updated line in a terminal, or lines in a log."""

    def __init__(self, name: str) -> None:
        self._name, self._last_report = name, time.monotonic()

    def __call__(self, completed: int, total: int) -> None:
        is_terminal = sys.stderr.isatty()
        if is_terminal or time.monotonic() - self._last_report > PROGRESS_SECONDS:
            self._last_report = time.monotonic()
            end = ("\n" if completed == total else "\r") if is_terminal else "\n"
            print(f"{self._name}: {completed} of {total} images inspected", end=end, file=sys.stderr, flush=True)
