"""8-bit files of `mtl-jax export`: writes them and reports their metrics compared with fp32."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

CALIBRATED = ("onnx", "openvino")  # formats whose 8-bit files are calibrated, and can be fine-tuned
LARGEST_ERROR = 0.5  # of the raw outputs of an 8-bit file, relative to their size; usual ones have 0.01 to 0.1
LARGEST_DISAGREEMENT = 0.1  # of a runtime with onnxruntime, on the same 8-bit network; usual are 0.01 to 0.03


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --int8, --calibrate and --qat."""
    parser.add_argument(
        "--int8", action="store_true", help="also write 8-bit ONNX, OpenVINO and LiteRT files and measure them"
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        help="with --int8: calibration images; default: training images of the run",
    )
    parser.add_argument(
        "--qat",
        type=int,
        metavar="STEPS",
        help="with --int8: also write ONNX and OpenVINO files fine-tuned in 8 bits for this number of steps",
    )


def flag_error(names: list[str], options: argparse.Namespace) -> str:
    """Returns the error of the flags, or an empty string."""
    if options.calibrate and not options.int8:
        return "--calibrate: expected to be given with --int8, found without it; add --int8"
    if options.calibrate and not _by_calibration(names):
        return (
            "--calibrate: expected --format onnx or openvino, found litert alone, whose 8-bit file needs no images; "
            "leave --calibrate out"
        )
    if options.qat is None:
        return ""
    if not options.int8:
        return "--qat: expected to be given with --int8, found without it; add --int8"
    if options.qat < 1:
        return f"--qat: expected 1 step or more, found {options.qat}; 800 are a start"
    if not set(CALIBRATED) & set(names):
        return f"--qat: expected --format onnx or openvino, which it fine-tunes, found {', '.join(names)}; add onnx"
    return ""


def _by_calibration(names: list[str]) -> list[str]:
    """Returns the formats of calibrated 8-bit files to write: the selected ones, or else ONNX."""
    selected = [name for name in names if name in CALIBRATED]
    return selected or ([] if "litert" in names else ["onnx"])


class EightBits(NamedTuple):
    """An 8-bit file and its row in the table of files."""

    row: tuple[Any, ...]
    exported: Any


class TrainingImages(NamedTuple):
    """Images from which 8-bit files are made."""

    pixels: Any = ()  # to calibrate with
    batches: Any = None  # to fine-tune with; None without --qat


def read_images(options: argparse.Namespace, names: list[str], model: Any, view: Any) -> TrainingImages:
    """Reads the images that the flags need, before any file is written: a missing dataset is reported at once.

    Args:
        options: parsed flags.
        names: format names.
        model: network to export.
        view: input size and crop.

    Raises:
        UserError: a package or the data is missing, or the data holds validation images.
    """
    if not options.int8 or not _by_calibration(names):
        return TrainingImages()
    from mtl_jax import predict
    from mtl_jax.export import calibration_images, formats

    formats.require_packages("onnx")
    from mtl_jax.export import fine_tuning

    batches = None
    if options.qat:
        sizes = {"count": options.qat, "batch_size": fine_tuning.BATCH_SIZE, "crop": fine_tuning.CROP}
        batches = calibration_images.TrainingBatches(model, view, **sizes)
    if options.calibrate:
        return TrainingImages(
            calibration_images.load_images(model, predict.find_images(options.calibrate), view), batches
        )
    return TrainingImages(calibration_images.training_images(model, view), batches)


def write_files(
    options: argparse.Namespace,
    names: list[str],
    model: Any,
    folder: Path,
    image: Any,
    form: Any,
    images: TrainingImages,
    checked: Any,
) -> list[EightBits]:
    """Writes the 8-bit files that the flags select.

    Args:
        options: parsed flags.
        names: format names.
        model: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout.
        images: from `read_images`.
        checked: one batch of images for the comparison.
    """
    if not options.int8:
        return []
    quantised_files = []
    if calibrated := _by_calibration(names):
        quantised_files += _write_calibrated(calibrated, model, folder, image, form, images)
    if "litert" in names:
        quantised_files.append(_write_litert(model, folder, image, form, checked))
    return quantised_files


