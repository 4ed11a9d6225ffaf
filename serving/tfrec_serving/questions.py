"""The requests of the recommender contract: signature, inputs, and how the answer is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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


def text_ids(values: Sequence) -> np.ndarray:
    """Ids as an object array of UTF-8 strings; an empty row stays a row: `[[]]` has shape (1, 0).

    Raises:
        TypeError: an id is not text.
    """
    array = np.array(values, dtype=object)
    try:
        return np.frompyfunc(str.encode, 1, 1)(array) if array.size else array
    except TypeError:
        wrong = next(value for value in array.reshape(-1) if not isinstance(value, str))
        raise TypeError(f"Ids are text, such as '50'. Received: {wrong!r} ({type(wrong).__name__}).") from None


def _query(history: Sequence[str], timestamps: Sequence[int] | None, request_time: int | None) -> Inputs:
    """The inputs of a history; without times for a model that reads none."""
    if timestamps is None:
        return {"history": text_ids([history])}
    asked = int(time.time()) if request_time is None else request_time
    times = {"timestamps": np.array([timestamps], np.int64), "request_time": np.array([asked], np.int64)}
    return {"history": text_ids([history])} | times


def _values(wanted: Mapping[str, Sequence[str]]) -> np.ndarray:
    """`{"genres": ["Comedy"]}` in the form of a request: `genres=Comedy`."""
    return text_ids([[f"{name}={value}" for name, values in wanted.items() for value in values]])


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
        history: Sequence[str],
        k: int = 10,
        exclude: Sequence[str] = (),
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        deny: Mapping[str, Sequence[str]] | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {
            "exclude": text_ids([exclude]),
            "k": np.array([k], np.int32),
        }
        if not (allow or deny):
            return Question("recommend", inputs, _recommendations)
        wanted = {"allow": _values(allow or {}), "deny": _values(deny or {})}
        return Question("recommend_filtered", inputs | wanted, _recommendations)

    @staticmethod
    def similar_items(item_id: str, k: int = 10) -> Question:
        return Question(
            "similar_items", {"item_ids": text_ids([item_id]), "k": np.array([k], np.int32)}, _recommendations
        )

    @staticmethod
    def score(
        history: Sequence[str],
        candidates: Sequence[str],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {"candidates": text_ids([candidates])}
        return Question("score", inputs, lambda answer: answer["scores"][0].tolist())

    @staticmethod
    def embed_history(
        history: Sequence[str], timestamps: Sequence[int] | None = None, request_time: int | None = None
    ) -> Question:
        return Question(
            "embed_history", _query(history, timestamps, request_time), lambda answer: answer["embedding"][0]
        )

    @staticmethod
    def embed_items(item_ids: Sequence[str]) -> Question:
        return Question("embed_items", {"item_ids": text_ids(item_ids)}, lambda answer: answer["embedding"])
