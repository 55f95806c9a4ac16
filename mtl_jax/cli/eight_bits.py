"""The part of `mtl-jax export` that writes files in eight bits and says what tasks lose by them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --int8, --calibrate and --qat."""
    parser.add_argument("--int8", action="store_true", help="also the ONNX and LiteRT files in eight bits, measured")
    parser.add_argument(
        "--calibrate", nargs="+", default=[], help="of --int8: images in place of the run's own training images"
    )
    parser.add_argument(
        "--qat",
        type=int,
        metavar="STEPS",
        help="of --int8: also the ONNX file fine-tuned in eight bits for so many steps",
    )


def mistake(names: list[str], options: argparse.Namespace) -> str:
    """Returns what is wrong with the flags, or nothing."""
    if options.calibrate and not options.int8:
        return "--calibrate: expected to be given with --int8, which it belongs to, found alone; add --int8"
    if options.calibrate and "litert" in names and "onnx" not in names:
        return (
            "--calibrate: expected --format onnx, found litert alone, whose file in eight bits needs no images; leave "
            "--calibrate out"
        )
    if options.qat is None:
        return ""
    if not options.int8:
        return "--qat: expected to be given with --int8, which it belongs to, found alone; add --int8"
    if options.qat < 1:
        return f"--qat: expected 1 step or more, found {options.qat}; 200 are a start"
    if "onnx" not in names:
        return f"--qat: expected --format onnx, which it fine-tunes, found {', '.join(names)}; add onnx"
    return ""


class EightBits(NamedTuple):
    """A file in eight bits."""

    row: tuple[Any, ...]  # of the table of files
    exported: Any


def files(
    options: argparse.Namespace,
    names: list[str],
    model: Any,
    folder: Path,
    image: Any,
    form: Any,
    view: Any,
    checked: Any,
) -> list[EightBits]:
    """Writes the files in eight bits that are asked for.

    Args:
        options: of the command.
        names: of formats.
        model: the network.
        folder: gets the files.
        image: what they take.
        form: what they take and give.
        view: how images are shown to them.
        checked: images to compare with, one batch.
    """
    if not options.int8:
        return []
    small = _small_onnx(options, model, folder, image, form, view) if "onnx" in names or "litert" not in names else []
    return [*small, *([_small_litert(model, folder, image, form, checked)] if "litert" in names else [])]


def _small_onnx(
    options: argparse.Namespace, model: Any, folder: Path, image: Any, form: Any, view: Any
) -> list[EightBits]:
    from mtl_jax import predict
    from mtl_jax.export import calibration_images, fine_tuning, int8

    batches = None
    if options.qat:  # before anything takes long
        sizes = {"count": options.qat, "batch_size": fine_tuning.BATCH_SIZE, "crop": fine_tuning.CROP}
        batches = calibration_images.TrainingBatches(model, view, **sizes)
    if options.calibrate:
        pixels = calibration_images.named(model, predict.find_images(options.calibrate), view)
    else:
        pixels = calibration_images.of_run(model, view)
    quantised = {"onnx int8": int8.int8(model, folder, image, form, pixels)}
    if batches is not None:
        report = _progress(options.qat)
        quantised["onnx int8 qat"] = fine_tuning.int8_tuned(model, folder, image, form, pixels, batches, report=report)
    small = []
    for label, made in quantised.items():
        difference = f"{made.error:.2f} of the spread; {made.chosen} of {made.whole} convolutions"
        small.append(EightBits(_row(label, made.exported, difference, "any"), made.exported))
    return small


def _progress(steps: int) -> Any:
    """Prints a tenth of all steps at a time."""

    def report(done: int, loss: float) -> None:
        if done == steps or done % max(steps // 10, 1) == 0:
            print(f"--qat: step {done} of {steps}, loss {loss:.2f} of the first", file=sys.stderr, flush=True)

    return report


def _small_litert(model: Any, folder: Path, image: Any, form: Any, checked: Any) -> EightBits:
    from mtl_jax.export import litert_int8

    made: Any = litert_int8.litert_int8(model, folder, image, form)
    difference = f"{litert_int8.apart(model, form, made.check, checked):.2f} of the size"
    return EightBits(_row("litert int8", made, difference, image.shape[0]), made)


def _row(label: str, exported: Any, difference: str, images: Any) -> tuple[Any, ...]:
    return label, exported.path, f"{exported.size / 1e6:.1f}", difference, images


def show_figures(small: list[EightBits], model: Any, form: Any, view: Any) -> None:
    """Prints the main metric of every task on validation images, in fp32 and in every file in eight bits."""
    from rich.console import Console
    from rich.table import Table

    from mtl_jax import tasks
    from mtl_jax.errors import UserError
    from mtl_jax.export import check, figures

    if not small:
        return
    try:
        whole = figures.figures(model, check.reference(model, form)[1], view)
        by_file = {file.row[0]: figures.figures(model, file.exported.check, view) for file in small}
    except UserError as error:
        print(f"note: no figures of {', '.join(file.row[0] for file in small)}: {error}")
        return
    columns = [column for label in by_file for column in (label, "lost, %")]
    table = Table("task", "figure, on validation images", "fp32", *columns)
    for name in model.names:
        task, cells = model.tasks[name], []
        for values in by_file.values():
            loss = (whole[name] - values[name]) * (1 if task.higher_is_better else -1)
            cells += [f"{values[name]:.4f}", f"{100 * loss / whole[name]:.1f}" if whole[name] else ""]
        table.add_row(name, tasks.title(task.main_metric), f"{whole[name]:.4f}", *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
