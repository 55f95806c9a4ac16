import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.workdir.metrics_log import FIELDS, MetricsLog, read


def plain_log(workdir, **options):
    return MetricsLog(workdir, **{"trackers": (), "clock": lambda: 12.3456} | options)


def log_steps(log, steps):
    for step in steps:
        log.log(step, step // 2, "seg", "train", "seg", "loss", 1.0 / (step + 1))


def scalars(folder):
    """(step, tag, value) of every scalar in a folder of event files, and the step each file purges from."""
    from tensorboardX.proto.event_pb2 import Event

    result, purged = [], []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length  # length, its checksum, the event, its checksum
            if event.HasField("session_log"):
                purged.append(event.step)
            result += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return result, purged


def test_an_event_is_one_line_with_the_promised_keys(tmp_path):
    with plain_log(tmp_path) as log:
        log.log(7, 2, "det", "val", "seg", "miou", 0.5)
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(json.loads(line)) == list(FIELDS)
    assert list(json.loads(line).values()) == [7, 2, "det", "val", "seg", "miou", 0.5, 12.346]


def test_an_event_is_readable_before_the_log_is_closed(tmp_path):
    with plain_log(tmp_path) as log:
        log_steps(log, [0])
        assert len(read(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, jnp.array(jnp.nan)])
def test_a_value_that_is_not_finite_is_null(tmp_path, value):
    with MetricsLog(tmp_path) as log:
        log.log(0, 0, "seg", "train", None, "loss", value)
    (event,) = read(tmp_path / "metrics.jsonl")
    assert event["value"] is None
    assert event["task"] is None


@pytest.mark.parametrize("value", [2, np.float32(2), jnp.array(2.0), jnp.array(2, "int32")])
def test_any_scalar_can_be_logged(tmp_path, value):
    with plain_log(tmp_path) as log:
        log.log(0, 0, "seg", "train", "seg", "loss", value)
    assert read(tmp_path / "metrics.jsonl")[0]["value"] == 2.0


def test_logging_outside_the_with_block_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="with"):
        log_steps(plain_log(tmp_path), [0])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "ep', b"\0\0\0"])
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path, inside, torn):
    full, cut = tmp_path / "whole", tmp_path / "cut"
    with plain_log(full) as log:
        log_steps(log, range(8))
    with plain_log(cut) as log:
        log_steps(log, range(6))
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    log = plain_log(cut)
    if not inside:
        log.resume_from(3)
    with log:
        if inside:
            log.resume_from(3)
        log_steps(log, range(4, 8))
    assert (cut / "metrics.jsonl").read_bytes() == (full / "metrics.jsonl").read_bytes()


def test_resuming_before_the_first_step_forgets_everything(tmp_path):
    with plain_log(tmp_path) as log:
        log_steps(log, range(3))
        log.resume_from(-1)
    assert read(tmp_path / "metrics.jsonl") == []


def test_resuming_without_a_log_starts_one(tmp_path):
    with plain_log(tmp_path / "new") as log:
        log.resume_from(5)
        log_steps(log, [6])
    assert [event["step"] for event in read(tmp_path / "new" / "metrics.jsonl")] == [6]


def test_a_second_start_does_not_append_to_a_torn_line(tmp_path):
    with plain_log(tmp_path) as log:
        log_steps(log, range(2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with plain_log(tmp_path) as log:
        log_steps(log, [1])
    assert [event["step"] for event in read(path)] == [0, 1]


def test_reading_leaves_out_a_torn_last_line(tmp_path):
    with plain_log(tmp_path) as log:
        log_steps(log, range(2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert [event["step"] for event in read(path)] == [0]


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "ep',
        b"42",
        b"",
        b"\xff\xfe",
        b'{"step": 1}',
        b'{"step": "1", "epoch": 0, "stage": "", "split": "", "task": "", "name": "", "value": 0, "time": 0}',
        b'{"step": 1, "epoch": 0, "stage": "", "split": "", "task": "", "name": "", "value": "x", "time": 0}',
    ],
)
def test_a_malformed_whole_line_is_refused_by_its_number(tmp_path, line):
    with plain_log(tmp_path) as log:
        log_steps(log, range(2))
    path = tmp_path / "metrics.jsonl"
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl"):
        read(path)
    with pytest.raises(UserError, match="line 2"):
        plain_log(tmp_path).resume_from(1)


def test_reading_a_missing_log_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=r"expected .*metrics\.jsonl, found none"):
        read(tmp_path / "metrics.jsonl")


def test_event_files_hold_the_same_values(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(3, 0, "seg", "train", "seg", "loss", 0.25)
        log.log(4, 0, "seg", "train", None, "learning_rate", 0.5)
        log.log(5, 0, "seg", "train", "seg", "loss", math.nan)
    result, purged = scalars(tmp_path / "tensorboard")
    assert result == [(3, "train/seg/loss", 0.25), (4, "train/all/learning_rate", 0.5)]
    assert purged == []


def test_after_resuming_event_files_hide_what_is_logged_anew(tmp_path):
    with MetricsLog(tmp_path) as log:
        log_steps(log, range(3))
        log.resume_from(1)
        log_steps(log, [2])
    assert scalars(tmp_path / "tensorboard")[1] == [2]


def test_event_files_can_be_left_out(tmp_path):
    with plain_log(tmp_path) as log:
        log_steps(log, range(2))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
    "change", [{"value": float("nan")}, {"epoch": "1"}, {"stage": ["seg"]}, {"time": None}, {"value": 10**400}]
)
def test_a_line_with_a_value_that_was_never_logged_is_refused(tmp_path, change):
    with MetricsLog(tmp_path, trackers=()) as log:
        log.log(1, 0.5, "seg", "train", None, "loss", 1.0)
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UserError, match=r"in line 1 of .*metrics\.jsonl"):
        read(path)
