"""Base class of continual-learning methods: hooks before, in and after a stage, on losses and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

from mtl_jax.config import section
from mtl_jax.config.section import Section
from mtl_jax.data.sources.base import Source
from mtl_jax.errors import UserError
from mtl_jax.models.layers import ByBatch
from mtl_jax.tasks.base import Task

Keep = Mapping[str, Any]  # what one stage names: key of `METHODS` -> a `Method` with the stage's settings
Memory = Mapping[str, Any]  # slot -> what the finished stages have left there


def setting(default: Any, reason: str = "", *, least: float = 0.0, **limits: Any) -> Any:
    """A field of a method: as `config.section.setting`, but numbers are 0 or more unless `least` says otherwise."""
    return section.setting(default, reason, least=least, **limits)


class StageTasks(NamedTuple):
    """The tasks of a stage by the part that they have in it."""

    own: tuple[str, ...] = ()  # that its streams label
    old: tuple[str, ...] = ()  # of the stages before
    replayed: tuple[str, ...] = ()  # that images of old streams label in its batches
    extended: Mapping[str, Task] = {}  # own ones that get classes in it, as they were before

    @property
    def only_old(self) -> tuple[str, ...]:
        """The tasks of the stages before that the stage does not label itself."""
        return tuple(task for task in self.old if task not in self.own)

    @property
    def taught(self) -> tuple[str, ...]:
        """The tasks that the network before the stage can teach: `only_old`, and `extended` for their old classes."""
        return (*self.only_old, *self.extended)


def refuse_without_exemplars(location: str, value: int | float, tasks: StageTasks) -> None:
    """Refuses a setting that does something only with exemplars, in a stage that has none.

    Args:
        location: the setting's place, for the error.
        value: of the setting; 0 is off.
        tasks: of the stage.

    Raises:
        UserError: it is on, and nothing is replayed.
    """
    if value and not tasks.replayed:
        raise UserError(
            f"{location}: expected 0 without exemplars of another stream, found {value:g}; set keep.replay.images of "
            "an earlier stage and keep.replay.batch_size of this one"
        )


class Phase(NamedTuple):
    """Parameters and statistics that do not move in some steps of a stage."""

    frozen: tuple[str, ...]  # patterns of parameters
    train_batch_norm: ByBatch


class Feed(NamedTuple):
    """Images of an old stream that join the batches of a stage."""

    stream: str  # that they were taken from
    source: Source
    batch_size: int
    weight: float  # of the loss on their labels
    augmented: bool = True
    extra_labels: Mapping[str, str] = {}  # key in the batch -> name of a label that the stream itself does not have


class Passed(NamedTuple):
    """A group of streams on its way through the network."""

    model: Any  # from `multi_task.build`
    tasks: Mapping[str, Task]  # every task of the model
    stage: StageTasks
    group: tuple[str, ...]  # streams
    labelled: Mapping[str, tuple[str, ...]]  # stream -> the tasks that it labels
    labels: Mapping[str, Mapping[str, Any]]  # stream -> key in its labels -> labels
    rows: Mapping[str, slice]  # stream -> its part of the group
    image: Float[Array, "batch height width 3"]
    raw: Mapping[str, Array]  # task -> what the head emits
    features: Mapping[str, Array]  # that the head reads

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.image.shape[1], self.image.shape[2]


class Term(NamedTuple):
    """A part of a task's loss."""

    task: str
    loss: Float[Array, ""]  # weighted
    metrics: dict[str, Array]  # by "task/stream/name"


class Starting(NamedTuple):
    """A stage that is about to be trained."""

    tasks: StageTasks
    memory: Memory = MappingProxyType({})  # what the stages before it left
    variables: Mapping[str, PyTree] = MappingProxyType({})  # what it begins with, or their shapes
    phases: tuple[Phase, ...] = ()


class Finished(NamedTuple):
    """A stage that has just been trained."""

    start: Mapping[str, PyTree]  # variables that it began with
    end: Mapping[str, PyTree]  # variables that are kept of it
    state: PyTree | None  # of the method, after the last step


