"""A task of no kind, for tests of what only asks for a task's place in the network."""

import dataclasses

from mtl_jax.tasks.base import Readout, Task


@dataclasses.dataclass(frozen=True)
class StubTask(Task):
    """Reads the head as told; its loss is the mean square of what it reads."""

    kind = "stub"
    main_metric = "none"

    width: int = 1
    reads: Readout = "pooled"

    @property
    def readout(self) -> Readout:
        return self.reads

    @property
    def channels(self) -> int:
        return self.width

    def loss(self, raw, labels, image_size):
        return (raw**2).mean(), {}

    def distillation_loss(self, raw, teacher_raw, image_size, *, balanced=False):
        return ((raw - teacher_raw) ** 2).mean()

    def finish(self, raw, image_size):
        return raw + image_size[0] * 1000 + image_size[1]

    def decode(self, outputs):
        return {}


def stub(name: str, reads: Readout, width: int, strides: tuple[int, ...]) -> StubTask:
    """Returns a task without classes, of `width` channels."""
    return StubTask(name, (), strides, width, reads)
