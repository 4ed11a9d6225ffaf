"""The way of a request, over gRPC or REST: found, checked, answered alone or in a batch, counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tfrec_serving.batching import Batcher
from tfrec_serving.lifecycle import Models
from tfrec_serving.metrics import LATENCY, REQUESTS, RUNTIME, UNKNOWN_MODEL, Metrics
from tfrec_serving.servable import RequestError, Servable, refusing


class Predictor:
    """The part that gRPC and REST share.

    Args:
        models: what is served.
        batcher: None: each request is answered on its own.
        max_rows: int, rows of a request at most; 0: any number. A full batch of the batcher is never refused. Default: 0.
    """

    def __init__(self, models: Models, batcher: Batcher | None = None, max_rows: int = 0) -> None:
        self.models, self.batcher = models, batcher
        self._max_rows = max(max_rows, batcher.parameters.max_batch_size) if batcher and max_rows else max_rows
        self.metrics: Metrics = models.metrics

    def predict(
        self,
        servable: Servable,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Iterable[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            servable: the version that answers.
            signature_name: of it.
            inputs: arrays by name; strings as object arrays of bytes.
            output_filter: names to return; none means all.
            timeout: seconds that are left for the answer.
        Raises:
            RequestError: as TensorFlow Serving answers it.
        """
        if timeout is not None and timeout <= 0:
            raise RequestError("DEADLINE_EXCEEDED", "The deadline was over before the model was asked.")
        servable.check_outputs(signature_name, output_filter)
        tensors = servable.check(signature_name, inputs)
        rows = max((len(value) for value in tensors.values() if value.ndim), default=0)
        if 0 < self._max_rows < rows:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"A request may have {self._max_rows:,} rows. Received: {rows:,}. Send fewer at a time, or start the server with a "
                "higher --max_request_rows.",
            )
        begin = time.perf_counter()
        if self.batcher is None:
            answer = servable.run(signature_name, tensors, timeout)
        else:
            answer = self.batcher.run(servable, signature_name, tensors, timeout)
        took = 1e6 * (time.perf_counter() - begin)
        self.metrics.observe(RUNTIME, took, model_name=servable.name, runtime="TF2")
        return {name: value for name, value in answer.items() if not output_filter or name in output_filter}

    @contextlib.contextmanager
    def counted(self, api: str, entrypoint: str, model_name: str) -> Iterator[None]:
        """Count a request by how it ended.

        Args:
            api: str, `GRPC` or `REST`.
            entrypoint: str, such as `Predict`.
            model_name: str, as the request names it.
        Raises:
            RequestError: see `refusing`.
        """
        begin, code = time.perf_counter(), "CANCELLED"  # of an error that is no `Exception`: the call was dropped
        try:
            with refusing():
                yield
            code = "OK"
        except RequestError as error:
            code = error.code
            raise
        finally:
            label = model_name if model_name in self.models.names else UNKNOWN_MODEL
            self.metrics.count(REQUESTS, model_name=label, status=code)
            took = 1e6 * (time.perf_counter() - begin)
            self.metrics.observe(LATENCY, took, model_name=label, API=entrypoint, entrypoint=api)
