"""What a request says beside the item ids of its history: times, what happened in each event, and its context.

input                       of which        holds
timestamps, request_time    events, request times, for a model that reads them; see `to_seconds`
NAME                        each event      an event feature, or the context that the event was asked for in
request_NAME                the request     its context, or a property of the user

A request to a served model holds raw values and one at the edge encoded ones; see `tfrec.data.features`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.encoding import FeatureEncoder, input_spec
from tfrec.data.features import Feature
from tfrec.models.towers import AbstractSequenceTower

MISSING = {tf.string: "", tf.float32: np.nan, tf.int32: 0, tf.int64: 0}
"""The value that stands for none, by the dtype of an input."""


@dataclass(frozen=True)
class RequestInput:
    """A further input of a request.

    Attributes:
        name: str, of the input.
        is_of_request: bool, whether it has one value, shape `(batch,)`, and not one for each event, shape `(batch, length)`.
        feature: `Feature`; None for times.
        uses: tuple of str, the arguments of `prepare_inputs` that it goes to, by the name of the feature.
    """

    name: str
    is_of_request: bool
    feature: Feature | None = None
    uses: tuple[str, ...] = ()

    def spec(self, rows: int | None = None, length: int | None = None, is_encoded: bool = False) -> tf.TensorSpec:
        """The named input of a served model with raw values, or with encoded ones."""
        shape = (rows,) if self.is_of_request else (rows, length)
        if self.feature is None:
            return tf.TensorSpec(shape, tf.int64, self.name)
        dtype = input_spec(self.feature).dtype
        return tf.TensorSpec(shape, tf.int32 if is_encoded and dtype == tf.string else dtype, self.name)

    def missing(self, number: int) -> np.ndarray:
        """Encoded values of events or requests of which nothing is known."""
        dtype = self.spec(is_encoded=True).dtype
        return np.full(number, MISSING[dtype], dtype.as_numpy_dtype)


def request_inputs(tower: AbstractSequenceTower, features: Mapping[str, Sequence[Feature]]) -> list[RequestInput]:
    """The further inputs of a model.

    >>> from tfrec.models.sequence_tower import SequenceTower
    >>> device = Feature("device", "category", values=("phone",))
    >>> tower = SequenceTower(10, context_features={"device": device.spec})
    >>> [put.name for put in request_inputs(tower, {"context": [device]})]
    ['device', 'request_device']

    Args:
        tower: the sequence tower, which says what it reads.
        features: lists of `Feature` by whose they are, as `Run.features`.
    """
    inputs = [RequestInput("timestamps", False), RequestInput("request_time", True)] if tower.reads_times else []

    def read(use: str, is_read: bool, names: Mapping[str, Any]) -> dict[str, Feature]:
        """A tower of your own may read all that there is."""
        return {f.name: f for f in features.get(use, []) if is_read and (not names or f.name in names)}

    events = read("events", tower.reads_events, tower.event_features)
    context, users = (read(use, tower.reads_context, tower.context_features) for use in ("context", "users"))
    for name, feature in {**events, **context}.items():
        uses = tuple(use for use, own in (("events", events), ("event_context", context)) if name in own)
        inputs.append(RequestInput(input_spec(feature).name, False, feature, uses))
    for feature in {**context, **users}.values():
        inputs.append(RequestInput(f"request_{input_spec(feature).name}", True, feature, ("request_context",)))
    return inputs


def describe_inputs(inputs: Sequence[RequestInput]) -> dict[str, list[dict[str, Any]]]:
    """What a client needs to know of features: columns, inputs, kinds, values; by whose they are."""
    about: dict[str, list[dict[str, Any]]] = {"event_features": [], "context_features": [], "user_features": []}
    entries: dict[str, dict[str, Any]] = {}
    for put in inputs:
        if put.feature is not None:
            entry = entries.setdefault(put.feature.name, {"column": put.feature.name, "kind": put.feature.kind})
            entry |= {"request_input" if put.is_of_request else "input": put.name}
            entry |= {"values": list(put.feature.values)} if put.feature.values else {}
            if "events" in put.uses:
                about["event_features"].append(entry)
            if put.is_of_request:
                about["context_features" if "input" in entry else "user_features"].append(entry)
    return about


def text_of(values: Sequence[Any]) -> np.ndarray:
    """The values of a category as prepared data has them: `5.0` is `5`, True is `true`, None and NaN are missing.

    >>> text_of(["view", 5.0, True, None])
    array(['view', '5', 'true', ''], dtype=object)
    """

    def one(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, bool | np.bool_):
            return str(value).lower()
        is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return str(int(value)) if is_whole else str(value)

    return np.array([one(value) for value in values], object)


def _numbers_of(values: Sequence[Any], what: str) -> np.ndarray:
    """Float32: the numbers, None as NaN."""
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float32)
    except (TypeError, ValueError):
        wrong = next(v for v in values if v is not None and (isinstance(v, str) or not np.isscalar(v)))
        raise ValueError(f"{what} holds numbers. Received: {reprlib.repr(wrong)}.") from None


class RequestEncoder(tf.Module):
    """Encodes the raw values of further inputs.

    Args:
        inputs: of `request_inputs`.
    """

    def __init__(self, inputs: Sequence[RequestInput]) -> None:
        super().__init__(name="request")
        self._inputs = list(inputs)
        self.encoder = FeatureEncoder(list({put.feature.name: put.feature for put in inputs if put.feature}.values()))

    def __call__(self, others) -> list:
        """Encode tensors that stand in the order of the inputs; times stay as they are."""
        return [
            given if put.feature is None else self.encoder.encode(put.feature.name, given)
            for put, given in zip(self._inputs, others, strict=True)
        ]

    def of_columns(
        self, lengths: Sequence[int], events: Mapping[str, Sequence], context: Mapping[str, Any]
    ) -> dict[str, list[np.ndarray]]:
        """Encode columns as a user of Python passes them, None being a missing value.

        Args:
            lengths: ints, the number of items of each history.
            events: by the name of a column, for each history a list with a value for each item.
            context: by the name of a column or a property of the user, a list with a value for each history, or one value.
        Returns:
            By the name of an input, for each history an array of encoded values; of the context with one value.
        Raises:
            ValueError: the model does not read a column, a list has another length than its history, or a value is no number.
            TypeError: `events` or `context` is no dict, or the values of the events are no list.
        """
        encoded = {}
        for argument, given, of_request in (("events", events, False), ("context", context, True)):
            if not isinstance(given, Mapping):
                raise TypeError(f"`{argument}` is a dict by the names of columns. Received: {reprlib.repr(given)}.")
            known = {put.feature.name: put for put in self._inputs if put.feature and put.is_of_request == of_request}
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(
                    f"`{argument}`: the model reads no column {unknown[0]!r}. It reads: {', '.join(known) or 'none'}."
                )
            for name, rows in given.items():
                if of_request:
                    is_one = isinstance(rows, str) or not hasattr(rows, "__len__")
                    rows = [[row] for row in ([rows] * len(lengths) if is_one else rows)]
                if wrong := [row for row in rows if isinstance(row, str) or not hasattr(row, "__len__")]:
                    raise TypeError(
                        f"`{argument}`: {name!r} has a list of values for each history. Received: {reprlib.repr(wrong[0])}."
                    )
                wanted = [1] * len(lengths) if of_request else list(lengths)
                received = list(map(len, rows))
                if received != wanted:
                    pairs = zip(received, wanted, strict=False)
                    each = "history" if of_request or len(received) != len(wanted) else "item"
                    a, b = next((pair for pair in pairs if pair[0] != pair[1]), (len(received), len(wanted)))
                    raise ValueError(f"`{argument}`: {name!r} must have a value for each {each}: {b}. Received: {a}.")
                flat = [value for row in rows for value in row]
                dtype = known[name].spec().dtype
                raw = text_of(flat) if dtype == tf.string else _numbers_of(flat, f"`{argument}`: {name!r}")
                values = tf.convert_to_tensor(self.encoder.encode(name, tf.constant(raw, dtype)))
                encoded[known[name].name] = np.split(values.numpy(), np.cumsum(wanted)[:-1])
        return encoded
