"""Settings of a stage: `config.stages.<name>`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from mtl_jax.config import legacy
from mtl_jax.config.checks import is_number
from mtl_jax.config.section import Section, fitted, setting
from mtl_jax.errors import UserError

OPTIMIZERS = ("adamw", "sgd")
UPDATES = ("forward", "mask", "weight")
ALWAYS = (0.0, math.inf)  # epochs of a stage
FREEZE_EXAMPLE = "{'backbone': (0, 5)}"
SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class StageSettings(Section):
    """Data, length and optimization of a stage, and the methods that keep the tasks of earlier stages."""

    streams: tuple[str, ...] = setting((), "names of those that the stage trains on")
    epochs: float = setting(10.0, "passes over the first stream", above=0.0)
    sampling_temperature: float = setting(
        0.0,
        "0 takes a batch of every stream in every step. Above, each step takes a batch of one, drawn with probability "
        "proportional to its size ** (1 / temperature): 1 by size, 2 by its square root, inf all alike",
        least=0.0,
        most=math.inf,
    )
    update: str = setting(
        "forward",
        'what becomes of the stage\'s tasks that a batch does not label: "forward" does not compute them; "mask" '
        'computes them and drops their gradient; "weight" computes them and gives their loss the weight 0. In each '
        "case their own parameters stay as they are",
        choices=UPDATES,
    )
    eval_every_epochs: float = setting(0.0, "for the curves only; 0 evaluates at the end of the stage alone", least=0.0)
    # optimizer
    optimizer: str = setting("adamw", "the update rule", choices=OPTIMIZERS)
    learning_rate: float = setting(1e-3, "peak", least=0.0)
    backbone_rate: float = setting(1.0, "times learning_rate", least=0.0)
    rates: Mapping[str, float] = setting(
        {},
        'pattern of parameters -> factor on learning_rate, besides backbone_rate: "branch_seg", "head/det", "neck", '
        '"backbone/stride_4" (the layers that end at this stride, px), "backbone/until_8" (all up to 8 px), '
        '"backbone/kernels", "neck/kernels", "head/kernels" (what tasks share but for batch norms), "patches", '
        '"norms", "head/norms"',
        least=0.0,
    )
    schedule: str = setting("cosine", "of the learning rate", choices=SCHEDULES)
    warmup_fraction: float = setting(0.05, "of the stage's steps", least=0.0, most=1.0)
    weight_decay: float = setting(1e-4, "on kernels only", least=0.0)
    momentum: float = setting(0.9, 'of "sgd"', least=0.0, most=1.0)
    clip_norm: float = setting(10.0, "global gradient norm; 0 is off", least=0.0)
    ema_decay: float = setting(0.0, "of the weights that are evaluated and kept; 0 is off", least=0.0, below=1.0)
    balance: str = setting("sum", "a key of mtl_jax.balance.METHODS")
    balance_options: Mapping[str, Any] = setting({}, "keyword arguments of that method")
    gradient_space: str = setting(
        "params",
        'where gradients of tasks that share their images meet: "params", the shared parameters, a backward pass a '
        'task; or "features", the deepest features shared by all tasks, and one backward pass through what leads there',
        choices=("params", "features"),
    )
    log_conflicts: bool = setting(
        False,
        "log the cosines between the tasks' gradients where the method needs none too, at a backward pass a task",
    )
    micro_batches: int = setting(
        1, "parts a batch is taken in, whose gradients are averaged: the memory of one part", least=1
    )
    train_batch_norm: str = setting(
        "everywhere",
        'or "new_levels": only in the head\'s layers of levels that no earlier task has read, which keeps all other '
        'statistics as the stage found them; or "nowhere"',
        choices=("everywhere", "new_levels", "nowhere"),
    )
    warm_start: str = setting(
        "",
        "an earlier task, from whose branch, norms and patches those of this stage's tasks start, where shapes agree; "
        '"" is off',
    )
    freeze: Mapping[str, tuple[float, float]] | tuple[str, ...] = setting(
        (),
        'patterns of parameters that stay as they are, statistics too: ("backbone", "head/kernels"); or with epochs '
        'from and to, {"backbone": None, "backbone/stride_16": (0, 5), "neck": (2.5, None)}, where None is the whole '
        "stage, or its end (gradual unfreezing, progressive freezing)",
        most=math.inf,
    )
    soft_sharing: float = setting(
        0.0,
        'of the squared distances between the tasks\' branches, or their networks with model.sharing="independent"; 0 '
        "is off, infinity keeps them alike",
        least=0.0,
        most=math.inf,
    )
    loss_weights: Mapping[str, float] = setting({}, "task -> factor; 1 where absent", least=0.0)
    pseudo_labels: bool = setting(
        False,
        "True lets the average of the network (ema_decay) fill in the classes that a dataset does not label, where it "
        "is sure of its prediction (Tarvainen and Valpola, 2017)",
    )
    pseudo_threshold: float = setting(0.7, "least probability or score of such a prediction", least=0.0, most=1.0)
    old_outputs: str = setting(
        "",
        'of the tasks of earlier stages: "exact" leaves all that they depend on as it is, so that no bit of their '
        'outputs changes; "others_exact" likewise, but for the tasks that the stage trains; "may_change" lets them '
        'move; "" too, unless an earlier stage kept them exactly, which is refused',
        choices=("", "exact", "others_exact", "may_change"),
    )
    keep: Mapping[str, Mapping[str, Any]] = setting(
        {},
        "what keeps the tasks of earlier stages: key of mtl_jax.continual.METHODS -> its settings, by name those that "
        'differ from their defaults, as in {"lwf": {"weight": 4.0}, "replay": {"images": 10, "batch_size": 2}}',
    )

    former: ClassVar[Mapping[str, str]] = {name: str(flat) for name, flat in legacy.FLAT.items()}

    def check(self) -> None:
        """Checks that there is something to fill in labels from.

        Raises:
            UserError: there is not.
        """
        if self.pseudo_labels and not self.ema_decay:
            raise UserError(
                "pseudo_labels: expected ema_decay above 0, e.g. 0.99, as the average of the network fills in what is "
                "not labelled, found 0; set it"
            )

    @property
    def frozen(self) -> dict[str, tuple[float, float]]:
        """Frozen parameters, by pattern, with the first and the last epoch."""
        return _frozen(self.freeze)

    @classmethod
    def sections(cls, value: Any) -> dict[str, Any]:
        """Reads `freeze`, a tuple of patterns or a table, as a table with the epochs of each."""
        values = dict(value.items())
        return values | ({"freeze": _frozen(values["freeze"])} if "freeze" in values else {})


def _frozen(value: Any) -> dict[str, tuple[float, float]]:
    if isinstance(value, tuple | list):
        return dict.fromkeys(fitted("freeze", value, tuple[str, ...]), ALWAYS)
    if not hasattr(value, "items"):
        raise UserError(f"freeze: expected patterns, such as ('backbone',), or {FREEZE_EXAMPLE}, found {value!r}")
    return {str(pattern): _epochs(f"freeze.{pattern}", epochs) for pattern, epochs in value.items()}


def _epochs(location: str, value: Any) -> tuple[float, float]:
    if value is None:
        return ALWAYS
    numbers = tuple(value) if isinstance(value, tuple | list) else ()
    ends = tuple(math.inf if number is None and place else number for place, number in enumerate(numbers))
    if len(ends) != 2 or not all(map(is_number, ends)) or not 0 <= ends[0] < ends[1]:
        raise UserError(f"{location}: expected None, or epochs from and to, as in {FREEZE_EXAMPLE}, found {value!r}")
    return float(ends[0]), float(ends[1])