@runtime_checkable
class StageView(Protocol):
    """Interface of a stage for methods: its place among the others, the network, and its training images."""

    location: str  # its settings' place, for errors
    index: int
    keeps: Sequence[Keep]  # of every stage, in the order of training
    seed: int
    balance: str  # its balancing method
    streams: tuple[str, ...]
    model: Any  # from `multi_task.build`
    tasks: Mapping[str, Task]  # every task of the network

    def stream_tasks(self, stream: str) -> dict[str, Task]:
        """Returns the tasks that a stream labels."""
        ...

    def source(self, stream: str) -> Source:
        """Returns the training images of a stream."""
        ...

    def image_size(self, stream: str) -> int:
        """Returns the side of a stream's training images, px."""
        ...

    def examples(self, stream: str, source: Source) -> Iterator[Any]:
        """Yields the samples of a source one by one, unaugmented."""
        ...

    def batches(self, stream: str, *, images: int) -> Iterator[Any]:
        """Yields unaugmented training batches of a stream, of so many images together, and of one batch at least."""
        ...

    def expanded(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Returns patterns of parameters in which stages of the backbone are spelt out."""
        ...


@dataclasses.dataclass(frozen=True)
class Method(Section):
    """One way to keep old tasks. Its fields are the settings that a stage gives it; each hook does nothing by default.

    A hook never changes what it is given. Those between "before" and "after" run inside jit.
    """

    slot: ClassVar[str] = ""  # where in the memory it keeps what it leaves; methods may share one
    nothing: ClassVar[Any] = None  # what is there before the first stage
    follows: ClassVar[bool] = False  # it keeps a state from the first step of a stage to its last

    # Settings.

    @classmethod
    def sections(cls, raw_values: Any) -> dict[str, Any]:
        """As of every section; a text that lists names ("neck, head"), as a command line gives them, is a tuple."""
        listing = {field.name for field in dataclasses.fields(cls) if isinstance(field.default, tuple)}
        return {
            name: (value,) if name in listing and isinstance(value, str) else value
            for name, value in raw_values.items()
        }

    def check_keep(self, location: str, keep: Keep, tasks: Iterable[str]) -> None:
        """Refuses settings that do not fit the tasks, or other methods of the stage.

        Args:
            location: of the method, for the error.
            keep: all that the stage names.
            tasks: every task of the network.

        Raises:
            UserError: what does not fit.
        """

    @classmethod
    def in_stage(cls, keeps: Sequence[Keep], index: int, name: str) -> Method | None:
        """Returns the method as it acts in a stage, named there or called for by another stage; None if it does not.

        Args:
            keeps: what every stage names, in the order of training.
            index: of the stage.
            name: of the method in `METHODS`.
        """
        return keeps[index].get(name)

    # Before a stage.

    def refuse(self, stage: StageView, starting: Starting) -> None:
        """Refuses a stage in which the method cannot keep its word.

        Raises:
            UserError: what is missing, or in the way.
        """

    def feeds(self, stage: StageView, memory: Memory, feeds: list[Feed]) -> list[Feed]:
        """Returns which images of old streams join every batch; those before are what other methods ask for."""
        return feeds

    def source(self, stage: StageView, memory: Memory, stream: str, source: Source) -> Source:
        """Returns the training images of one of the stage's streams; the stream's own, or what other methods return."""
        return source

    def frozen(self, memory: Memory) -> tuple[str, ...]:
        """Returns patterns of the parameters that the stage must not move."""
        return ()

    def before(self, starting: Starting) -> PyTree | None:
        """Returns what the steps read of the stages before, as it was when the stage began; None for nothing."""
        return None

    def start(self, stage: StageView, params: PyTree) -> PyTree | None:
        """Returns the state that goes from step to step, at step 0; None for none."""
        return None

    # In a step.

    def gives(self, tasks: StageTasks) -> tuple[str, ...]:
        """Returns the tasks for which its terms are losses, whatever the images."""
        return ()

    def reads(self, tasks: StageTasks) -> tuple[str, ...]:
        """Returns the tasks whose outputs its terms need, whatever the images."""
        return ()

    def adjusted(self, name: str, raw: Array, tasks: StageTasks) -> Array:
        """Returns what the loss of a task's labels reads: its raw outputs, or those that other methods return."""
        return raw

    def terms(self, passed: Passed, stage_memory: PyTree | None) -> Iterator[Term]:
        """Yields loss terms of a group's outputs and features; `stage_memory` is from `before`."""
        return iter(())

    def penalty(self, params: PyTree, stage_memory: PyTree | None) -> Float[Array, ""] | None:
        """Returns a loss term of the parameters alone; None for none. `stage_memory` is from `before`."""
        return None

    def opposed(self, tasks: StageTasks) -> tuple[str, ...]:
        """Returns the tasks whose gradient only constrains the others' by `combine`, instead of being balanced."""
        return ()

    def combine(self, gradient: PyTree, opposed: PyTree) -> PyTree:
        """Makes one gradient of that of all other losses and that of the `opposed` tasks."""
        return gradient

    def project(self, updates: PyTree, stage_memory: PyTree | None) -> PyTree:
        """Changes what the optimizer makes of a gradient; `stage_memory` is from `before`."""
        return updates

    def step(self, state: PyTree, gradient: PyTree, before: PyTree, after: PyTree) -> PyTree:
        """Returns the state after a step from parameters to parameters, along the gradient of the losses."""
        return state

    # After a stage.

    def leaves(self, keeps: Sequence[Keep], index: int) -> tuple[str, ...]:
        """Returns what the stage leaves for later ones that need it, in words: what cannot be had afterwards."""
        return ()

    def after(self, stage: StageView, finished: Finished, memory: Memory) -> Memory:
        """Returns the memory with what the stage adds to it."""
        return memory

    def expected(self, stage: StageView, memory: Memory, variables: Mapping[str, PyTree]) -> Memory:
        """As `after`, from shapes alone and before anything is trained: enough for later stages to be checked."""
        return memory

    # On disk.

    @staticmethod
    def to_tree(memory: Any) -> Mapping[str, Any]:
        """Returns what lies in the slot as a tree of arrays, for a checkpoint."""
        return memory

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Any:
        """The inverse of `to_tree`; an empty tree gives nothing."""
        return tree


def later(keeps: Sequence[Keep], index: int, kind: type[Method]) -> list[Any]:
    """Returns the methods of a kind that stages after one name."""
    return [method for keep in keeps[index + 1 :] for method in keep.values() if isinstance(method, kind)]


def described(name: str, method: Method) -> str:
    """Returns a method with the settings that differ from their defaults: 'ewc(examples=8)'."""
    default = type(method)()
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    changed_fields = [f"{key}={value!r}" for key, value in fields.items() if value != getattr(default, key)]
    return f"{name}({', '.join(changed_fields)})" if changed_fields else name
