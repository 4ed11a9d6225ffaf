"""The requests of the recommender contract: signature, inputs, and how the answer is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfrec_serving.ids import Id, filter_row, id_row, whole

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
    """

    signature_name: str
    inputs: Inputs
    read: Callable[[Inputs], Any]


def _query(history: Sequence[Id], timestamps: Sequence[int] | None, request_time: int | None) -> Inputs:
    """The inputs of a history; without times for a model that reads none."""
    ids = id_row(history, "history")
    if timestamps is None:
        if request_time is not None:
            raise ValueError("`request_time` goes with `timestamps`, the time of each item of the history.")
        return {"history": ids}
    if (received := np.shape(timestamps)) != (wanted := ids.shape[1:]):
        raise ValueError(f"`timestamps` has a number for each item: shape {wanted}. Received: shape {received}.")
    asked = int(time.time()) if request_time is None else request_time
    times = {"timestamps": np.array([timestamps], np.int64), "request_time": np.array([asked], np.int64)}
    return {"history": ids} | times


def _recommendations(answer: Inputs) -> list[Recommendation]:
    pairs = zip(answer["item_ids"][0], answer["scores"][0], strict=True)
    return [Recommendation(item_id.decode(), float(score)) for item_id, score in pairs if item_id]


class Questions:
    """The requests of both clients; `timestamps` and `request_time` are for a model that reads times.

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
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {
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
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {"candidates": id_row(candidates, "candidates")}
        return Question("score", inputs, lambda answer: answer["scores"][0].tolist())

    @staticmethod
    def embed_history(
        history: Sequence[Id], timestamps: Sequence[int] | None = None, request_time: int | None = None
    ) -> Question:
        return Question(
            "embed_history", _query(history, timestamps, request_time), lambda answer: answer["embedding"][0]
        )

    @staticmethod
    def embed_items(item_ids: Sequence[Id]) -> Question:
        return Question(
            "embed_items", {"item_ids": id_row(item_ids, "item_ids")[0]}, lambda answer: answer["embedding"]
        )
