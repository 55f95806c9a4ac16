"""Run as a program: reads what is made to cost memory or time, within limits, and prints one line for each."""

import io
import json
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from test_fuzz import COCO_TREE
from test_open_images_mini import coco

from mtl_jax.data import images, pixel_labels
from mtl_jax.data.minis.archives import read_files
from mtl_jax.data.minis.open_images_mini import convert
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.models.backbones import pretrained

MEMORY_BYTES = 2 << 30
LONGEST_S = 10.0


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def largest() -> bytes:
    """An image at the limit, in the mode that takes most memory."""
    buffer = io.BytesIO()
    Image.new("RGBA", (8000, 8000), (1, 2, 3, 4)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def opened(root: Path, **changes: Any) -> None:
    image = COCO_TREE["images"][0] | changes
    (root / "mini-coco-det/annotations/instances_train.json").write_text(json.dumps(COCO_TREE | {"images": [image]}))
    registry.build("coco_detection", data_root=root, split="train")[0]


def converted(root: Path, segmentation: Any) -> None:
    annotation = COCO_TREE["annotations"][0] | {"segmentation": segmentation}
    for split in ("train", "val"):
        content = json.dumps(COCO_TREE | {"annotations": [annotation]})
        (root / f"mini-coco-det/annotations/instances_{split}.json").write_text(content)
    convert(root, force=True)


def circle(points: int) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, points)
    return np.stack([4 + 3 * np.cos(angle), 2 + np.sin(angle)], axis=1).ravel().tolist()


def claimed(root: Path) -> dict[str, np.ndarray]:
    """Reads an array whose header claims a million times a million numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(root / "claim.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
    return pretrained.read_state_dict(root / "claim.npz")


def lying(root: Path) -> None:
    """Reads a zip of 1 GB of zeros whose directory says 100 bytes."""
    with zipfile.ZipFile(root / "lie.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x", "w") as member:
        for _ in range(1 << 10):
            member.write(bytes(1 << 20))
    content = (root / "lie.zip").read_bytes()
    (root / "lie.zip").write_bytes(content.replace(struct.pack("<I", 1 << 30), struct.pack("<I", 100)))
    list(read_files(root / "lie.zip", ["x"]))


def main() -> None:
    root = coco(Path(tempfile.mkdtemp()))
    cases: dict[str, Callable[[], Any]] = {
        "png of 60,000 px": lambda: images.decode_image(png(60_000, 60_000), name="x"),
        "mask of 60,000 px": lambda: pixel_labels.decode_mask(png(60_000, 60_000), class_count=2, name="x"),
        "largest image": lambda: images.decode_image(largest(), name="x"),
        "coco image of 10^9 px": lambda: opened(root, width=10**9),
        "outlines as run lengths": lambda: converted(root, {"counts": [10**12], "size": [10**6, 10**6]}),
        "outline of a million corners": lambda: converted(root, [circle(1_000_000)]),
        "outline at 1e30": lambda: converted(root, [[1e30, 1.0, 5.0, 1e30, 5.0, -1e30]]),
        "npz that claims 4 TB": lambda: claimed(root),
        "zip that unpacks to 1 GB": lambda: lying(root),
    }
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))
    for name, loaded in cases.items():
        started = time.process_time()
        try:
            loaded()
            outcome = "read"
        except UserError:
            outcome = "refused"
        seconds = time.process_time() - started
        print(f"{name}: {outcome if seconds < LONGEST_S else f'{seconds:.0f} s'}", flush=True)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
