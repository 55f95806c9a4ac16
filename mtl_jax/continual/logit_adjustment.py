"""Logit adjustment: classes that a stage adds need not outdo those that it never shows."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from mtl_jax.continual.method import Method, StageTasks, StageView, Starting, setting
from mtl_jax.errors import UserError

COMPETING = ("segmentation", "classification")  # task kinds with one softmax over all classes


@dataclasses.dataclass(frozen=True)
class LogitAdjustment(Method):
    """In training, logits of classes that a stage adds are higher by the log of how much more often it shows them.

    A stage whose images show new classes alone would teach that every image shows one of them. That the stage shows
    them more often than images will in use explains a part of their score, and only the rest is learnt.

    References:
        Menon et al., "Long-tail learning via logit adjustment", 2021 (equation 10, for two groups of classes).
    """

    prior: float = setting(3.0, "log of how much more often a stage shows its new classes than they are shown in use")

    def refuse(self, stage: StageView, starting: Starting) -> None:
        if not any(task.kind in COMPETING for task in starting.tasks.extended.values()):
            raise UserError(
                f"{stage.location}.keep.logit_adjustment: expected a stage that adds classes to a task of "
                f"{' or '.join(COMPETING)}, found none; leave it out"
            )

    def adjusted(self, name: str, raw: Array, tasks: StageTasks) -> Array:
        before = tasks.extended.get(name)
        if before is None or before.kind not in COMPETING:
            return raw
        return raw.at[..., before.all_channels :].add(self.prior)
