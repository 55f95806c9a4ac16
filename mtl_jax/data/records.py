"""One sample as the bytes of a record: its image as it was encoded, its labels packed, and a checksum."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax.data.images import decode_image
from mtl_jax.data.sources.base import Sample
from mtl_jax.errors import UserError

_PREFIX = struct.Struct("<II")  # the checksum of all that follows it, and the length of the header
_FAST = 1  # level of compression: masks shrink to a few percent at any


def encode(sample: Sample, origin: Path | None = None) -> bytes:
    """Returns a record.

    Args:
        sample: with its labels.
        origin: the file of its image. Its bytes are kept where they decode to the sample's pixels; else, or where there
            is none, the pixels are kept without loss.
    """
    blobs = [_image(sample["image"], origin)]
    labels: dict[str, dict[str, Any]] = {}
    for label, fields in sample["labels"].items():
        for name, value in fields.items():
            array = np.asarray(value)
            blobs.append(zlib.compress(np.ascontiguousarray(array).tobytes(), _FAST))
            labels.setdefault(label, {})[name] = {"dtype": array.dtype.str, "shape": array.shape}
    header = json.dumps({"id": sample["id"], "labels": labels, "sizes": [len(blob) for blob in blobs]}).encode()
    after = struct.pack("<I", len(header)) + b"".join((header, *blobs))
    return struct.pack("<I", zlib.crc32(after)) + after


def decode(record: bytes, *, location: str) -> Sample:
    """Returns the sample of a record.

    Args:
        record: from `encode`.
        location: it was found, for the error.

    Raises:
        UserError: the record is damaged.
    """
    if len(record) < _PREFIX.size or zlib.crc32(memoryview(record)[4:]) != _PREFIX.unpack_from(record)[0]:
        raise UserError(f"{location}: expected a record as it was written, found a damaged one; copy or write it again")
    offset = _PREFIX.size + _PREFIX.unpack_from(record)[1]
    header = json.loads(record[_PREFIX.size : offset])
    blobs = []
    for size in header["sizes"]:
        blobs.append(record[offset : offset + size])
        offset += size
    packed = iter(blobs[1:])
    labels = {
        label: {name: _array(next(packed), **kind) for name, kind in fields.items()}
        for label, fields in header["labels"].items()
    }
    return {"image": decode_image(blobs[0], name=location), "labels": labels, "id": header["id"]}


def _image(pixels: np.ndarray, origin: Path | None) -> bytes:
    if origin is not None:
        content = origin.read_bytes()
        if np.array_equal(decode_image(content, name=str(origin)), pixels):
            return content
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=_FAST)
    return stream.getvalue()


def _array(content: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    return np.frombuffer(bytearray(zlib.decompress(content)), dtype).reshape(shape)
