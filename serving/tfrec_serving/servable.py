"""A loaded version of a model, and the rules that TensorFlow Serving checks a request by."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

log = logging.getLogger("tfrec_serving")

MAX_MESSAGE_BYTES = 64 << 20
MAX_ROWS = 256
"""Rows that a model is given at a time."""
NO_ITEM = {"item_ids": b"", "scores": -np.inf}
"""What fills up a row of recommendations, by output."""
OF_HISTORY = {"contributions"}
"""Outputs with a value for each item of `history`."""
MANIFEST = "tfrec_manifest.json"
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
OP_PACKAGES = {"Scann": "scann.scann_ops.py.scann_ops"}
"""The packages that register the ops of a manifest."""


# number in TensorFlow (and gRPC), name, HTTP status
STATUS = (
    (1, "CANCELLED", 499),
    (2, "UNKNOWN", 500),
    (3, "INVALID_ARGUMENT", 400),
    (4, "DEADLINE_EXCEEDED", 504),
    (5, "NOT_FOUND", 404),
    (6, "ALREADY_EXISTS", 409),
    (7, "PERMISSION_DENIED", 403),
    (8, "RESOURCE_EXHAUSTED", 429),
    (9, "FAILED_PRECONDITION", 400),
    (10, "ABORTED", 409),
    (11, "OUT_OF_RANGE", 400),
    (12, "UNIMPLEMENTED", 501),
    (13, "INTERNAL", 500),
    (14, "UNAVAILABLE", 503),
    (15, "DATA_LOSS", 500),
    (16, "UNAUTHENTICATED", 401),
)
"""Every way in which a request fails: an error of TensorFlow, a status of gRPC and one of HTTP mean the same."""
CODES = {number: name for number, name, _ in STATUS}
HTTP_STATUS = {name: status for _, name, status in STATUS}
LONGEST_MESSAGE = 500
"""Characters of an error. gRPC sends it in a header, which clients refuse beyond 8 KiB."""


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        code: str, a name of `STATUS`.
        message: str, shortened where it is long.
        http_status: int. Default: the one of `STATUS`.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…")
        self.code, self.http_status = code, http_status or HTTP_STATUS[code]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Whatever goes wrong inside leaves as a `RequestError`.

    Raises:
        RequestError: as it came, or of `refusal`.
    """
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise refusal(error) from error


def refusal(error: Exception) -> RequestError:
    """The answer to a request that failed in a way that was not foreseen; the log has the rest."""
    if isinstance(error, MemoryError):
        return RequestError("RESOURCE_EXHAUSTED", "The request needs more memory than there is.")
    log.error("A request failed", exc_info=error)
    return RequestError("INTERNAL", f"The server failed on this request ({type(error).__name__}); its log says more.")


