"""Exports a trained network to files that run without this package, and checks them.

mtl-jax export --weights runs/seq --out exported --images "data/mini-coco-det/val/*.jpg"
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.cli import eight_bits, flags

REPEATS = 20  # timed calls
DYNAMIC = "dynamic"  # value of --image_size


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("export", __doc__)
    flags.add_weights(parser)
    parser.add_argument("--out", type=Path, help="folder of the files")
    parser.add_argument(
        "--web", type=Path, help="folder of a page that runs the ONNX file in a browser, without a server"
    )
    parser.add_argument("--ort_web", type=Path, help="tarball or folder of onnxruntime-web; default: from npm, once")
    parser.add_argument("--format", default="stablehlo,onnx", help="some of stablehlo, onnx, litert, openvino, coreml")
    size_help = f"px, a multiple of 32, or {DYNAMIC} for any such height and width; default: as validated"
    parser.add_argument("--image_size", type=_image_size, default=0, help=size_help)
    parser.add_argument("--batch_size", type=int, default=1, help="batch size of the StableHLO file and of the checks")
    parser.add_argument(
        "--decode",
        choices=("none", "boxes", "all"),
        default="all",
        help="boxes: no suppression",
    )
    parser.add_argument("--layout", choices=("nhwc", "nchw"), default="nhwc", help="of images and output maps")
    parser.add_argument(
        "--images", nargs="+", default=[], help="files, folders or patterns to check with; default: noise"
    )
    eight_bits.add_flags(parser)
    return parser


def _image_size(text: str) -> int | str:
    if text != DYNAMIC and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"expected px, a multiple of 32, or {DYNAMIC}, found {text}")
    return text if text == DYNAMIC else int(text)


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints sizes, differences and latencies; returns 0, or 2 for a usage error or a file that differs."""
    options = parser().parse_args(arguments)
    # Imported after the flags, so that --help does not wait for JAX.
    from mtl_jax.runtime import compilation

    compilation.enable_cache()
    try:
        problem = _export_web(options) if options.web else _export(options)
    except OSError as error:
        problem = f"{options.out} cannot be written ({error.strerror}); name another folder with --out"
    return flags.fail(problem) if problem else 0


def _export_web(options: argparse.Namespace) -> str:
    """Writes the ONNX file, the page and the runtime into one folder; returns an error message or an empty string."""
    from mtl_jax.export import web
    from mtl_jax.kernels import user_cache

    if options.out or options.decode != "all":
        return "--web takes neither --out, because it names the folder, nor --decode; leave them out"
    options.out, options.format = options.web, "onnx"
    files = web.runtime(options.ort_web, user_cache.cache_dir() / "web")  # first, so that errors come early
    if problem := _export(options):
        return problem
    web.add(options.out.expanduser(), files)
    print(f"{options.out}: serve the folder by any static host, e.g. python -m http.server --directory {options.out}")
    return ""


