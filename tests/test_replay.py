"""Replay of exemplars."""

from types import SimpleNamespace

import pytest
from list_source import class_source

from mtl_jax.continual.method import StageTasks, Starting
from mtl_jax.continual.replay import Replay
from mtl_jax.continual.replay_buffer import ReplayBuffer
from mtl_jax.errors import UserError


def test_a_buffer_without_images_replays_nothing():
    stage = SimpleNamespace(streams=("new",), location="config.stages.more")
    method, full = Replay(batch_size=2), class_source([0, 1])
    memory = {"replay": {"old": ReplayBuffer((), {}), "older": full}}
    assert [feed.stream for feed in method.feeds(stage, memory, [])] == ["older"]
    method.refuse(stage, Starting(StageTasks(("det",), ("det",)), {"replay": {"old": ReplayBuffer((), {})}}))
    with pytest.raises(UserError, match=r"keep\.replay\.batch_size: expected 0 without exemplars"):
        method.refuse(stage, Starting(StageTasks(("det",), ("det",)), {"replay": {}}))


def test_some_of_the_old_streams_may_be_replayed():
    stage = SimpleNamespace(streams=("new",), location="config.stages.more")
    memory = {"replay": {name: class_source([0, 1]) for name in ("first", "second", "new")}}
    starting = Starting(StageTasks(("det",), ("det",)), memory)
    for streams, expected in (((), ["first", "second"]), (("second",), ["second"])):
        method = Replay(batch_size=2, streams=streams)
        method.refuse(stage, starting)
        assert [feed.stream for feed in method.feeds(stage, memory, [])] == expected
    with pytest.raises(
        UserError, match=r"replay\.streams: expected old streams with exemplars \(first, .*found 'third'"
    ):
        Replay(batch_size=2, streams=("third",)).refuse(stage, starting)
