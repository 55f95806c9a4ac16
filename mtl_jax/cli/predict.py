"""Runs trained weights on images; writes predictions as JSON and drawn over the images.

mtl-jax predict --weights runs/seq --out predictions photo.jpg folder "more/*.png"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_jax.cli import flags
from mtl_jax.errors import UserError


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("predict", __doc__)
    flags.add_weights(parser)
    parser.add_argument("--out", default=Path("predictions"), type=Path, help="folder of the predictions")
    parser.add_argument(
        "--threshold", type=float, help="lowest score of boxes and tags; default: as calibrated, or 0.3 and 0.5"
    )
    flags.add_switch(parser, "flip", "also run every mirrored image, and average both")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or quoted pattern")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Writes predictions for every image; returns 0, or 2 for a usage error or an image that cannot be read."""
    options = parser().parse_args(arguments)
    from mtl_jax import predict
    from mtl_jax.runtime import compilation
    from mtl_jax.workdir import predicted_files, trained

    compilation.enable_cache()
    out, failures = options.out.expanduser(), []

    def on_error(error: UserError) -> None:
        failures.append(error)
        flags.fail(error)

    try:
        predict.check_threshold(options.threshold)
        paths = predict.find_images(options.images)
        network = trained.load(options.weights, tasks=options.tasks)
        names = dict(zip(paths, predicted_files.names_for(paths, network.names), strict=True))
        predicted_files.make_room(out, names, network.names)
        for view, tasks in predict.by_view(network).items():
            print(f"{network.path}, stage {network.stage}: shows {', '.join(tasks)} {view}")
        settings = {"threshold": options.threshold, "flip": options.flip, "on_error": on_error}
        for predicted in predict.by_network(network, paths, **settings):
            print(f"{predicted.path} -> {predict.write(predicted, out, names[predicted.path])}")
    except OSError as error:
        return flags.fail(f"{out} cannot be written ({error.strerror}); name another folder with --out")
    return flags.EXIT_USER_ERROR if failures else 0
