"""Lays out the mini sets of VOC, COCO and Imagenette: `python scripts/prepare_data.py --data_root data`."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from mtl_jax.data.minis.prepare import prepare
from mtl_jax.data.minis.prepared import describe
from mtl_jax.errors import UserError, print_any_name

EXAMPLES = """examples:
  python scripts/prepare_data.py --data_root data                          all three, downloaded
  python scripts/prepare_data.py --data_root data --sets imagenette        the smallest download (99 MB)
  python scripts/prepare_data.py --data_root data --from_dir ~/archives    from archives already on disk
  python scripts/prepare_data.py --data_root data --sets coco,open-images  the same images in two layouts

The sets are cut from the official archives by fixed id lists and verified byte for byte (docs/data.md).
An interrupted download goes on where it stopped when the same command is run again.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"prepare_data: {message}: see --help\n")  # one line, without the usage


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_root",
        type=Path,
        default=Path(os.environ.get("MTL_JAX_DATA") or "data"),
        metavar="DIR",
        help="folder that holds the sets, made where absent (default: $MTL_JAX_DATA, or else ./data)",
    )
    parser.add_argument(
        "--sets",
        default="voc,coco,imagenette",
        metavar="NAMES",
        help="comma list of voc (2.0 GB to download), coco (0.3 GB) and imagenette (0.1 GB), the default; and "
        "open-images, which is made of coco",
    )
    parser.add_argument(
        "--from_dir",
        type=Path,
        metavar="DIR",
        help="folder with the official archives, or with what was extracted from them; nothing is downloaded",
    )
    parser.add_argument("--force", action="store_true", help="replace a set that is there but incomplete or changed")
    parser.add_argument(
        "--base_url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="download a set from a mirror, such as voc=https://example.org/voc; may be repeated",
    )
    return parser


def _base_url(argument: str) -> tuple[str, str]:
    name, equals, url = argument.partition("=")
    if not equals:
        raise UserError(f"--base_url: expected NAME=URL, found {argument!r}: write for example voc=https://…")
    return name, url.rstrip("/")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: words after the command; by default those of the process.

    Returns:
        Exit status: 0, 2 for a mistake that the user can correct, 130 after Ctrl-C.
    """
    print_any_name()
    flags = _parser().parse_args(arguments)
    try:
        names = [name.strip() for name in flags.sets.split(",") if name.strip()]
        base_urls = dict(_base_url(argument) for argument in flags.base_url)
        done = prepare(
            names, data_root=flags.data_root, from_dir=flags.from_dir, base_urls=base_urls, force=flags.force
        )
        for line, name in zip(done, names, strict=True):
            print(line)
            for seen in describe(name, data_root=flags.data_root):
                print(f"  {seen}")
    except UserError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_data: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