def _write_calibrated(
    names: list[str], model: Any, folder: Path, image: Any, form: Any, images: TrainingImages
) -> list[EightBits]:
    import numpy as np

    from mtl_jax.export import check, fine_tuning, formats, int8, openvino

    writers = {
        "onnx": (formats.save_onnx, "onnx"),
        "openvino": (functools.partial(openvino.save_ir, image=image), "xml"),
    }
    quantise = {"int8": lambda: int8.quantised_network(model, image, form, images.pixels)}
    if (batches := images.batches) is not None:
        report = _progress(len(batches))
        quantise["int8 qat"] = lambda: fine_tuning.tuned_network(
            model, image, form, images.pixels, batches, report=report
        )
    pixels, quantised_files = np.concatenate(images.pixels[: int8.SEARCH_IMAGES]), []
    expected = check.reference(model, form)[1](pixels)
    for label, network in quantise.items():  # fine-tuning takes minutes: the files before it are accepted first
        result = network()
        in_onnxruntime = formats.open_check_model(result.converted, form)(pixels)
        for name in names:
            save, suffix = writers[name]
            exported = save(result.converted, folder / f"model.{label.replace(' ', '.')}.{suffix}", form=form)
            share = f"{result.quantised_count} of {result.candidate_count} convolutions"
            batch = "any" if exported.any_batch else image.shape[0]
            outputs = exported.check(pixels)
            error = check.relative_error(expected, outputs)
            quantised_files.append(_accepted(f"{name} {label}", exported, error, f"; {share}", batch))
            _require_agreement(f"{name} {label}", check.relative_error(in_onnxruntime, outputs))
    return quantised_files


def _require_agreement(label: str, disagreement: float) -> None:
    """Checks that the runtime of a file computes the 8-bit network as onnxruntime does."""
    from mtl_jax.errors import UserError

    if not disagreement <= LARGEST_DISAGREEMENT:
        raise UserError(
            f"{label}: expected the raw outputs that onnxruntime computes from the same 8-bit network, found a "
            f"difference of {disagreement:.2f} times their size; the runtime computes 8 bits wrongly on this "
            "processor: use --format onnx with onnxruntime"
        )


def _accepted(label: str, exported: Any, error: float, remark: str, batch: int | str) -> EightBits:
    """Returns a file with its row, unless its runtime computes raw outputs far from those of the fp32 network."""
    from mtl_jax.errors import UserError

    if not error <= LARGEST_ERROR:
        raise UserError(
            f"{label}: expected raw outputs near those of the network, found an error of {error:.2f} times their size; "
            "8 bits do not suit this network, or the runtime computes them in another way: leave --int8 out"
        )
    row = label, exported.path, f"{exported.size / 1e6:.1f}", f"{error:.2g} of the size{remark}", batch
    return EightBits(row, exported)


def _progress(steps: int) -> Any:
    """Returns a callback that prints the loss ten times."""

    def report(step: int, loss: float) -> None:
        if step == steps or step % max(steps // 10, 1) == 0:
            print(f"--qat: step {step} of {steps}, loss {loss:.2f} of the first", file=sys.stderr, flush=True)

    return report


def _write_litert(model: Any, folder: Path, image: Any, form: Any, checked: Any) -> EightBits:
    from mtl_jax.export import check, litert_int8

    exported: Any = litert_int8.litert_int8(model, folder, image, form)
    error = check.relative_error(check.reference(model, form)[1](checked), exported.check(checked))
    return _accepted("litert int8", exported, error, "", image.shape[0])


def print_metrics(quantised_files: list[EightBits], model: Any, form: Any, view: Any) -> None:
    """Prints the main metric of every task and of its later classes, of the fp32 network and of every 8-bit file."""
    from rich.console import Console
    from rich.table import Table

    from mtl_jax import tasks
    from mtl_jax.errors import UserError
    from mtl_jax.export import check, metrics

    if not quantised_files:
        return
    try:
        expected = metrics.main_metrics(model, check.reference(model, form)[1], view)
        by_file = {file.row[0]: metrics.main_metrics(model, file.exported.check, view) for file in quantised_files}
    except UserError as error:
        print(f"note: no metrics of {', '.join(file.row[0] for file in quantised_files)}: {error}")
        return
    columns = [column for label in by_file for column in (label, "lost, %")]
    table = Table("task", "metric, on validation images", "fp32", *columns)
    for name in expected:
        task, cells = model.tasks[name.partition("/")[0]], []  # of later classes, too
        for values in by_file.values():
            loss = (expected[name] - values[name]) * (1 if task.higher_is_better else -1)
            percent = f"{100 * loss / expected[name]:.1f}" if expected[name] else ""
            cells += [f"{values[name]:.4f}", percent]
        table.add_row(name, tasks.title(task.main_metric), f"{expected[name]:.4f}", *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
