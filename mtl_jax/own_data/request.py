"""Parses the datasets of a command line: `masks=photos/masks boxes.people=labels.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mtl_jax.config.checks import suggestion
from mtl_jax.data.formats.splitting import VAL_SHARE
from mtl_jax.errors import UserError

# Kind of label on the command line -> kind of task, in the order of training: dense labels give the best features for
# later tasks.
TASK_KINDS = {
    "masks": "segmentation",
    "depth": "depth",
    "boxes": "detection",
    "tags": "multi_label",
    "classes": "classification",
    "values": "regression",
}
EXAMPLE = "write for example masks=photos/masks boxes=labels.json classes=flowers/"


class Request(NamedTuple):
    """A dataset with one kind of label."""

    kind: str  # a key of `TASK_KINDS`
    name: str  # name of the task and its stream
    path: str  # absolute path; a table column follows a colon
    val_share: float = VAL_SHARE  # share of validation images, if it has no splits
    annotated_on: str = "auto"  # one of `orientation.ANNOTATED_ON`

    def __str__(self) -> str:
        name = "" if self.name == self.kind else f".{self.name}"
        return f"{self.kind}{name}={self.path}"


def parse(words: Sequence[str], *, val_share: float = VAL_SHARE, annotated_on: str = "auto") -> tuple[Request, ...]:
    """Parses the arguments of the command line; returns the requests in the order of training.

    Args:
        words: arguments such as "masks=photos/masks", "boxes.people=labels.json", "values.age=faces.csv:age".
        val_share: share of validation images in datasets without splits.
        annotated_on: one of `orientation.ANNOTATED_ON`.

    Raises:
        UserError: an argument has another form, an unknown kind, or a repeated name.
    """
    requests = [_parse(word)._replace(val_share=val_share, annotated_on=annotated_on) for word in words]
    repeated = [name for name, count in Counter(request.name for request in requests).items() if count > 1]
    if repeated:
        kind = next(request.kind for request in requests if request.name == repeated[0])
        raise UserError(
            f"expected each name once, found {repeated[0]} twice; tell them apart by names: {kind}.one=… {kind}.two=…"
        )
    return tuple(sorted(requests, key=lambda request: list(TASK_KINDS).index(request.kind)))


def _parse(word: str) -> Request:
    task_name, equals, path = word.partition("=")
    kind, dot, name = task_name.partition(".")
    if not equals or not path or (dot and not name):
        raise UserError(f"expected a kind of label and where it is ({EXAMPLE}), found the argument {word}")
    if kind not in TASK_KINDS:
        raise UserError(f"{word}: expected a kind of label, found {kind!r}; {suggestion(kind, TASK_KINDS)}")
    return Request(kind, name or kind, str(Path(path).expanduser().absolute()))
