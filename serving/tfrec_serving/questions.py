"""The requests of the recommender contract: signature, inputs, and how the answer is read."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfrec_serving.ids import Id, feature_input, filter_row, id_row, whole

Inputs = dict[str, np.ndarray]


class Recommendation(NamedTuple):
    """One item of an answer.

    Attributes:
        item_id: str.
        score: float.
    """

    item_id: str
    score: float


class Question(NamedTuple):
    """A request.

    Attributes:
        signature_name: str, the signature that is asked.
        inputs: dict of arrays by name.
        read: function from the outputs to the result.
        lacking: str, what to do where the model has no such signature. Default: nothing is known.
    """

    signature_name: str
    inputs: Inputs
    read: Callable[[Inputs], Any]
    lacking: str = ""


FIXED = {"history", "exclude", "k", "allow", "deny", "candidates", "item_ids", "timestamps", "request_time"}
"""Inputs that are no columns."""


def _query(
    history: Sequence[Id],
    timestamps: Sequence[int] | None,
    request_time: int | None,
    events: Mapping[str, Sequence[Any]] | None,
    context: Mapping[str, Any] | None,
) -> Inputs:
    """The inputs of a history; without those that are not given. A value that is None leaves its input out."""
    inputs = {"history": id_row(history, "history")}
    wanted = inputs["history"].shape[1:]
    for argument, given in (("events", events), ("context", context)):
        if not isinstance(given or {}, Mapping):
            raise TypeError(f"`{argument}` is a dict by the names of columns. Received: {reprlib.repr(given)}.")
    if wrong := [column for column in [*(events or {}), *(context or {})] if not isinstance(column, str)]:
        raise TypeError(
            f"`events` and `context` are dicts by the names of columns. Received: {reprlib.repr(wrong[0])}."
        )
    features: Inputs = {}

    def put(argument: str, column: str, name: str, row: np.ndarray) -> None:
        if name in FIXED or name in features:
            raise ValueError(f"`{argument}`: {column!r} is no column of its own, but the input `{name}`.")
        features[name] = row

    for column, values in (events or {}).items():
        found = "text" if isinstance(values, str) else f"shape {np.shape(values)}"
        if found != f"shape {wanted}":
            raise ValueError(f"`events`: {column!r} has a value for each item: shape {wanted}. Received: {found}.")
        if any(value is not None for value in values):
            name, row = feature_input(column, list(values))
            put("events", column, name, row[np.newaxis])
    for column, value in (context or {}).items():
        if value is not None:
            put("context", column, *feature_input(column, [value], "request_"))
    inputs |= features
    if timestamps is None:
        if request_time is not None:
            raise ValueError("`request_time` goes with `timestamps`, the time of each item of the history.")
        return inputs
    if (received := np.shape(timestamps)) != wanted:
        raise ValueError(f"`timestamps` has a number for each item: shape {wanted}. Received: shape {received}.")
    asked = int(time.time()) if request_time is None else request_time
    times = {"timestamps": np.array([timestamps], np.int64), "request_time": np.array([asked], np.int64)}
    return inputs | times


def _recommendations(answer: Inputs) -> list[Recommendation]:
    pairs = zip(answer["item_ids"][0], answer["scores"][0], strict=True)
    return [Recommendation(item_id.decode(), float(score)) for item_id, score in pairs if item_id]


class Questions:
    """The requests of both clients; `timestamps` and `request_time` are for a model that reads times, `events` and
    `context` for one that reads features.

    >>> Questions.recommend(["50", "181"], k=2).signature_name
    'recommend'
    """

    @staticmethod
    def recommend(
        history: Sequence[Id],
        k: int = 10,
        exclude: Sequence[Id] = (),
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        allow: Mapping[str, Sequence[Id]] | None = None,
        deny: Mapping[str, Sequence[Id]] | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time, events, context) | {
            "exclude": id_row(exclude, "exclude"),
            "k": whole(k, "k"),
        }
        if not (allow or deny):
            return Question("recommend", inputs, _recommendations)
        wanted = {"allow": filter_row(allow, "allow"), "deny": filter_row(deny, "deny")}
        return Question("recommend_filtered", inputs | wanted, _recommendations)

    @staticmethod
    def similar_items(item_id: Id, k: int = 10) -> Question:
        return Question(
            "similar_items", {"item_ids": id_row([item_id], "item_id")[0], "k": whole(k, "k")}, _recommendations
        )

    @staticmethod
    def score(
        history: Sequence[Id],
        candidates: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time, events, context) | {
            "candidates": id_row(candidates, "candidates")
        }
        return Question("score", inputs, lambda answer: answer["scores"][0].tolist())

    @staticmethod
    def explain(
        history: Sequence[Id],
        item_ids: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Question:
        asked = id_row(item_ids, "item_ids")[0]
        query = _query(history, timestamps, request_time, events, context)
        inputs = {name: np.repeat(values, len(asked), axis=0) for name, values in query.items()} | {"item_ids": asked}
        nothing = np.zeros((0, query["history"].shape[1]), np.float32)

        def read(answer: Inputs) -> np.ndarray:
            # a server that puts requests together may answer as wide as the longest history; JSON has no width for no rows
            return answer["contributions"][:, : nothing.shape[1]] if len(asked) else nothing

        return Question("explain", inputs, read, "an earlier tfrec exported it, so export its run again.")

    @staticmethod
    def embed_history(
        history: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time, events, context)
        return Question("embed_history", inputs, lambda answer: answer["embedding"][0])

    @staticmethod
    def embed_items(item_ids: Sequence[Id]) -> Question:
        return Question(
            "embed_items", {"item_ids": id_row(item_ids, "item_ids")[0]}, lambda answer: answer["embedding"]
        )
