"""Prepares the mini datasets of VOC, COCO and Imagenette: `mtl-jax prepare --data_root data`."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax.cli import flags
from mtl_jax.errors import UserError

STOPPED = "stopped; run the same command again to go on"

EXAMPLES = """examples:
  mtl-jax prepare --data_root data                          all three, downloaded
  mtl-jax prepare --data_root data --sets imagenette        the smallest download (99 MB)
  mtl-jax prepare --data_root data --from_dir ~/archives    from archives already on disk
  mtl-jax prepare --data_root data --sets coco,open-images  the same images in two layouts
  mtl-jax prepare --data_root data --config configs/seq.py --shards packed
                                                            the datasets of a page, packed into a few large files

The sets are cut from the official archives by fixed id lists and verified byte for byte (docs/data.md).
An interrupted download goes on where it stopped when the same command is run again.
"""


def parser(prefix: str = "error") -> flags.Parser:
    """Returns the command's flags.

    Args:
        prefix: prefix of the error line.
    """
    parser = flags.Parser("prepare", __doc__, prefix=prefix, epilog=EXAMPLES)
    parser.add_argument(
        "--data_root",
        type=Path,
        default=Path(os.environ.get("MTL_JAX_DATA") or "data"),
        metavar="DIR",
        help="folder of the sets, created if absent (default: $MTL_JAX_DATA, or else ./data)",
    )
    parser.add_argument(
        "--sets",
        default="voc,coco,imagenette",
        metavar="NAMES",
        help="comma list of voc (2.0 GB to download), coco (0.3 GB) and imagenette (0.1 GB), the default; and "
        "open-images, which is built from coco",
    )
    parser.add_argument(
        "--from_dir",
        type=Path,
        metavar="DIR",
        help="folder with the official archives or their extracted files; nothing is downloaded",
    )
    parser.add_argument("--force", action="store_true", help="replace an incomplete or changed set")
    parser.add_argument(
        "--base_url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="download a set from a mirror, such as voc=https://example.org/voc; may be repeated",
    )
    parser.add_argument(
        "--shards",
        metavar="NAME",
        help="write the datasets of the page that --config names as ArrayRecord files into the folder NAME of the data "
        "root, one folder for each stream, for the source `shards`; no set is prepared",
    )
    parser.add_argument("--shard_mb", type=int, default=256, metavar="MB", help="size of a file (default: 256)")
    return parser


def _base_url(argument: str) -> tuple[str, str]:
    name, equals, url = argument.partition("=")
    if not equals:
        raise UserError(f"--base_url: expected NAME=URL, found {argument!r}; write for example voc=https://…")
    return name, url.rstrip("/")


def main(arguments: Sequence[str], *, prefix: str = "error") -> int:
    """Runs the command line.

    Args:
        arguments: arguments of the command.
        prefix: prefix of the error line.

    Returns:
        Exit status: 0, 2 for a usage error, 130 after Ctrl-C.
    """
    return flags.reported(functools.partial(_prepare, prefix), prefix=prefix, interrupted=STOPPED)(arguments)


def _prepare(prefix: str, arguments: Sequence[str]) -> int:
    from mtl_jax.config import overrides

    page, changes, flag_words = overrides.split(arguments)
    options = parser(prefix).parse_args(flag_words)
    if bool(page) != bool(options.shards):
        raise UserError(
            "expected --config PAGE and --shards NAME together, or neither, found one of them; give both or none"
        )
    if options.shards:
        return _pack(overrides.load(page, changes), options)
    from mtl_jax.data.minis.prepare import prepare
    from mtl_jax.data.minis.prepared import describe

    names = [name.strip() for name in options.sets.split(",") if name.strip()]
    base_urls = dict(_base_url(argument) for argument in options.base_url)
    folders = prepare(
        names, data_root=options.data_root, from_dir=options.from_dir, base_urls=base_urls, force=options.force
    )
    for line, name in zip(folders, names, strict=True):
        print(line)
        for description in describe(name, data_root=options.data_root):
            print(f"  {description}")
    return 0


def _pack(config: Any, options: argparse.Namespace) -> int:
    """Writes every stream's splits as shards, and prints the settings that load them."""
    from mtl_jax import config as config_lib
    from mtl_jax import experiment
    from mtl_jax.continual import reading
    from mtl_jax.data import shards

    if options.shard_mb < 1:
        raise UserError(f"--shard_mb: expected at least 1, found {options.shard_mb}")
    setup = experiment.build(reading.complete(config_lib.resolve(config)), data_root=options.data_root)
    for stream in setup.used_streams:
        folder = Path(options.shards) / stream
        for split, training in (("train", True), ("val", False)):
            source = experiment.source(setup, stream, training=training)
            target, size = options.data_root / folder, options.shard_mb * 2**20
            names = shards.write(source, target, split=split, shard_bytes=size)
            print(f"{target}: {len(source)} samples of {split} in {len(names)} files")
        source_options = {"folder": str(folder)}
        print(
            f"  read by: config.streams.{stream}.source, config.streams.{stream}.options = 'shards', {source_options}"
        )
    return 0
