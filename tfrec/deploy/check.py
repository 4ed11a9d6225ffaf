"""Preflight check: the ops an export needs, the servers that can load it, and whether it answers."""

from __future__ import annotations

import gc
import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
"""Ops that call back into the Python process that saved them: registered everywhere, but working nowhere else."""


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    Attributes:
        folder: Path of the version folder.
        signatures: list of str, their names.
        foreign_ops: list of str, ops that stock TensorFlow lacks, for which stock TensorFlow Serving refuses the export.
        packages: list of str, packages that our server imports for these ops.
        size_bytes: int, size of all files.
        warmup_requests: int, number of requests that were replayed.
        answer: list of str, ids that `serving_default` recommends to the longest warm-up history.
        request: dict, the inputs of a request for `recommend`: that of the shortest warm-up history.
    """

    folder: Path
    signatures: list[str]
    foreign_ops: list[str]
    packages: list[str]
    size_bytes: int
    warmup_requests: int
    answer: list[str]
    request: dict[str, Any]

    @property
    def is_stock(self) -> bool:
        """Whether an unmodified TensorFlow Serving loads it."""
        return not self.foreign_ops


def ops_of(folder: Path) -> set[str]:
    """Every op in the graph of a SavedModel and in its functions.

    Raises:
        ValueError: the folder is no SavedModel.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except FileNotFoundError:
        raise ValueError(f"`{folder}` is no SavedModel: it has no saved_model.pb.") from None
    except DecodeError:
        raise ValueError(f"`{folder / 'saved_model.pb'}` is damaged: export again.") from None
    graph = proto.meta_graphs[0].graph_def
    return {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}


def is_stock_op(name: str) -> bool:
    """Whether stock TensorFlow has an op. The ops of a package have its name before a `>`."""
    return ">" not in name and name not in PYTHON_OPS and hasattr(tf.raw_ops, name)


def load_export(folder: Path, packages: Sequence[str]) -> Any:
    """Load a version folder in this process.

    Args:
        folder: Path of the version folder.
        packages: names of the packages whose ops it needs, the `custom_ops` of its manifest.
    Raises:
        ValueError: a package is not installed, or the folder cannot be loaded.
    """
    for package in packages:
        try:
            importlib.import_module(package.lower())
        except ImportError:
            raise ValueError(f"`{folder}` needs the ops of {package}: pip install {package.lower()}.") from None
    try:
        return tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow has many for a damaged file
        raise ValueError(f"`{folder}` cannot be loaded: {str(error).splitlines()[0]}") from None


def check(folder: str | os.PathLike) -> CheckReport:
    """Load a version folder as a server does, replay its warm-up file and ask it for recommendations.

    >>> check("export/1").is_stock  # doctest: +SKIP
    True

    Raises:
        ValueError: it cannot be loaded or does not answer; the message says what and why.
    """
    folder = Path(folder)
    called = {op for op in ops_of(folder) if not op.startswith("__inference")}  # the others are its own functions
    foreign = sorted(op for op in called if not is_stock_op(op))
    manifest = folder / "tfrec_manifest.json"
    packages = json.loads(manifest.read_text(encoding="utf-8"))["custom_ops"] if manifest.is_file() else []
    loaded = load_export(folder, packages)
    gc.collect()  # what loading left goes before the first request makes more
    signatures = loaded.signatures
    replayed, answer = 0, []
    sample: dict[str, Any] = {}
    for signature, inputs in _warmup_requests(folder / WARMUP):
        if signature not in signatures:
            raise ValueError(f"`{folder / WARMUP}` asks for the signature `{signature}`, which the export lacks.")
        try:
            outputs = signatures[signature](**inputs)
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{folder / WARMUP}` has a request that `{signature}` refuses, so no server would load the export: "
                f"{str(error).splitlines()[0]}"
            ) from None
        replayed += 1
        if signature == "recommend" and not sample:
            text = np.frompyfunc(lambda v: v.decode() if isinstance(v, bytes) else v, 1, 1)
            sample = {name: text(value.numpy()).tolist() for name, value in sorted(inputs.items())}
        if signature == "serving_default" and "item_ids" in outputs:
            answer = [i.decode() for i in outputs["item_ids"].numpy()[0] if i]
    if hasattr(loaded, "release"):
        loaded.release()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return CheckReport(folder, sorted(signatures), foreign, packages, size, replayed, answer, sample)


def _warmup_requests(path: Path):
    """Signature and inputs of each request of a warm-up file; nothing where there is none."""
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    if not path.is_file():
        return
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            yield (
                request.model_spec.signature_name or "serving_default",
                {n: tf.constant(tf.make_ndarray(v)) for n, v in request.inputs.items()},
            )
    except (tf.errors.DataLossError, DecodeError):
        raise ValueError(f"`{path}` is damaged: no server would load the export. Remove it, or export again.") from None
