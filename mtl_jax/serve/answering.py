"""Batched inference for many clients: waiting images are run together, one batch at a time."""

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

TIMED_CALLS = 3  # of one image, for the latency of each task


class Result(NamedTuple):
    """Decoded predictions of a network for one image."""

    predictions: dict[str, Mapping[str, np.ndarray]]  # by task
    geometries: dict[str, Geometry]
    ms: dict[str, float]  # task -> how long the pass took that it was part of


class _Job(NamedTuple):
    image: UInt8[np.ndarray, "height width 3"]
    names: tuple[str, ...]
    future: Future[Result]


class Answering:
    """Runs a network in a thread of its own.

    Programs are compiled for one image and for `batch_size` of them: for all tasks that are shown images alike, and for
    each task alone. Whoever asks for several but not all of them is answered by the program for all.
    """

    def __init__(self, network: Trained, *, batch_size: int, flip: bool = False) -> None:
        """Compiles nothing yet.

        Args:
            network: whose tasks answer.
            batch_size: most images that pass together.
            flip: show every image mirrored too.
        """
        self.network, self.tasks = network, network.tasks
        self.grey_bits = trained.grey_bits(network)
        self.latency_ms: dict[str, float] = {}  # of each task alone
        self.batches: collections.Counter[int] = collections.Counter()  # images of a batch -> how often
        self._variables = jax.device_put(network.variables)
        self._run = evaluate.make_predict(network.setup.model, self.tasks, flip=flip)
        self._views, self.batch_size = predict.by_view(network), batch_size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """Compiles all programs, times each task, and begins to answer."""
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
        """Answers what waits already, and ends the thread."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def ask(self, image: UInt8[np.ndarray, "height width 3"], names: tuple[str, ...]) -> Future[Result]:
        """Hands an image over; a future that is cancelled while it waits costs nothing."""
        future: Future[Result] = Future()
        self._jobs.put(_Job(image, names, future))
        return future

    def _work(self) -> None:
        job_queue: collections.deque[_Job] = collections.deque()
        open_still = True
        while open_still or job_queue:
            while open_still and (not job_queue or not self._jobs.empty()):
                job = self._jobs.get()
                if job is None:
                    open_still = False
                else:
                    job_queue.append(job)
            if job_queue:
                self._run_jobs(_same_tasks(job_queue, self.batch_size))

    def _run_jobs(self, jobs: Sequence[_Job]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        self.batches[len(jobs)] += 1
        try:
            results = self._pass([job.image for job in jobs], jobs[0].names)
        except BaseException as error:  # goes to those who wait for it
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


def _same_tasks(job_queue: collections.deque[_Job], most: int) -> list[_Job]:
    """Takes the first job, and others that ask for the same tasks."""
    jobs = [job for job in job_queue if job.names == job_queue[0].names][:most]
    job_ids = {id(job) for job in jobs}
    remaining = [job for job in job_queue if id(job) not in job_ids]
    job_queue.clear()
    job_queue.extend(remaining)
    return jobs


def described(answering: Answering) -> dict[str, Any]:
    """Returns what the network does, as JSON."""
    network = answering.network
    tasks = {}
    for name, task in answering.tasks.items():
        calibration = network.calibration.get(name)
        tasks[name] = {
            "kind": task.kind,
            "classes": list(task.classes),
            "thresholds": dict(calibration.thresholds) if calibration else {},
            "temperature": calibration.temperature if calibration else 1.0,
            "ms": round(answering.latency_ms.get(name, 0.0), 2),
        }
    return {"name": network.config.name, "stage": network.stage, "tasks": tasks}
