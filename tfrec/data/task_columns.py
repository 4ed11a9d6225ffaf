"""Columns of events that a second head of a model learns to predict."""

from __future__ import annotations

import numpy as np

from tfrec.data.features import Feature, input_name
from tfrec.data.kinds import meant
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import FIRST_ITEM_INDEX

TAKEN = "scores"
"""The output of the signature `score` that a predicted column stands beside."""


def task_feature(data: PreparedData, column: str, kind: str | None = None) -> Feature:
    """What was learned of a column of events that is to be predicted.

    >>> data = PreparedData.from_histories(["ab", "ba"])
    >>> task_feature(data, "rating")
    Traceback (most recent call last):
    ValueError: The data has no column 'rating' of events to predict. Its columns: none. Prepare it with `--event-feature rating`.

    Args:
        data: `PreparedData`.
        column: str, its name.
        kind: str, the kind that it must have, `"number"` or `"category"`. Default: any.
    Raises:
        ValueError: there is no such column, it has nothing to tell apart, it is part of the request, it has another kind, or its
            name is that of another output of a served model.
    """
    if column not in data.event_columns:
        there, near = ", ".join(data.event_columns) or "none", meant(column, list(data.event_columns))
        raise ValueError(
            f"The data has no column {column!r} of events to predict.{near} Its columns: {there}. Prepare it "
            f"with `--event-feature {column}`."
        )
    if column in {feature.name for feature in data.features.get("context", [])}:
        raise ValueError(
            f"Column {column!r} is context: a request tells it, and nothing is left to predict. Prepare the data with "
            f"`--event-feature {column}` and without `--context {column}`."
        )
    if output_name(column).lower() == TAKEN:
        raise ValueError(
            f"Column {column!r} cannot be predicted: a served model has an output of that name. Rename it."
        )
    feature = next(feature for feature in data.features["events"] if feature.name == column)
    if kind not in (None, feature.kind):
        raise ValueError(f"The head predicts column {column!r} as {kind}, and in the data it is {feature.kind}.")
    values = data.event_columns[column]
    if feature.kind == "category" and len(feature.values) < 2:
        raise ValueError(f"Column {column!r} has fewer than two values that occur twice: there is nothing to predict.")
    if feature.kind == "number" and np.isnan(values).all():
        raise ValueError(f"Column {column!r} has no number in any event: there is nothing to predict.")
    return feature


def output_name(column: str) -> str:
    """The name of a predicted column among the outputs of a served model.

    >>> output_name("star rating")
    'star_rating'
    """
    return input_name(column)


def has_value(values: np.ndarray) -> np.ndarray:
    """Bool: which values of a column of events are known.

    >>> has_value(np.array([1.5, np.nan], np.float32)), has_value(np.array([0, 1, 2], np.int32))
    (array([ True, False]), array([False, False,  True]))
    """
    return values >= FIRST_ITEM_INDEX if values.dtype.kind == "i" else ~np.isnan(values)
