import pytest

from mtl_jax.runtime.progress import SPEED_WINDOW_STEPS, StageProgress, clock_time


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(progress, clock, seconds, *, images=8, losses=None):
    with progress:
        for index, duration in enumerate(seconds):
            clock.now += duration
            progress.advance(images=images, loss=None if losses is None else losses[index])


def plain(clock, **options):
    return StageProgress("seg", clock=clock, **{"steps": 4, "steps_per_epoch": 2} | options)


def test_without_a_terminal_each_epoch_prints_one_plain_line(capsys):
    clock = Clock()
    run(plain(clock), clock, [30.0, 2.0, 2.0, 2.0], losses=[4.0, 2.0, 1.0, 2.0])
    assert capsys.readouterr().err.splitlines() == [
        "seg  epoch 1/2  step 2/4  loss 3  4.0 images/s  0:04 left",
        "seg  epoch 2/2  step 4/4  loss 1.5  4.0 images/s  0:00 left",
    ]


def test_the_first_step_compiles_and_is_not_counted():
    clock = Clock()
    progress = plain(clock)
    run(progress, clock, [100.0])
    assert progress.images_per_second is None
    assert progress.seconds_left is None
    run(progress, clock, [0.5])
    assert progress.images_per_second == pytest.approx(16.0)
    assert progress.seconds_left == pytest.approx(1.0)


def test_a_pause_is_not_counted_as_training():
    clock = Clock()
    progress = plain(clock, steps=100)
    run(progress, clock, [1.0] * 5)
    clock.now += 600.0
    progress.after_pause()
    assert progress.images_per_second is None
    run(progress, clock, [1.0] * 2)
    assert progress.images_per_second == pytest.approx(8.0)


def test_the_speed_follows_the_recent_steps_only():
    clock = Clock()
    progress = plain(clock, steps=1000, steps_per_epoch=1000)
    run(progress, clock, [10.0] * 100 + [1.0] * (SPEED_WINDOW_STEPS + 1))
    assert progress.images_per_second == pytest.approx(8.0)


def test_an_instant_step_shows_no_speed_instead_of_dividing_by_zero(capsys):
    clock = Clock()
    run(plain(clock), clock, [0.0, 0.0])
    assert capsys.readouterr().err == "seg  epoch 1/2  step 2/4  loss -  - images/s  - left\n"


def test_a_resumed_stage_goes_on_counting(capsys):
    clock = Clock()
    run(plain(clock, start_step=3), clock, [1.0])
    assert capsys.readouterr().err.startswith("seg  epoch 2/2  step 4/4")


def test_a_last_epoch_that_is_cut_short_is_printed_too(capsys):
    clock = Clock()
    run(plain(clock, steps=3), clock, [1.0] * 3)
    assert [line.split("  ")[2] for line in capsys.readouterr().err.splitlines()] == ["step 2/3", "step 3/3"]


def test_a_note_is_a_line_of_its_own(capsys):
    with plain(Clock()) as progress:
        progress.note("seg: [miou] 0.41")
    assert capsys.readouterr().err == "seg: [miou] 0.41\n"


def test_in_a_terminal_a_bar_shows_the_figures_and_takes_no_markup_from_names(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    clock = Clock()
    progress = StageProgress("[b]x", steps=2, steps_per_epoch=2, live=True, clock=clock)
    with progress:
        clock.now += 1
        progress.advance(images=8, loss=1.5)
        progress.note("a [note]")
        clock.now += 1
        progress.advance(images=8, loss=0.5)
    shown = capsys.readouterr().err
    for text in ("[b]x", "a [note]", "epoch 1/1", "loss 1", "8.0 images/s", "0:00 left", "\x1b["):
        assert text in shown


def test_an_error_inside_the_stage_passes_through_and_ends_the_bar():
    progress = StageProgress("seg", steps=2, steps_per_epoch=2, live=True)
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert progress._bar is not None
    assert not progress._bar.live.is_started


def test_the_default_stream_is_stderr(capsys):
    with StageProgress("seg", steps=1, steps_per_epoch=1) as progress:
        progress.advance(images=1)
    assert capsys.readouterr().err.startswith("seg  epoch 1/1")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (123.0, "2:03"), (3723.0, "1:02:03")])
def test_durations_read_as_clocks(seconds, text):
    assert clock_time(seconds) == text
