"""Training and validation splits of a dataset: its own, or a split by image content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mtl_jax.data.formats.records import Dataset, Record
from mtl_jax.data.sources.base import SPLITS, counted, read_bytes
from mtl_jax.errors import UserError

VAL_SHARE = 0.2  # of the images


def of_split(
    dataset: Dataset, split: str, *, val_share: float = VAL_SHARE
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Returns the images of a split, and notes about its origin.

    Args:
        dataset: dataset with or without splits.
        split: "train" or "val".
        val_share: share of validation images, if the dataset has no splits.

    Raises:
        UserError: the share is invalid, or the split would be empty.
    """
    if not 0 < val_share < 1:
        raise UserError(f"options.val_share: expected a share between 0 and 1, such as {VAL_SHARE}, found {val_share}")
    train, *remainder = (
        tuple(record for record in dataset.records if record.split == name) for name in ("train", "val", "test")
    )
    unnamed = tuple(record for record in dataset.records if not record.split)
    val, test = remainder
    if train and (val or test):
        note = (
            ()
            if val
            else (f"{dataset.path}: there is no split 'val': its {counted(len(test), 'images')} of 'test' validate.",)
        )
        return (train + unnamed if split == SPLITS[0] else val or test), note
    by_split = by_content(dataset.records, val_share=val_share)
    if not all(by_split.values()):
        raise UserError(
            f"{dataset.path}: expected at least two different images to split, found {len(dataset.records)}; add images"
        )
    note = (
        f"{dataset.path}: without splits for training and validation, {counted(len(by_split['val']), 'images')} of "
        f"{len(dataset.records)} validate, chosen by their content (options.val_share={val_share:g})."
    )
    return by_split[split], (note,)


def by_content(records: Sequence[Record], *, val_share: float) -> dict[str, tuple[Record, ...]]:
    """Splits images by a digest of their content: copies share a split, and later additions change no assignment.

    Args:
        records: images.
        val_share: share of validation images; at least one image is in each split.

    Raises:
        UserError: an image cannot be read.
    """
    positions = [(_content_position(record), record) for record in records]
    distinct = sorted({position for position, _ in positions})
    if len(distinct) < 2:
        return {"train": tuple(records), "val": ()}
    limit = min(max(val_share, distinct[0]), distinct[-2])
    return {
        "train": tuple(record for position, record in positions if position > limit),
        "val": tuple(record for position, record in positions if position <= limit),
    }


def _content_position(record: Record) -> float:
    """Returns a number from 0 to 1 from the digest of the file."""
    content = read_bytes(record.image, noun="an image file")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
