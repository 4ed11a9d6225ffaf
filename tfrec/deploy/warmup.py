"""The warm-up file: requests that a server replays before a version takes over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.splits import keeps_seen
from tfrec.deploy.serving_model import K
from tfrec.index.inputs import RequestInput, request_inputs
from tfrec.training.run import Run

WARMUP_REQUESTS = 4


def write_warmup(path: Path, run: Run, k: int, filters: Sequence[str], repeats: str) -> None:
    """Write the requests that TensorFlow Serving replays when it loads a model.

    Each signature is asked with histories of one item up to the length of the run's longest.

    Args:
        path: the file to write.
        run: the run.
        k: int, items asked for.
        filters: names of the attributes that requests can filter by.
        repeats: str, the choice of the export, which decides about `recommend_new`.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    tower = run.model.sequence_tower
    longest = min(run.length_quantiles["max"] or tower.max_length, tower.max_length)
    others = request_inputs(tower, run.features)
    dtypes = {K.name: K.dtype} | {put.name: put.spec().dtype for put in others}
    lengths = np.linspace(1, max(1, longest), WARMUP_REQUESTS).astype(int)
    ids = np.array(run.vocabulary.item_ids, dtype=object)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for length in lengths:
            query: dict[str, list] = {"history": [[str(i) for i in np.resize(ids, length)]]}
            for put in others:
                query[put.name] = [_example(put)] if put.is_of_request else [[_example(put)] * int(length)]
            item = [str(ids[0])]
            requests: dict[str, dict[str, list]] = {
                "serving_default": query,
                "recommend": query | {"exclude": [item], "k": [k]},
                "similar_items": {"item_ids": item, "k": [k]},
                "score": query | {"candidates": [item]},
                "explain": query | {"item_ids": item},
                "embed_history": query,
                "embed_items": {"item_ids": item},
            }
            if keeps_seen(repeats):
                requests["recommend_new"] = requests["recommend"]
            if filters:
                requests["recommend_filtered"] = requests["recommend"] | {"allow": [[""]], "deny": [[""]]}
            for signature, inputs in requests.items():
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(name="default", signature_name=signature),
                    inputs={
                        name: tf.make_tensor_proto(value, dtypes.get(name, tf.string)) for name, value in inputs.items()
                    },
                )
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def _example(put: RequestInput) -> Any:
    """A raw value: the most frequent category, the mean number, an unknown time."""
    if put.feature is None:
        return 0
    if put.spec().dtype == tf.string:
        return put.feature.values[0] if put.feature.values else ""
    return float(np.expm1(put.feature.mean) if put.feature.is_log else put.feature.mean)
