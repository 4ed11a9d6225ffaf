"""Dynamic batching: waiting requests are answered together, by the parameters of TensorFlow Serving."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfrec_serving.metrics import BATCH_SIZE, Metrics
from tfrec_serving.servable import NO_ITEM, OF_HISTORY, RequestError, Servable

LIKE_WIDTH = 16
"""Inputs up to this width, and a `k` up to this, cost too little to keep them apart."""


@dataclass(frozen=True)
class BatchingParameters:
    """The parameters of `--batching_parameters_file`, with TensorFlow Serving's defaults.

    Attributes:
        max_batch_size: rows of a batch at most; a larger request is answered on its own.
        batch_timeout_micros: how long the first request of a batch waits for others.
        max_enqueued_batches: full batches that wait, in rows, before requests are refused with RESOURCE_EXHAUSTED.
        num_batch_threads: batches that are answered at a time.
        allowed_batch_sizes: a batch is filled up to the next of these, so that few shapes reach the model.
        pad_variable_length_inputs: put requests of like widths together, filled with "" or 0; else only equal ones. Up to 16, up to
            32 and so on are like widths; so it is with the largest `k`, and each answer is as wide as its own.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 2
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    @classmethod
    def from_proto(cls, proto: Any) -> BatchingParameters:
        """Make parameters of the message of `config.read_batching`.

        Raises:
            ValueError: a value makes no sense.
        """
        values = {
            name: getattr(proto, name).value
            for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
            if proto.HasField(name)
        }
        sizes = tuple(proto.allowed_batch_sizes)
        self = cls(**values, allowed_batch_sizes=sizes, pad_variable_length_inputs=proto.pad_variable_length_inputs)
        if (
            min(self.max_batch_size, self.max_enqueued_batches, self.num_batch_threads) < 1
            or self.batch_timeout_micros < 0
        ):
            raise ValueError("Batching parameters must be above 0, and batch_timeout_micros not below.")
        if sizes and (sorted(set(sizes)) != list(sizes) or sizes[-1] != self.max_batch_size):
            raise ValueError("allowed_batch_sizes must rise, and end with max_batch_size.")
        return self


@dataclass
class _Task:
    """A request that waits."""

    servable: Servable
    inputs: dict[str, np.ndarray]
    rows: int
    answer: Future = field(default_factory=Future)

    @property
    def k(self) -> int | None:
        """The width of the answer; None where the request does not say it."""
        return (
            max(0, int(self.inputs["k"].max())) if "k" in self.inputs and self.inputs["k"].dtype.kind == "i" else None
        )

    def own(self, name: str, value: np.ndarray) -> np.ndarray:
        """An output, no wider than it is alone."""
        if value.ndim == 2 and name in OF_HISTORY and "history" in self.inputs:
            return value[:, : self.inputs["history"].shape[1]]
        return value[:, : self.k] if value.ndim == 2 and name in NO_ITEM and self.k is not None else value


