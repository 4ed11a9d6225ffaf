"""Columns that a second head predicts: which there are, and how batches hold them."""

import dataclasses
import re

import numpy as np
import pytest

from tfrec.data.batches import PackedBatches
from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.task_columns import has_value, output_name, task_feature

RATING = Feature("rating", "number", mean=3.0)
KIND = Feature("kind", "category", values=("view", "buy"))


def with_columns(columns, features, context=()) -> PreparedData:
    data = PreparedData.from_histories(["abcde", "edcba", "cab"])
    arrays = {name: np.asarray(values(data.num_events)) for name, values in columns.items()}
    return dataclasses.replace(data, event_columns=arrays, features={"events": features, "context": list(context)})


@pytest.fixture
def data():
    return with_columns(
        {"rating": lambda n: np.arange(n, dtype=np.float32), "kind": lambda n: np.arange(n, dtype=np.int32) % 4},
        [RATING, KIND],
    )


def test_a_column_is_found(data):
    assert task_feature(data, "rating") == RATING
    assert task_feature(data, "kind", "category") == KIND


def test_what_cannot_be_predicted_says_so(data):
    def refused(found, column, message, kind=None):
        with pytest.raises(ValueError, match=re.escape(message)):
            task_feature(found, column, kind)

    refused(
        data, "ratings", "no column 'ratings' of events to predict. Did you mean 'rating'? Its columns: rating, kind."
    )
    refused(data, "stars", "Prepare it with `--event-feature stars`.")
    refused(data, "kind", "The head predicts column 'kind' as number, and in the data it is category.", "number")
    known = {"rating": lambda n: np.ones(n, np.float32)}
    refused(with_columns(known, [RATING], [RATING]), "rating", "Column 'rating' is context: a request tells it")
    nothing = {"rating": lambda n: np.full(n, np.nan, np.float32)}
    refused(with_columns(nothing, [RATING]), "rating", "Column 'rating' has no number in any event")
    one = Feature("kind", "category", values=("view",))
    same = {"kind": lambda n: np.full(n, 2, np.int32)}
    refused(with_columns(same, [one]), "kind", "Column 'kind' has fewer than two values that occur twice")
    taken = {"scores": lambda n: np.ones(n, np.float32)}
    refused(with_columns(taken, [Feature("scores", "number")]), "scores", "a served model has an output of that name")


def test_names_and_values():
    assert output_name("my rating") == "my_rating"
    assert has_value(np.array([1.0, np.nan], np.float32)).tolist() == [True, False]
    assert has_value(np.array([0, 1, 2], np.int32)).tolist() == [False, False, True]


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("reorder_rate", [0.0, 0.7])
def test_batches_hold_the_column_of_the_next_event(data, is_packed, reorder_rate):
    """`rating` numbers the events, so that the item of event `rating` must be the target."""
    split = LeaveLastOut(data, 0)
    options = {"max_length": 8, "batch_positions": 16, "seed": 0, "is_packed": is_packed, "reorder_rate": reorder_rate}
    batches = PackedBatches.for_training(split, task="rating", **options)
    number = 0
    for inputs, target in batches:
        real = inputs["is_real"]
        np.testing.assert_array_equal(data.item_index[inputs["task"][real].astype(int)], target[real])
        number += real.sum()
    assert number == batches.num_positions == 10
    inputs, _ = next(iter(batches.dataset()))
    assert inputs["task"].dtype == "float32"
    assert inputs["task"].shape == inputs["history"].shape
    of_kind = PackedBatches.for_training(split, task="kind", **options)
    assert next(iter(of_kind.dataset()))[0]["task"].dtype == "int32"
    assert "task" not in next(iter(PackedBatches.for_training(split, **options)))[0]
