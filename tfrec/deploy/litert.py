"""LiteRT: the same model in one `.tflite` file, for phones and edge devices.

history    int32 [1, max_length]   item indexes, oldest first; 0 (padding) may stand anywhere
timestamps int64 [1, max_length], request_time int64 [1]   seconds, 0 = unknown; only of a model that reads times
NAME       int32 or float32 [1, max_length], request_NAME [1]   encoded features, see `tfrec.index.inputs`: number `2 + i` is the
           value `i` of `NAME.json`, 0 = missing, 1 = unknown; only of a model that reads features
items      int32 [1, k]            item indexes of the recommendations, best first; 0 where no item is left
scores     float32 [1, k]          the lowest float32 where no item is left

Only built-in ops, no Flex delegate. Strings need Flex, so ids stay outside: beside `NAME.tflite` lie `vocabulary.json` and
`NAME.json`, which says how to call the file. Format 1; before tfrec 0.2 there was no `NAME.json`. One without `repeats` excludes
them.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.vocabulary import PAD_INDEX
from tfrec.files import write_whole
from tfrec.index.answers import Answers, to_seconds
from tfrec.index.building import build_index
from tfrec.index.inputs import MISSING, describe_inputs
from tfrec.models.new_items import as_table
from tfrec.training.run import Run
from tfrec.version import __version__

FORMAT = 1
PARITY_HISTORIES = 100


@dataclass(frozen=True)
class LiteReport:
    """The result of a conversion.

    Attributes:
        path: Path, the `.tflite` file.
        size_bytes: int, its size.
        max_difference: float, the largest difference of a score from Keras, over real histories; NaN without one.
        same_items: float, share of those histories with the same items in the same order; NaN without one.
        num_histories: int, number of histories that were compared.
    """

    path: Path
    size_bytes: int
    max_difference: float
    same_items: float
    num_histories: int


class EdgeModel(tf.Module):
    """One history in, recommendations out, by item index: `Answers` with the ops that LiteRT has.

    Args:
        run: the run.
        k: int, items to recommend.
        index: `"exact"` or `"partitioned"`. Default: `"exact"`.
        repeats: `"exclude"` or `"allow"`; see `Answers`. Default: `"exclude"`.
    """

    def __init__(self, run: Run, k: int, index: str = "exact", repeats: str = "exclude") -> None:
        super().__init__(name="tfrec_edge")
        model, tower = as_table(run.model), run.model.sequence_tower
        built = build_index(index, np.asarray(model.item_tower.catalogue()))
        self._k, self._max_length = min(k, built.num_items), tower.max_length
        own: dict[str, Any] = {"for_edge": True, "repeats": repeats, "features": run.features}
        self.answers = Answers(model, run.items["num_events"], built, **own)

    @property
    def function(self):
        """The concrete function to convert."""
        row = (1, self._max_length)
        inputs = [tf.TensorSpec(row, tf.int32, "history")]
        inputs += [put.spec(*row, is_encoded=True) for put in self.answers.inputs]
        return tf.function(self._recommend, inputs).get_concrete_function()

    def _recommend(self, history, *others):
        items, scores = self.answers.rank(history, others, None, None, self._k)
        return {"items": items, "scores": scores}


def to_litert(
    run: Run | str | os.PathLike,
    out: str | os.PathLike,
    *,
    k: int = 10,
    index: str = "exact",
    repeats: str | None = None,
) -> LiteReport:
    """Convert a run to a `.tflite` file, with its vocabulary beside it, and compare it with Keras.

    >>> report = to_litert("run", "lite/model.tflite")  # doctest: +SKIP

    Args:
        run: a run or its folder.
        out: the `.tflite` file to write.
        k: int, items that it recommends, at most the catalogue. Default: 10.
        index: `"exact"` or `"partitioned"`. Default: `"exact"`.
        repeats: str, `"exclude"` leaves out the items of the history, `"allow"` does not. Default: as the run was trained,
            `Run.repeats`.
    Raises:
        ValueError: LiteRT does not run an index of this kind, `repeats` is another value, `k` is below 1, or `out` has another
            ending or the name of the vocabulary.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Received: k={k}.")
    if Path(out).suffix != ".tflite" or Path(out).stem == "vocabulary":  # beside it lie NAME.json and vocabulary.json
        raise ValueError(f"`{out}` must end in .tflite, and not be vocabulary.tflite.")
    if index not in ("exact", "partitioned"):
        raise ValueError(f"LiteRT runs an exact or a partitioned index. Received: index={index!r}.")
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    repeats = run.repeats if repeats is None else repeats
    edge = EdgeModel(run, k, index, repeats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter announces its own move to another package
        converter = tf.lite.TFLiteConverter.from_concrete_functions([edge.function], edge)
        content = converter.convert()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: path.write_bytes(content))
    run.vocabulary.save(out.parent)
    report = _compare(run, out, k, repeats, len(content))
    details = load(out).get_signature_runner()
    about = {
        "format_version": FORMAT,
        "tfrec_version": __version__,
        "inputs": _describe(details.get_input_details()),
        "outputs": _describe(details.get_output_details()),
        **describe_inputs(edge.answers.inputs),
        "index": index,
        "repeats": repeats,
        "num_items": len(run.vocabulary),
        "parity": {
            "num_histories": report.num_histories,
            "same_items": report.same_items if report.num_histories else None,
            "max_difference": report.max_difference if report.num_histories else None,
        },
    }
    text = json.dumps(about, indent=2)
    write_whole(out.with_suffix(".json"), lambda path: path.write_text(text, encoding="utf-8"))
    return report


