"""View of a stage for continual-learning methods (`continual.method.StageView`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import reading
from mtl_jax.continual.method import Keep
from mtl_jax.data import pipeline
from mtl_jax.data.sources.base import Source
from mtl_jax.models.patterns import expanded
from mtl_jax.tasks.base import Task


class StageView:
    """Its place among the others, the network, and its training images."""

    def __init__(
        self,
        config: RunSettings,
        setup: experiment.Experiment,
        index: int,
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        """Reads what the stages name; touches no data.

        Args:
            config: the resolved configuration.
            setup: what it describes.
            index: of the stage in `config.order`.
            sources: stream -> training images, where they are opened already.
        """
        name = config.order[index]
        settings = config.stages[name]
        self.location, self.index, self.seed = f"config.stages.{name}", index, config.seed
        self.balance, self.streams = settings.balance, tuple(settings.streams)
        self.keeps: Sequence[Keep] = reading.read_order(config)
        self.keep = reading.in_stage(self.keeps, index)  # the methods that act in the stage
        self.model, self.tasks = setup.model, setup.tasks
        self._setup = setup
        self._sources: dict[str, Source] = dict(sources or {})  # each is opened once

    def stream_tasks(self, stream: str) -> dict[str, Task]:
        """Returns the tasks that a stream labels."""
        return experiment.stream_tasks(self._setup, stream)

    def source(self, stream: str) -> Source:
        """Returns the training images of a stream."""
        if stream not in self._sources:
            self._sources[stream] = experiment.source(self._setup, stream, training=True)
        return self._sources[stream]

    def image_size(self, stream: str) -> int:
        """Returns the side of a stream's training images, px."""
        return experiment.train_image_size(self._setup, stream)

    def examples(self, stream: str, source: Source) -> Iterator[Any]:
        """Yields the samples of a source one by one, unaugmented."""
        return experiment.examples(self._setup, stream, source)

    def batches(self, stream: str, *, images: int) -> Iterator[Any]:
        """Yields unaugmented training batches of a stream, of so many images together, and of one batch at least."""
        source = self.source(stream)
        data = experiment.train_batches(self._setup, stream, source, seed=self.seed, augmented=False)
        batch_size = self._setup.streams[stream].batch_size
        for position in range(max(1, min(images, len(source)) // batch_size)):
            yield pipeline.without_ids(data[position])

    def expanded(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Returns patterns of parameters in which stages of the backbone are spelt out."""
        stages = experiment.backbone_stages(self._setup, patterns)
        return tuple(pattern_expanded for pattern in patterns for pattern_expanded in expanded(pattern, stages))
