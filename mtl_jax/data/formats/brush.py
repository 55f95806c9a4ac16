"""Decoder for Label Studio brush strokes: bit-packed run lengths over the four channels of an image."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from mtl_jax.errors import UserError

CHANNELS = 4


class _Bits:
    def __init__(self, packed: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        self._position = 0

    def take(self, count: int) -> int:
        """Reads the next integer of `count` bits.

        Raises:
            EOFError: too few bits remain.
        """
        bits = self._bits[self._position : self._position + count]
        if len(bits) < count:
            raise EOFError
        self._position += count
        return int("".join(map(str, bits.tolist())) or "0", 2)


def alpha_of(packed: bytes, size: tuple[int, int], location: str) -> UInt8[np.ndarray, "height width"]:
    """Returns the opacity of the strokes.

    The encoding is that of thi.ng/rle-pack: the number of values, the bits per value, four sizes of run lengths, then
    runs of one repeated value or of several literal values.

    Args:
        packed: packed bytes.
        size: width and height of the image, px.
        location: file and position, for errors.

    Raises:
        UserError: the bytes are truncated, or have another size.
    """
    width, height = size
    bits = _Bits(packed)
    try:
        count, word = bits.take(32), bits.take(5) + 1
        if count != width * height * CHANNELS or word > 8:
            raise UserError(
                f"{location}: expected strokes on {width} x {height} px, found {count} values; export again"
            )
        sizes = [bits.take(4) + 1 for _ in range(4)]
        values = np.zeros(count, np.uint8)
        position = 0
        while position < count:
            is_run = bits.take(1)
            end = position + 1 + bits.take(sizes[bits.take(2)])
            if end > count:
                raise EOFError
            values[position:end] = bits.take(word) if is_run else [bits.take(word) for _ in range(end - position)]
            position = end
    except EOFError as error:
        raise UserError(f"{location}: expected complete strokes, found an early end; export again") from error
    return values.reshape(height, width, CHANNELS)[..., CHANNELS - 1]
