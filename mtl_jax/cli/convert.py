"""Converts images and labels to another format; the source format is detected from its content by default.

mtl-jax convert photos/annotations.xml yolo/ --to yolo
"""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.cli import flags


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("convert", __doc__)
    parser.add_argument("src", metavar="SRC", help="folder or file of the labels; table.csv:column names a column")
    parser.add_argument("dst", metavar="DST", help="output folder, which must be empty or absent")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="such as coco, voc or yolo")
    parser.add_argument("--kind", help="kind of label to write, such as boxes; default: all that the format supports")
    parser.add_argument("--format", default="auto", help="format of SRC; default: detected from its content")
    parser.add_argument("--images", metavar="DIR", help="folder of the images of SRC, if it is separate")
    flags.add_annotated_on(parser)
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints what was read, written and dropped; returns 0, or 2 for a usage error."""
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
    dataset = conversion.source.reading
    print(
        f"read {conversion.source.format}: {', '.join(counted(count, noun) for noun, count in dataset.counts.items())}"
    )
    for note in dataset.notes:
        print(f"note: {note}")
    for noun, count in conversion.counts.items():
        print(f"note: {counted(count, noun)}")
    print(f"wrote {', '.join(conversion.kinds)} to {conversion.path} ({options.to})")
    return 0
