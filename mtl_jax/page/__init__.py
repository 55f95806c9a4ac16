"""Web page that draws predictions over photographs, computed by a server or by an ONNX file in the browser."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
COMMON = ("index.html", "page.css", "page.js", "drawing.js")
BACKENDS = {"server": "server.js", "browser": "browser.js"}  # script that computes the predictions
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def files(backend: str) -> dict[str, bytes]:
    """Returns the files of the page by name; they need no build step and no other host.

    Args:
        backend: a key of `BACKENDS`.
    """
    return {name: (FOLDER / name).read_bytes() for name in COMMON} | {
        "backend.js": (FOLDER / BACKENDS[backend]).read_bytes()
    }