def _export(options: argparse.Namespace) -> str:
    """Writes the files after all of them pass the checks; returns an error message or an empty string."""
    from mtl_jax.export import formats, network
    from mtl_jax.workdir import trained

    names = list(dict.fromkeys(name.strip() for name in options.format.split(",")))
    if problem := _flag_error(names, options):
        return problem
    model = trained.load(options.weights, tasks=options.tasks)
    view = network.input_view(model)
    if options.image_size == DYNAMIC:
        image = network.input_shape_of_any_size()
    else:
        view = view._replace(image_size=options.image_size or view.image_size)
        image = network.input_shape(image_size=view.image_size, batch_size=options.batch_size)
    shapes = [(options.batch_size, *size, 3) for size in _checked_sizes(view.image_size, options)]
    batches = [batch for shape in shapes for batch in _batches(options.images, shape, crop=view.crop)]
    form = network.Form(options.decode, options.layout)
    description = network.describe(model, image, form)
    for name in [*names, *(["litert int8"] if options.int8 and "litert" in names else [])]:
        formats.require_packages(name)
    training_images = eight_bits.read_images(options, names, model, view)
    out = options.out.expanduser()
    is_new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Written to a temporary folder first, so that a failed export leaves no partial files.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as drafts:
            rows, failures, runs = _write_files(names, model, Path(drafts), image, batches, form)
            if failures:
                return failures
            quantised = eight_bits.write_files(
                options, names, model, Path(drafts), image, form, training_images, batches[0]
            )
            for file in quantised:
                rows.append(file.row)
                runs[file.row[0]] = file.exported.run
            description["files"] = {row[0]: row[1].name for row in rows}
            description["differences"] = {row[0]: row[3] for row in rows}
            description["batch_sizes"] = {row[0]: row[-1] for row in rows}
            (Path(drafts) / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
            for draft in Path(drafts).iterdir():
                if draft.is_dir() and (out / draft.name).is_dir():  # a Core ML package
                    shutil.rmtree(out / draft.name)
                draft.replace(out / draft.name)
    finally:
        if is_new_folder and not any(out.iterdir()):
            out.rmdir()
    _print_model(model, view, description)
    eight_bits.print_metrics(quantised, model, form, view)
    _print_table([(label, str(out / path.name), *map(str, cells)) for label, path, *cells in rows], runs, batches[0])
    return ""


def _flag_error(names: list[str], options: argparse.Namespace) -> str:
    """Returns the error of the flags, or an empty string."""
    from mtl_jax.export import formats

    if options.out is None:
        return "--out: expected the folder of the files, or --web and the folder of a page, found neither"
    if unknown := [name for name in names if name not in formats.FORMATS]:
        return f"--format: expected some of {', '.join(formats.FORMATS)}, found {', '.join(unknown)}"
    if problem := eight_bits.flag_error(names, options):
        return problem
    if options.batch_size < 1:
        return f"--batch_size: expected 1 or more, found {options.batch_size}"
    if options.image_size == DYNAMIC and (fixed := [name for name in names if name not in formats.ANY_SIZE]):
        return (
            f"--image_size: expected a number of px with --format {fixed[0]}, whose files take images of one size, "
            f"found {DYNAMIC}; give the number, or choose --format {','.join(formats.ANY_SIZE)}"
        )
    if options.image_size != DYNAMIC and options.image_size < 0:
        return f"--image_size: expected a multiple of 32, or 0 for the size of validation, found {options.image_size}"
    return ""


def _write_files(
    names: list[str], model: Any, folder: Path, image: Any, batches: list[Any], form: Any = None
) -> tuple[list[tuple[Any, ...]], str, dict[str, Any]]:
    """Writes and checks each format; returns table rows, a message of failed checks, and functions for the timing."""
    from mtl_jax.export import check, formats, network

    form = form or network.Form()
    rows, failures, runs = [], [], {"the network in JAX": check.reference(model, form)[0]}
    for name in names:
        exported = formats.FORMATS[name](model, folder, image, form)
        size, batch = f"{exported.size / 1e6:.1f}", "any" if exported.any_batch else image.shape[0]
        if exported.run is None or exported.check is None:
            rows.append((name, exported.path, size, "not checked: nothing here runs it", batch))
            continue
        peer = exported.network or model
        limit = check.MAX_DIFFERENCE[peer.config.model.compute_dtype]
        expected = check.reference(peer, form)[1]
        differences = check.differences(peer, expected, exported.check, batches, decode=form.decode)
        largest = max(differences, key=lambda key: differences[key])
        failures += [
            f"{name}: {key} differs by {differences[key]:.1e}, expected at most {limit} of the largest magnitude"
            for key in differences
            if not differences[key] <= limit
        ]
        runs[name] = exported.run
        rows.append((name, exported.path, size, f"{differences[largest]:.1e} ({largest})", batch))
    return rows, "; ".join(failures), runs


def _print_model(model: Any, view: Any, description: dict[str, Any]) -> None:
    """Prints what was exported, and every difference between the files and the network's validation."""
    print(f"{model.path}, stage {model.stage}: {', '.join(model.names)}; the files take {view}")
    if "height" in description["input"]["shape"]:
        stride = description["input"]["multiple_of"]
        print(
            f"note: height and width may be any multiples of {stride} px; tasks were validated at {view.image_size} px"
        )
    if model.config.model.compute_dtype != "float32" and "onnx" in description["files"]:
        print("note: model.onnx computes in float32 and is compared with the network in float32")
    for name, task in description["tasks"].items():
        if task["validated_on"] != str(view):
            print(f"note: {name} was validated on {task['validated_on']}, the files take {view}")


def _checked_sizes(image_size: int, options: argparse.Namespace) -> list[tuple[int, int]]:
    """Returns the heights and widths of the checks; for a dynamic size, two that differ in both."""
    if options.image_size != DYNAMIC:
        return [(image_size, image_size)]
    from mtl_jax.config.model_settings import IMAGE_STRIDE

    lower = max(image_size // 2 // IMAGE_STRIDE, 1) * IMAGE_STRIDE
    return [(image_size, image_size), (lower, image_size + IMAGE_STRIDE)]


def _batches(patterns: list[str], shape: tuple[int, ...], *, crop: bool) -> Iterator[Any]:
    """Yields batches of preprocessed images, or of coarse colour noise without images."""
    import numpy as np

    from mtl_jax import predict
    from mtl_jax.data import pipeline
    from mtl_jax.data.images import decode_image

    size, count = shape[1:3], shape[0]
    if not patterns:
        noise = np.random.default_rng(0).random((count, size[0] // 16, size[1] // 16, 3), np.float32)
        yield noise.repeat(16, axis=1).repeat(16, axis=2)
        return
    paths = predict.find_images(patterns)
    for first in range(0, len(paths), count):
        images = [decode_image(path) for path in paths[first : first + count]]
        yield pipeline.fitted(images, size=(size[0], size[1]), batch_size=count, crop=crop)[0]


def _print_table(rows: list[tuple[str, ...]], runs: dict[str, Any], pixels: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from mtl_jax.export import check

    calls = {name: functools.partial(run, pixels) for name, run in runs.items()}
    times = check.latencies_ms(calls, repeats=REPEATS)
    table = Table("format", "file", "MB", "largest difference (of)", "images", f"median ms of {len(pixels)}")
    for row in [("the network in JAX", "", "", "", "any"), *rows]:
        table.add_row(*row, f"{times[row[0]]:.1f}" if row[0] in times else "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
