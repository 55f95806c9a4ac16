"""The progress of one stage on stderr: a live bar in a terminal, one line per epoch anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SPEED_WINDOW_STEPS = 50  # the speed shown is that of the last so many steps: steady, yet soon follows a change


class StageProgress:
    """Shows loss, images per second and time left of one stage; use as a context manager."""

    def __init__(
        self,
        stage: str,
        *,
        steps: int,
        steps_per_epoch: int,
        start_step: int = 0,
        live: bool | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares to show a stage.

        Args:
            stage: its name.
            steps: of the whole stage.
            steps_per_epoch: a plain line is printed after each so many steps, and after the last step.
            start_step: steps of this stage that an earlier start has done.
            live: draw a bar; None asks whether stderr is a terminal.
            quiet: show nothing of the steps, as in the processes that help another one.
            clock: returns seconds; replaced in tests.
        """
        self._stage = stage
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._step = start_step
        self._quiet = quiet
        self._live = not quiet and (sys.stderr.isatty() if live is None else live)
        self._clock = clock
        self._losses: list[float] = []  # of the current epoch
        # (time, images) at the end of the recent steps. The first step of a start compiles: its end is where
        # the measurement begins, so it is never counted.
        self._recent: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW_STEPS + 1)
        self._bar: Progress | None = None
        self._bar_id: TaskID | None = None

    def __enter__(self) -> StageProgress:
        if self._live:
            self._bar, self._bar_id = _open_bar(self._stage, self._steps, self._step)
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, *, images: int, loss: SupportsFloat | None = None) -> None:
        """Counts one training step.

        Args:
            images: that the step saw.
            loss: its loss; None where it was not fetched from the device. The epoch's mean so far is shown.
        """
        self._step += 1
        self._recent.append((self._clock(), images))
        if loss is not None:
            self._losses.append(float(loss))
        epoch_ends = self._step % self._steps_per_epoch == 0 or self._step == self._steps
        if self._bar is not None:
            self._show()
        elif epoch_ends and not self._quiet:
            print(self._line(), file=sys.stderr, flush=True)
        if epoch_ends:
            self._losses.clear()

    def after_pause(self) -> None:
        """Restarts the measurement of speed: call it after an evaluation or a save, which are not training."""
        self._recent.clear()

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @property
    def images_per_second(self) -> float | None:
        """The speed over the last steps; None before two steps have ended."""
        seconds = self._seconds_measured()
        return sum(images for _, images in list(self._recent)[1:]) / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest of the stage takes at the speed of the last steps; None before two have ended."""
        seconds = self._seconds_measured()
        return (self._steps - self._step) * seconds / (len(self._recent) - 1) if seconds else None

    def _seconds_measured(self) -> float:
        return self._recent[-1][0] - self._recent[0][0] if len(self._recent) > 1 else 0.0

    def _figures(self) -> dict[str, Any]:
        epochs = -(-self._steps // self._steps_per_epoch)
        epoch = max(1, -(-self._step // self._steps_per_epoch))
        speed, seconds_left = self.images_per_second, self.seconds_left
        return {
            "epoch": f"epoch {epoch}/{epochs}",
            "loss": f"loss {sum(self._losses) / len(self._losses):.4g}" if self._losses else "loss -",
            "speed": "- images/s" if speed is None else f"{speed:.1f} images/s",
            "left": "- left" if seconds_left is None else f"{clock_time(seconds_left)} left",
        }

    def _line(self) -> str:
        figures = self._figures()
        step = f"step {self._step}/{self._steps}"
        return "  ".join([self._stage, figures["epoch"], step, figures["loss"], figures["speed"], figures["left"]])

    def _show(self) -> None:
        if self._bar is not None and self._bar_id is not None:
            self._bar.update(self._bar_id, completed=self._step, **self._figures())


def clock_time(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _open_bar(stage: str, steps: int, start_step: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(TextColumn("{task.fields[" + name + "]}") for name in ("epoch", "loss", "speed", "left")),
        console=Console(stderr=True, force_terminal=True),
    )
    fields = dict.fromkeys(("epoch", "loss", "speed", "left"), "")
    bar_id = bar.add_task(escape(stage), total=steps, completed=start_step, **fields)
    bar.start()
    return bar, bar_id
