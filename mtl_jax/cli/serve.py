"""Serves a trained network: a local web page for photographs, and an HTTP API.

mtl-jax serve --weights runs/seq
"""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.cli import flags

HOST, PORT = "127.0.0.1", 8000


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("serve", __doc__)
    flags.add_weights(parser)
    parser.add_argument("--host", default=HOST, help=f"address to listen on; default {HOST}, this machine alone")
    parser.add_argument("--port", default=PORT, type=int, help=f"default {PORT}; 0 picks a free port")
    parser.add_argument("--batch_size", default=4, type=int, help="largest batch of waiting images")
    parser.add_argument("--max_mb", default=25.0, type=float, help="limit of an upload, MB")
    parser.add_argument("--max_megapixels", default=50.0, type=float, help="limit of an image, megapixels")
    parser.add_argument("--timeout", default=60.0, type=float, help="s for the upload, and again for the response")
    parser.add_argument("--max_waiting", default=64, type=int, help="concurrent requests")
    flags.add_switch(parser, "flip", "also run every mirrored image, and average both")
    return parser


@flags.reported(interrupted="ended")
def main(arguments: Sequence[str]) -> int:
    """Serves until Ctrl-C; returns 0, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    limits = (options.max_mb, options.max_megapixels, options.timeout, options.max_waiting, options.batch_size)
    if not all(0 < limit < float("inf") for limit in limits):
        return flags.fail("limits and --batch_size: expected numbers above 0, found another; change it")
    try:
        from mtl_jax.serve import inference, run, uploads
    except ImportError as error:
        return flags.fail(f"serve needs {error.name}, which is not installed: pip install -e '.[serve]'")
    from mtl_jax.runtime import compilation
    from mtl_jax.workdir import trained

    compilation.enable_cache()
    socket = run.listen(options.host, options.port)  # a port in use is reported before anything is compiled
    with socket:
        network = trained.load(options.weights, tasks=options.tasks)
        service = inference.InferenceService(network, batch_size=options.batch_size, flip=options.flip)
        print(f"{network.path}, stage {network.stage}: {', '.join(network.names)}", flush=True)
        service.start(lambda text: print(text, flush=True))
        upload_limits = uploads.Limits(options.max_mb, options.max_megapixels, options.timeout, options.max_waiting)
        run.serve(service, upload_limits, socket, lambda url: print(f"serving at {url} (Ctrl-C ends it)", flush=True))
    print("ended", flush=True)
    return 0
