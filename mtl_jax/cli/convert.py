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

    conversion = formats.convert(
        options.src,
        options.dst,
        to=options.to,
        kind=options.kind,
        format=options.format,
        images=options.images,
        annotated_on=options.annotated_on,
    )
    reading = conversion.source.reading
    print(
        f"read {conversion.source.format}: {', '.join(counted(count, noun) for noun, count in reading.counts.items())}"
    )
    for note in reading.notes:
        print(f"note: {note}")
    for noun, count in conversion.counts.items():
        print(f"note: {counted(count, noun)}")
    print(f"wrote {', '.join(conversion.kinds)} to {conversion.path} ({options.to})")
    return 0