@dataclass
class _Batch:
    """Requests that will be answered together."""

    deadline: float
    tasks: list[_Task] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class Batcher:
    """Puts requests for the same version and signature together.

    Args:
        parameters: how.
        metrics: told the size of every batch.
    """

    def __init__(self, parameters: BatchingParameters, metrics: Metrics) -> None:
        self.parameters, self.metrics = parameters, metrics
        self._open: dict[tuple, _Batch] = {}
        self._full: list[tuple[str, _Batch]] = []
        self._rows = 0  # that wait
        self._waiting = threading.Condition()
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer the waiting requests, then stop."""
        with self._waiting:
            self._is_stopped = True
            self._waiting.notify_all()
        for thread in self._threads:
            thread.join()

    def run(
        self, servable: Servable, signature_name: str, inputs: dict[str, np.ndarray], timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """As `Servable.run`, together with others.

        Raises:
            RequestError: as there; RESOURCE_EXHAUSTED, when too many batches wait; DEADLINE_EXCEEDED, after `timeout` seconds.
        """
        if any(not value.ndim for value in inputs.values()) or len({len(value) for value in inputs.values()}) != 1:
            raise RequestError("INVALID_ARGUMENT", "Batching needs inputs with the same number of rows.")
        task = _Task(servable, inputs, len(next(iter(inputs.values()))))
        if not 0 < task.rows < self.parameters.max_batch_size:
            return servable.run(signature_name, inputs, timeout)
        self._enqueue(signature_name, task)
        try:
            return task.answer.result(timeout)
        except TimeoutError:
            task.answer.cancel()
            raise RequestError("DEADLINE_EXCEEDED", "The deadline was over before the answer was there.") from None

    def _enqueue(self, signature_name: str, task: _Task) -> None:
        is_padded = self.parameters.pad_variable_length_inputs
        step = _step if is_padded else int
        widths = tuple(sorted((name, *map(step, value.shape[1:])) for name, value in task.inputs.items()))
        key = (id(task.servable), signature_name, widths, _step(task.k or 0))
        with self._waiting:
            # in rows, not batches: requests of many widths make many small batches
            if self._rows + task.rows > self.parameters.max_enqueued_batches * self.parameters.max_batch_size:
                raise RequestError(
                    "RESOURCE_EXHAUSTED", "The batch scheduling queue to which this task was submitted is full"
                )
            self._rows += task.rows
            batch = self._open.get(key)
            if batch is not None and batch.rows + task.rows > self.parameters.max_batch_size:
                self._full.append((signature_name, self._open.pop(key)))
                batch = None
            if batch is None:
                batch = self._open[key] = _Batch(time.monotonic() + self.parameters.batch_timeout_micros / 1e6)
            batch.tasks.append(task)
            if batch.rows == self.parameters.max_batch_size:
                self._full.append((signature_name, self._open.pop(key)))
            self._waiting.notify()

    def _next(self) -> tuple[str, _Batch] | None:
        """The next batch to answer: a full one, or the one whose time is over; None when stopped."""
        with self._waiting:
            while True:
                now = time.monotonic()
                key, batch = min(self._open.items(), key=lambda kv: kv[1].deadline, default=((), None))
                if not self._full and batch is not None and (batch.deadline <= now or self._is_stopped):
                    self._full.append((key[1], self._open.pop(key)))
                if self._full:
                    signature_name, batch = self._full.pop(0)
                    self._rows -= batch.rows
                    return signature_name, batch
                if self._is_stopped:
                    return None
                self._waiting.wait(None if batch is None else batch.deadline - now)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            signature_name, batch = item
            try:
                self._answer(signature_name, batch)
            except BaseException as error:  # whoever waits must hear of it
                for task in batch.tasks:
                    if not task.answer.done():
                        task.answer.set_exception(error)

    def _answer(self, signature_name: str, batch: _Batch) -> None:
        batch.tasks = [task for task in batch.tasks if task.answer.set_running_or_notify_cancel()]
        if not batch.tasks:
            return
        servable, rows = batch.tasks[0].servable, batch.rows
        self.metrics.observe(BATCH_SIZE, rows, model_name=servable.name)
        size = next((s for s in self.parameters.allowed_batch_sizes if s >= rows), rows)
        inputs = {name: _stack([task.inputs[name] for task in batch.tasks], size) for name in batch.tasks[0].inputs}
        outputs = servable.run(signature_name, inputs)
        start = 0
        for task in batch.tasks:
            here = slice(start, start + task.rows)
            task.answer.set_result({name: task.own(name, value[here]) for name, value in outputs.items()})
            start += task.rows


def _step(width: int) -> int:
    """Requests are put together up to the same width: a power of two, so that none is filled up to more than twice its own."""
    return max(LIKE_WIDTH, 1 << (width - 1).bit_length()) if width > 0 else LIKE_WIDTH


def _stack(parts: list[np.ndarray], size: int) -> np.ndarray:
    """Stack the rows of several requests, padded on the right to the widest, and filled up to `size` rows with the first."""
    shape = tuple(np.max([part.shape[1:] for part in parts], axis=0).astype(int)) if parts[0].ndim > 1 else ()
    filling: Any = b"" if parts[0].dtype == object else 0
    stacked = np.full((size, *shape), filling, parts[0].dtype)
    start = 0
    for part in parts:
        stacked[(slice(start, start + len(part)), *(slice(n) for n in part.shape[1:]))] = part
        start += len(part)
    stacked[start:] = stacked[0]
    return stacked
