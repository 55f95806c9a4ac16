"""SIGTERM ends a run soon, after what is unsaved was saved, whatever the run is doing."""

import os
import signal
import threading
import time

import pytest

from mtl_jax.runtime.preemption import Preempted, Preemption


class Left:
    """Stands for the end of the process."""

    def __init__(self) -> None:
        self.at: list[str] = []
        self.event = threading.Event()

    def __call__(self) -> None:
        self.at.append("left")
        self.event.set()

    def save(self) -> None:
        self.at.append("saved")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _asked_to_end(preemption: Preemption) -> None:
    terminate()
    while not preemption.requested:
        time.sleep(0.001)
    raise Preempted


def test_outside_of_training_the_run_is_left_at_once():
    remaining = Left()
    with Preemption(remaining) as preemption:
        assert not preemption.requested
        terminate()
        assert remaining.event.wait(5)
        assert preemption.requested
    assert remaining.at == ["left"]


def test_unsaved_work_is_saved_before():
    remaining = Left()
    with Preemption(remaining) as preemption, preemption.unsaved(remaining.save):
        terminate()
        assert remaining.event.wait(5)
    assert remaining.at == ["saved", "left"]


def test_in_training_the_loop_ends_itself():
    remaining = Left()
    with Preemption(remaining) as preemption:
        with pytest.raises(Preempted), preemption.unsaved(remaining.save), preemption.training():
            _asked_to_end(preemption)
        assert not remaining.event.wait(0.05)


def test_a_pause_in_training_is_left_after_saving():
    remaining = Left()
    with Preemption(remaining) as preemption, preemption.unsaved(remaining.save), preemption.training():
        terminate()
        while not preemption.requested:
            time.sleep(0.001)
        assert not remaining.event.wait(0.05)
        with preemption.paused():
            assert remaining.event.wait(5)
    assert remaining.at == ["saved", "left"]


def test_other_errors_and_signals_go_their_way():
    before = signal.getsignal(signal.SIGTERM)
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background they are ignored
    try:
        with Preemption(Left()) as preemption:
            with pytest.raises(ValueError, match="wrong"), preemption.training():
                raise ValueError("wrong")
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert not preemption.requested
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nobody_asks_where_nothing_listens():
    preemption = Preemption()
    with preemption.training(), preemption.paused():
        assert not preemption.requested