def _describe(details: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"dtype": np.dtype(tensor["dtype"]).name, "shape": np.asarray(tensor["shape"]).tolist()}
        for name, tensor in details.items()
    }


def _compare(run: Run, path: Path, k: int, repeats: str, size_bytes: int) -> LiteReport:
    """Run a converted file beside Keras on test histories of the run's sample."""
    sample, max_length = run.sample, run.model.sequence_tower.max_length
    split = run.sample_split()
    starts, ends = (array[:PARITY_HISTORIES] for array in split.histories("test"))
    kept = [slice(max(a, b - max_length), b) for a, b in zip(starts, ends, strict=True)]
    histories, times = ([array[rows] for rows in kept] for array in (sample.item_index, sample.timestamp))
    requests = sample.timestamp[ends]
    if not len(histories):
        return LiteReport(path, size_bytes, float("nan"), float("nan"), 0)
    answers = Answers(run.model, run.items["num_events"], repeats=repeats, features=run.features)
    features: dict[str, Any] = {}
    for put in answers.inputs:
        if put.feature is not None:
            name, users = put.feature.name, split.users[: len(ends)]
            of_events = sample.event_columns.get(name)
            if of_events is None:
                features[put.name] = sample.user_columns[name][users]
            else:
                features[put.name] = of_events[ends] if put.is_of_request else [of_events[rows] for rows in kept]
    items, scores = answers.recommend(histories, k, timestamps=times, request_times=requests, features=features)
    interpreter = load(path)
    found = [
        run_edge(interpreter, *given, {name: values[i] for name, values in features.items()})
        for i, given in enumerate(zip(histories, times, requests, strict=True))
    ]
    # a row without enough items ends in padding, whose score is -inf here and the lowest float32 in LiteRT
    differences = [np.abs(s - scores[i])[a != PAD_INDEX].max(initial=0) for i, (a, s) in enumerate(found)]
    same = [np.array_equal(a, items[i]) for i, (a, _) in enumerate(found)]
    return LiteReport(path, size_bytes, float(max(differences)), float(np.mean(same)), len(histories))


def load(path: str | os.PathLike):
    """A LiteRT interpreter with its tensors allocated."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    return interpreter


def run_edge(
    interpreter,
    history: np.ndarray,
    timestamps: np.ndarray | None = None,
    request_time: int = 0,
    features: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run one history of item indexes, of any length.

    Args:
        interpreter: see `load`.
        history: int array, oldest first.
        timestamps, request_time: for a model that reads times, see `to_seconds`; another model ignores them. Default: unknown.
        features: dict of encoded features by the name of the input: an array like `history`, or one value of the request. Default:
            missing.
    Returns:
        `(items, scores)`: int32 and float32 arrays, shape `(k,)`.
    """
    runner = interpreter.get_signature_runner()
    times = np.zeros(len(history), np.int64) if timestamps is None else np.asarray(timestamps, np.int64)
    given = {"history": history, "timestamps": to_seconds(times), **(features or {})}
    given["request_time"] = to_seconds(np.array(request_time, np.int64))
    inputs = {}
    for name, tensor in runner.get_input_details().items():
        shape, dtype = tensor["shape"], np.dtype(tensor["dtype"])
        inputs[name] = np.full(shape, MISSING[tf.as_dtype(dtype)], dtype)
        if len(shape) == 1 and name in given:
            inputs[name][0] = given[name]
        elif name in given:
            values = np.asarray(given[name])[-shape[1] :]
            inputs[name][0, shape[1] - len(values) :] = values
    answer = runner(**inputs)
    return answer["items"][0], answer["scores"][0]
