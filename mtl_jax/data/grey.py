"""Bit depth by which greyscale images of 16-bit files are scaled: one for all images of a dataset."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from mtl_jax.data.sources.base import warn_once
from mtl_jax.errors import UserError

MOST_BITS = 16
BITS = (10, 12, 14, MOST_BITS)  # of a camera's or a scanner's levels, which files of 16 bits hold


def fewest_bits(largest: int) -> int:
    """Returns the fewest of `BITS` that hold a level."""
    return next((bits for bits in BITS if largest < 2**bits), MOST_BITS)


class GreyBits:
    """The bits of a dataset, which are looked for when its first greyscale image in a 16-bit file is met.

    Levels of fewer bits than the file has room for would be nearly black, and a scale for each file would make dark
    images as bright as others. So the training images decide, for both splits.

    Args:
        setting: the number; 0 lets the training images decide.

    Raises:
        UserError: it is no number of bits.
    """

    def __init__(self, setting: int = 0) -> None:
        if setting and not 8 < setting <= MOST_BITS:
            raise UserError(
                f"options.grey_bits: expected 9 to {MOST_BITS}, or 0 to let the images decide, found {setting}"
            )
        self.bits: int | None = setting or None
        self._levels: Callable[[], Iterable[int]] = tuple
        self._lock = threading.Lock()

    def decide_by(self, levels: Callable[[], Iterable[int]]) -> None:
        """Names what decides.

        Args:
            levels: returns the largest level of every training image, 0 of those that are no greyscale of 16 bits.
        """
        self._levels = levels

    def __call__(self) -> int:
        """Returns the bits."""
        with self._lock:
            if self.bits is None:
                largest = max(self._levels(), default=0)
                self.bits = fewest_bits(largest) if largest else MOST_BITS
                if self.bits < MOST_BITS:
                    warn_once(
                        f"Greyscale images of 16-bit files are read as {self.bits}-bit images, as {largest} is the "
                        f"largest level in training; set the stream's options.grey_bits={MOST_BITS} if that is not so."
                    )
            return self.bits