class Servable:
    """One version folder, loaded.

    Args:
        name: of the model.
        folder: `.../<version>`, a SavedModel.
    Raises:
        ValueError: it is no SavedModel, is damaged, or needs ops that are not installed; the message says what.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.version = name, folder, int(folder.name)
        manifest = _read_manifest(folder)
        _import_ops(folder, manifest)
        path = folder / "saved_model.pb"
        if not path.is_file():
            raise ValueError(f"`{folder}` is no SavedModel: it has no saved_model.pb.")
        try:
            proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
            self.signature_defs: Mapping[str, meta_graph_pb2.SignatureDef] = dict(proto.meta_graphs[0].signature_def)
        except (DecodeError, IndexError):
            raise ValueError(f"`{path}` is damaged: export again.") from None
        self._has_rows = bool(manifest)  # an export of ours; what others mean by an axis is not known
        about = [f for owner in ("event", "context", "user") for f in manifest.get(f"{owner}_features", ())]
        self._may_lack = {f[key] for f in about for key in ("input", "request_input") if key in f}
        self._specs = {name: _specs(definition) for name, definition in self.signature_defs.items()}
        try:
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow has many for a damaged file
            raise ValueError(f"`{folder}` cannot be loaded: {str(error).splitlines()[0]}") from error
        self._functions = self._model.signatures
        # in a thread of its own: garbage is collected anywhere, also where a graph is being built, which `_free` must not join
        free = threading.Thread(target=_free, args=(self._model,), daemon=True)
        weakref.finalize(self, free.start).atexit = False
        self._warm_up()

    def _warm_up(self) -> None:
        """Replay the warm-up file, so that the first request is as fast as the next."""
        path = self.folder / WARMUP
        if not path.is_file():
            return
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
                signature_name = request.model_spec.signature_name or "serving_default"
                self.run(signature_name, self.check(signature_name, inputs))
        except (tf.errors.OpError, DecodeError):
            raise ValueError(f"The warm-up file `{path}` is damaged: remove it, or export again.") from None
        except RequestError as error:
            raise ValueError(f"The warm-up file `{path}` has a request that is refused: {error}") from None

    def check_outputs(self, signature_name: str, outputs: Iterable[str]) -> None:
        """Raise `RequestError` for an output filter that names an output which the signature lacks."""
        known, seen = self.signature(signature_name).outputs, set()
        for alias in outputs:
            if alias in seen:
                raise RequestError("INVALID_ARGUMENT", f"duplicate output tensor alias: {alias}")
            seen.add(alias)
            if alias not in known:
                raise RequestError(
                    "INVALID_ARGUMENT",
                    f"output tensor alias not found in signature: {alias} Outputs "
                    f"expected to be in the set {{{','.join(sorted(known))}}}.",
                )

    def check(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check names, dtypes and shapes of inputs against the signature; raise `RequestError` for others.

        Features that a request leaves out are missing. TensorFlow Serving would refuse it.
        """
        definition = self.signature(signature_name)
        inputs = self._filled(signature_name, inputs)
        _check_names(inputs, definition)
        for name, value in inputs.items():
            dtype, shape = self._specs[signature_name][name]
            received = "string" if value.dtype.kind in "OSU" else value.dtype.name
            if received != dtype:
                raise RequestError("INVALID_ARGUMENT", f'input "{name}" must be {dtype}. Received: {received}.')
            if shape is not None and not (
                len(shape) == value.ndim and all(a in (-1, b) for a, b in zip(shape, value.shape, strict=True))
            ):
                raise RequestError(
                    "INVALID_ARGUMENT",
                    f'input "{name}" must have shape {shape} (-1 is any size). Received: {list(value.shape)}.',
                )
        rows = {name: len(value) for name, value in sorted(inputs.items()) if self._has_rows}
        if len(set(rows.values())) > 1:  # TensorFlow would repeat a single `k`, or fail with words about its nodes
            received = ", ".join(f"{name} {number}" for name, number in rows.items())
            raise RequestError(
                "INVALID_ARGUMENT", f"All inputs must have the same number of rows. Received: {received}."
            )
        return dict(inputs)

    def required(self, definition: meta_graph_pb2.SignatureDef) -> list[str]:
        """The inputs of a signature that a request cannot leave out."""
        return sorted(set(definition.inputs) - self._may_lack)

    def _filled(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The inputs, with "" or NaN of the size of the history in those features that are left out."""
        history = inputs.get("history")
        if not self._may_lack or history is None:
            return inputs
        specs, filled = self._specs[signature_name], dict(inputs)
        size_of_two = (*history.shape, 1, 1)[:2]  # a history of another rank is refused by its own name
        for name in self._may_lack & set(specs) - set(inputs):
            dtype, shape = specs[name]
            size = size_of_two[: len(shape or ())]
            filled[name] = np.full(size, b"", object) if dtype == "string" else np.full(size, np.nan, dtype)
        return filled

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Run a signature on inputs that were checked; many rows a part at a time, since memory grows with the rows.

        Raises:
            RequestError: with the code of TensorFlow's error; INVALID_ARGUMENT, the answer is too large; DEADLINE_EXCEEDED, where
                parts are left after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        numbers = {len(value) if value.ndim else 0 for value in inputs.values()}
        rows = numbers.pop() if len(numbers) == 1 else 0
        if rows <= MAX_ROWS:
            return self._call(signature_name, inputs)
        parts, size = [], 0
        for start in range(0, rows, MAX_ROWS):
            if end is not None and time.monotonic() > end:
                raise RequestError("DEADLINE_EXCEEDED", "The deadline was over before all rows were answered.")
            part = {name: value[start : start + MAX_ROWS] for name, value in inputs.items()}
            answer = self._call(signature_name, part)
            if any(not value.ndim or len(value) != min(MAX_ROWS, rows - start) for value in answer.values()):
                return self._call(signature_name, inputs)  # a model of another kind: its outputs are not rows
            parts.append(answer)
            size += sum(4 * value.nbytes if value.dtype == object else value.nbytes for value in answer.values())
            if size > MAX_MESSAGE_BYTES:
                message = f"The answer has more than {MAX_MESSAGE_BYTES} bytes: ask for fewer rows at a time, or a smaller `k`."
                raise RequestError("INVALID_ARGUMENT", message)
        return {name: _join(name, [part[name] for part in parts]) for name in parts[0]}

    def _call(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            answer = self._functions[signature_name](**{name: tf.constant(value) for name, value in inputs.items()})
        except tf.errors.OpError as error:
            raise RequestError(CODES.get(error.error_code, "UNKNOWN"), _reason(error)) from error
        # by name: a signature's own order differs from process to process
        return {name: answer[name].numpy() for name in sorted(answer)}

    def signature(self, signature_name: str) -> meta_graph_pb2.SignatureDef:
        """The definition of a signature."""
        if signature_name not in self._functions:  # which lack what is not to be called
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{signature_name}" not found.')
        return self.signature_defs[signature_name]


def _join(name: str, parts: list[np.ndarray]) -> np.ndarray:
    """The rows of several answers; recommendations are as wide as the largest `k` of each, and filled up to the widest."""
    if name in NO_ITEM and parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        fill = lambda part: np.full((len(part), width - part.shape[1]), NO_ITEM[name], part.dtype)  # noqa: E731
        parts = [np.concatenate([part, fill(part)], axis=1) for part in parts]
    return np.concatenate(parts)


def _free(model: Any) -> None:
    """Free the resources of a loaded model that TensorFlow would keep: hash tables, and those of the export's `release`."""
    if hasattr(model, "release"):
        model.release.concrete_functions[0]()
    captured = [t for f in model.signatures.values() for t in f.captured_inputs if t.dtype == tf.resource]
    for handle in {id(t): t for t in captured}.values():
        tf.raw_ops.DestroyResourceOp(resource=handle)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export of ours; nothing where there is none."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return {}
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return found | {"custom_ops": list(found["custom_ops"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"`{manifest}` is damaged: export again.") from None


def _import_ops(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Register the ops that a version's manifest asks for."""
    for package in manifest.get("custom_ops", ()):
        try:
            importlib.import_module(OP_PACKAGES[package])
        except ImportError as error:
            raise ValueError(
                f"`{folder}` needs the ops of {package}: pip install {package.lower()}. Or export with `--index exact`."
            ) from error


def _specs(definition: meta_graph_pb2.SignatureDef) -> dict[str, tuple[str, list[int] | None]]:
    """Dtype and shape of each input; -1 is any size, None any shape."""
    return {
        name: (
            tf.as_dtype(info.dtype).name,
            None if info.tensor_shape.unknown_rank else [d.size for d in info.tensor_shape.dim],
        )
        for name, info in definition.inputs.items()
    }


def _reason(error: tf.errors.OpError) -> str:
    """The cause, out of a message that also holds nodes and stack traces."""
    frame = ("Graph execution error", "Detected at node", "<stack traces", "\t")
    lines = [line for line in error.message.splitlines() if line.strip() and not line.startswith(frame)]
    return lines[0] if lines else error.message


def _check_names(inputs: Mapping[str, np.ndarray], definition: meta_graph_pb2.SignatureDef) -> None:
    sent, wanted = set(inputs), set(definition.inputs)
    if sent != wanted:
        join = lambda names: "{" + ",".join(sorted(names)) + "}"  # noqa: E731
        sizes = f"input size does not match signature: {len(sent)}!={len(wanted)}"
        names = f" len({join(sent)}) != len({join(wanted)})"
        others = f". Sent extra: {join(sent - wanted)}. Missing but required: {join(wanted - sent)}."
        is_long = len(sizes + names + others) > LONGEST_MESSAGE  # what counts comes last
        raise RequestError("INVALID_ARGUMENT", sizes + others if is_long else sizes + names + others)
