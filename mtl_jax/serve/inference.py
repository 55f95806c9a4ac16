"""Batched inference for many clients: queued images run together, one batch at a time."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from mtl_jax import predict
from mtl_jax.evaluation import evaluate
from mtl_jax.tasks.base import Geometry
from mtl_jax.workdir import trained
from mtl_jax.workdir.trained import Trained

TIMED_CALLS = 3  # with one image, for the latency of each task


class Result(NamedTuple):
    """Decoded predictions of a network for one image."""

    predictions: dict[str, Mapping[str, np.ndarray]]  # by task
    geometries: dict[str, Geometry]
    ms: dict[str, float]  # task -> duration of its forward pass


class _Job(NamedTuple):
    image: UInt8[np.ndarray, "height width 3"]
    names: tuple[str, ...]
    future: Future[Result]


class InferenceService:
    """Runs a network in a background thread.

    Programs are compiled for batches of 1 and `batch_size` images: one for all tasks with the same input view, and one
    for each single task. A request for several tasks, but not all, runs the program for all.
    """

    def __init__(self, network: Trained, *, batch_size: int, flip: bool = False) -> None:
        """Prepares the service; `start` compiles the programs.

        Args:
            network: trained network.
            batch_size: largest number of images in a forward pass.
            flip: also run every image mirrored, and average both.
        """
        self.network, self.tasks = network, network.tasks
        self.grey_bits = trained.grey_bits(network)
        self.latency_ms: dict[str, float] = {}  # latency of each single task
        self.batches: collections.Counter[int] = collections.Counter()  # batch size -> number of batches
        self._variables = jax.device_put(network.variables)
        self._run = evaluate.make_predict(network.setup.model, self.tasks, flip=flip)
        self._views, self.batch_size = predict.by_view(network), batch_size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """Compiles all programs, measures the latency of each task, and starts the thread."""
        image = np.full((32, 32, 3), 128, np.uint8)
        for names in dict.fromkeys([*map(tuple, self._views.values()), *((name,) for name in self.network.names)]):
            on_progress(f"compiling {', '.join(names)}")
            for count in sorted({1, self.batch_size}):
                self._pass([image] * count, names)
            if len(names) == 1:
                times = [self._pass([image], names)[0].ms[names[0]] for _ in range(TIMED_CALLS)]
                self.latency_ms[names[0]] = float(np.median(times))
        self._thread.start()

    def stop(self) -> None:
        """Finishes queued requests and ends the thread."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, image: UInt8[np.ndarray, "height width 3"], names: tuple[str, ...]) -> Future[Result]:
        """Queues an image; a future that is cancelled while it is queued costs nothing."""
        future: Future[Result] = Future()
        self._jobs.put(_Job(image, names, future))
        return future

    def _work(self) -> None:
        job_queue: collections.deque[_Job] = collections.deque()
        accepts_jobs = True
        while accepts_jobs or job_queue:
            while accepts_jobs and (not job_queue or not self._jobs.empty()):
                job = self._jobs.get()
                if job is None:
                    accepts_jobs = False
                else:
                    job_queue.append(job)
            if job_queue:
                self._run_jobs(_take_batch(job_queue, self.batch_size))

    def _run_jobs(self, jobs: Sequence[_Job]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        self.batches[len(jobs)] += 1
        try:
            results = self._pass([job.image for job in jobs], jobs[0].names)
        except BaseException as error:  # passed on to the clients
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _pass(self, images: Sequence[np.ndarray], names: tuple[str, ...]) -> list[Result]:
        results = [Result({}, {}, {}) for _ in images]
        size = 1 if len(images) == 1 else self.batch_size
        for view, view_names in self._views.items():
            requested = tuple(name for name in view_names if name in names)
            if not requested:
                continue
            computed = requested if len(requested) == 1 else tuple(view_names)
            start = time.perf_counter()
            view_results = predict.run_batch(self._run, self._variables, images, view, computed, batch_size=size)
            ms = 1e3 * (time.perf_counter() - start)
            for result, (predictions, geometry) in zip(results, view_results, strict=True):
                for name in requested:
                    result.predictions[name], result.geometries[name], result.ms[name] = predictions[name], geometry, ms
        return results


def _take_batch(job_queue: collections.deque[_Job], limit: int) -> list[_Job]:
    """Removes the first job and further jobs of the same tasks from the queue, and returns them."""
    jobs = [job for job in job_queue if job.names == job_queue[0].names][:limit]
    job_ids = {id(job) for job in jobs}
    remaining = [job for job in job_queue if id(job) not in job_ids]
    job_queue.clear()
    job_queue.extend(remaining)
    return jobs


def describe_model(service: InferenceService) -> dict[str, Any]:
    """Returns tasks, classes and thresholds of the network as JSON."""
    network = service.network
    tasks = {}
    for name, task in service.tasks.items():
        calibration = network.calibration.get(name)
        tasks[name] = {
            "kind": task.kind,
            "classes": list(task.classes),  # masks hold their indices
            "removed": [name for name in task.classes if name not in task.output_classes],
            "thresholds": dict(calibration.thresholds) if calibration else {},
            "temperature": calibration.temperature if calibration else 1.0,
            "ms": round(service.latency_ms.get(name, 0.0), 2),
        }
    return {"name": network.config.name, "stage": network.stage, "tasks": tasks}
