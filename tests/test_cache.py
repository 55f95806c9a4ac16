"""The cache decodes each sample once, as long as they fit."""

import numpy as np
import pytest

from mtl_jax.data.cache import CachedSource, cached
from mtl_jax.data.sources.base import Reading, reading_of, warn_once

SAMPLE_BYTES = 4 * 4 * 3 + 16


class Plain:
    """Ten samples of SAMPLE_BYTES each."""

    class_names = {"segmentation": ("a",)}  # noqa: RUF012  the protocol's own form

    def __len__(self):
        return 10

    def __getitem__(self, index):
        mask = np.zeros((4, 4), np.uint8)
        return {
            "image": np.full((4, 4, 3), index, np.uint8),
            "labels": {"segmentation": {"mask": mask}},
            "id": str(index),
        }


def test_second_pass_decodes_nothing():
    source = CachedSource(Plain(), limit_bytes=10 * SAMPLE_BYTES)
    for _ in range(2):
        assert [source[i]["id"] for i in range(10)] == [str(i) for i in range(10)]
    assert source.decodes == 10
    assert source.held_bytes == 10 * SAMPLE_BYTES
    assert source.class_names == Plain.class_names


def test_full_cache_stops_adding_and_never_exceeds_its_limit():
    source = CachedSource(Plain(), limit_bytes=4 * SAMPLE_BYTES + 1)
    for _ in range(2):
        for i in range(10):
            assert source[i]["image"][0, 0, 0] == i
    assert source.held_bytes == 4 * SAMPLE_BYTES
    assert source.decodes == 10 + 6


def test_kept_arrays_cannot_be_spoilt():
    source = CachedSource(Plain(), limit_bytes=10**6)
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][0] = 1


def test_a_cache_is_not_put_into_a_cache():
    source = CachedSource(Plain(), limit_bytes=7)
    assert cached(source, 10**6) is source


def test_what_was_found_on_reading_is_passed_on():
    source = Plain()
    assert CachedSource(source, limit_bytes=0).reading == Reading()
    source.reading = Reading({"images": 10}, ("Mask 3 looks empty: check it.",))
    assert CachedSource(source, limit_bytes=0).reading == source.reading


def test_who_asks_what_was_found_tells_it_instead_of_the_log(caplog):
    source = Plain()
    source.reading = Reading({}, ("Mask 7 looks empty: check it.",))
    reading_of(source)
    for message in ("Mask 7 looks empty: check it.", "Mask 8 looks empty: check it.", "Mask 8 looks empty: check it."):
        warn_once(message)
    assert [record.message for record in caplog.records] == ["Mask 8 looks empty: check it."]
