"""Unpacks the strokes of Label Studio's brush: bits of run lengths over the four channels of an image."""

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
        """Returns the next number of so many bits.

        Raises:
            EOFError: there are fewer.
        """
        bits = self._bits[self._position : self._position + count]
        if len(bits) < count:
            raise EOFError
        self._position += count
        return int("".join(map(str, bits.tolist())) or "0", 2)


def alpha_of(packed: bytes, size: tuple[int, int], location: str) -> UInt8[np.ndarray, "height width"]:
    """Returns the opacity of the strokes.

    The packing is that of thi.ng/rle-pack: the count of values, the bits of a value, four sizes of run lengths, and
    then runs of one value or of several.

    Args:
        packed: bytes of the file.
        size: width and height of the image, px.
        location: file and place, as the error names them.

    Raises:
        UserError: the bytes end too early or are of another size.
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
