"""Writes images and labels in another format; that of the source is found by its content where it is not named.

mtl-jax convert photos/annotations.xml yolo/ --to yolo
"""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.cli import flags


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("convert", __doc__)
    parser.add_argument("src", metavar="SRC", help="folder or file of the labels; table.csv:column names a column")
    parser.add_argument("dst", metavar="DST", help="folder to write, which must be empty or not be there")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="such as coco, voc or yolo")
    parser.add_argument("--kind", help="of label to write, such as boxes; all that the format holds by default")
    parser.add_argument("--format", default="auto", help="of SRC; found by its content by default")
    parser.add_argument("--images", metavar="DIR", help="folder of the images of SRC, where they lie apart")
    flags.add_annotated_on(parser)
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints what was read, written and left out; returns 0, or 2 for a mistake."""
    options = parser().parse_args(arguments)
    from mtl_jax.data import formats
    from mtl_jax.data.sources.base import counted

    done = formats.convert(
        options.src,
        options.dst,
        to=options.to,
        kind=options.kind,
        format=options.format,
        images=options.images,
        annotated_on=options.annotated_on,
    )
    read = done.source.reading
    print(f"read {done.source.format}: {', '.join(counted(count, what) for what, count in read.counts.items())}")
    for note in read.notes:
        print(f"note: {note}")
    for what, count in done.counts.items():
        print(f"note: {counted(count, what)}")
    print(f"wrote {', '.join(done.kinds)} to {done.path} ({options.to})")
    return 0
