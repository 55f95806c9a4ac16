"""Files that were read are known again, and known to have changed."""

import os
import time

from mtl_jax.data import opened
from mtl_jax.data.sources.base import read_bytes, read_json


def age(file, seconds=10):
    then = time.time_ns() - seconds * 10**9
    os.utime(file, ns=(then, then))


def test_what_is_read_is_listed_in_order_and_only_while_asked(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.bin"
    first.write_text("{}")
    second.write_bytes(b"123")
    read_json(first)
    with opened.recording() as files:
        read_bytes(second, noun="bytes")
        read_json(first)
    read_bytes(second, noun="bytes")
    assert [(file.path, file.size, file.digest) for file in files] == [
        (str(second), 3, opened.digest(b"123")),
        (str(first), 2, opened.digest(b"{}")),
    ]


def read(file):
    with opened.recording() as files:
        read_bytes(file, noun="bytes")
    return files[0]


def test_a_file_is_the_same_until_it_is_written_or_removed(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"123")
    assert read(file).is_the_same()
    before = read(file)
    file.write_bytes(b"1234")
    assert not before.is_the_same()
    before = read(file)
    file.unlink()
    assert not before.is_the_same()


def test_another_content_of_the_same_length_and_modification_time_is_known_by_the_change_of_the_entry(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"123")
    age(file)
    before = read(file)._replace(settled=True)
    time.sleep(0.02)
    file.write_bytes(b"456")
    os.utime(file, ns=(before.modified_ns, before.modified_ns))
    assert file.stat().st_mtime_ns == before.modified_ns
    assert not before.is_the_same()


def test_a_file_that_was_just_written_is_compared_by_content(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"123")
    before = read(file)
    assert not before.settled
    file.write_bytes(b"456")
    status = file.stat()  # as if the clock had not moved on
    young = before._replace(modified_ns=status.st_mtime_ns, changed_ns=status.st_ctime_ns)
    assert not young.is_the_same()
    assert young._replace(digest=opened.digest(b"456")).is_the_same()
