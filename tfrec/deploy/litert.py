"""LiteRT: the same model in one `.tflite` file, for phones and edge devices.

    history  int32 [1, max_length]   item indexes, oldest first; 0 (padding) may stand anywhere
    timestamps int64 [1, max_length], request_time int64 [1]   seconds, 0 = unknown; only of a model that reads times
    items    int32 [1, k]            item indexes of the recommendations, best first; 0 beyond the catalogue
    scores   float32 [1, k]

Only built-in ops, no Flex delegate. Strings need Flex, so ids stay outside: `vocabulary.json` lies beside the file.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfrec.data.batches import prepare_inputs
from tfrec.data.splits import LeaveLastOut
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX
from tfrec.evaluation.ranking import recommend
from tfrec.files import write_whole
from tfrec.index import build_index
from tfrec.training.run import Run

PARITY_HISTORIES = 100


@dataclass(frozen=True)
class LiteReport:
    """What came out.

    Attributes:
        path: the `.tflite` file.
        size_bytes: its size.
        max_difference: the largest difference of a score against Keras, over real histories.
        same_items: share of those histories for which the same items come back in the same order.
        num_histories: how many were compared.
    """

    path: Path
    size_bytes: int
    max_difference: float
    same_items: float
    num_histories: int


class EdgeModel(tf.Module):
    """History in, recommendations out, by item index. A tf.Module, so that the converter finds the Keras 3 weights."""

    def __init__(self, run: Run, k: int, index: str = "exact") -> None:
        super().__init__(name="tfrec_edge")
        self._model = run.model
        self._variables = [v.value for v in run.model.variables]
        self._index = build_index(index, np.asarray(run.model.item_tower.catalogue()))
        self._max_length = run.config.max_length
        self._k = min(k, self._index.num_items)
        counts = np.asarray(run.items["num_events"], np.float32)
        popular = np.argsort(-counts, kind="stable")[np.newaxis]
        self._share = tf.constant(counts[popular] / max(counts.sum(), 1))
        self._popular = tf.constant(popular[:, : self._k + self._max_length].astype(np.int32))

    @property
    def function(self):
        """The concrete function to convert."""
        row = (1, self._max_length)
        inputs = [tf.TensorSpec(row, tf.int32, "history")]
        if self._model.sequence_tower.reads_times:
            inputs += [tf.TensorSpec(row, tf.int64, "timestamps"), tf.TensorSpec((1,), tf.int64, "request_time")]
        return tf.function(self._recommend, inputs).get_concrete_function()

    def _recommend(self, history, *times):
        inputs = prepare_inputs(history, self._max_length, *times)
        prepared, is_real = inputs["history"], inputs["is_real"]
        query = self._model.embed_history(inputs)
        # enough that k are left when the history is taken out
        number = min(self._k + self._max_length, self._index.num_items)
        scores, items = self._index.candidates(query, number)  # 1 number
        is_warm = tf.reduce_any(is_real)
        scores, items = tf.where(is_warm, scores, self._share[:, :number]), tf.where(is_warm, items, self._popular)
        is_seen = tf.equal(tf.expand_dims(items + FIRST_ITEM_INDEX, 2), tf.expand_dims(prepared, 1))
        scores, kept = tf.math.top_k(tf.where(tf.reduce_any(is_seen, axis=2), -np.inf, scores), self._k)
        items = tf.gather(items, kept, batch_dims=1)
        return {"items": tf.where(scores > -np.inf, items + FIRST_ITEM_INDEX, PAD_INDEX), "scores": scores}


def to_litert(run: Run | str | os.PathLike, out: str | os.PathLike, *, k: int = 10, index: str = "exact") -> LiteReport:
    """Convert a run to a `.tflite` file with `vocabulary.json` beside it, and compare it with Keras.

    Args:
        run: a run or its folder.
        out: the file to write.
        k: how many items it recommends.
        index: `"exact"` or `"partitioned"`.
    """
    if index not in ("exact", "partitioned"):
        raise ValueError(f"LiteRT runs an exact or a partitioned index. Received: index={index!r}.")
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    data = run.data()  # before the work, so that a moved folder fails first
    edge = EdgeModel(run, k, index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter announces its own move to another package
        converter = tf.lite.TFLiteConverter.from_concrete_functions([edge.function], edge)
        content = converter.convert()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: path.write_bytes(content))
    run.vocabulary.save(out.parent)

    split = LeaveLastOut(data)
    starts, ends = (array[:PARITY_HISTORIES] for array in split.histories("test"))
    kept = [slice(max(a, b - run.config.max_length), b) for a, b in zip(starts, ends, strict=True)]
    histories, times = ([array[rows] for rows in kept] for array in (data.item_index, data.timestamp))
    requests = data.timestamp[ends]
    items, scores = recommend(run.model, histories, k, run.items["num_events"], times, requests)
    interpreter = load(out)
    found = [run_edge(interpreter, *given) for given in zip(histories, times, requests, strict=True)]
    differences = [np.abs(s[s > -np.inf] - scores[i][s > -np.inf]).max() for i, (_, s) in enumerate(found)]
    same = [np.array_equal(a, items[i]) for i, (a, _) in enumerate(found)]
    return LiteReport(out, len(content), float(max(differences)), float(np.mean(same)), len(histories))


def load(path: str | os.PathLike):
    """A LiteRT interpreter with its tensors allocated."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    return interpreter


def run_edge(
    interpreter, history: np.ndarray, timestamps: np.ndarray | None = None, request_time: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Run one history of item indexes, of any length: `(items, scores)`, int32 and float32 `(k,)`.

    `timestamps` and `request_time` are for a model that reads times; another ignores them.
    """
    runner = interpreter.get_signature_runner()
    inputs = {"history": history, "timestamps": np.zeros(len(history)) if timestamps is None else timestamps}
    given = {"request_time": np.array([request_time], np.int64)}
    details = runner.get_input_details()
    length = details["history"]["shape"][1]
    for name, values in inputs.items():
        row = np.zeros((1, length), np.int32 if name == "history" else np.int64)  # 0 is padding
        row[0, length - len(values[-length:]) :] = values[-length:]
        given[name] = row
    answer = runner(**{name: given[name] for name in details})
    return answer["items"][0], answer["scores"][0]
