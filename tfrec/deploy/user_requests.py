"""The users of prepared data as requests to a served model: their whole histories, with the values of columns as logs have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.arrays import ranges
from tfrec.data.prepared import PreparedData
from tfrec.data.raw_columns import raw_column
from tfrec.index.inputs import text_of

POSITIONS = 4096
"""About how many positions of histories a model reads at a time."""
CELLS = 1 << 18
"""About how many items the histories of a request have at most, read by the model or not."""
UNKNOWN = "\0unknown"
"""A value that no category has: it stands for the values that were too rare in the data to be kept."""


class UserRequests:
    """Makes the inputs of `recommend` and `recommend_filtered` for users of prepared data.

    >>> data = PreparedData.from_histories([["a", "b"], ["c"]])
    >>> UserRequests(data, {}, reads_times=False)(np.array([1, 0]))["history"]
    array([['', 'c'],
           ['a', 'b']], dtype=object)

    Args:
        data: `PreparedData`.
        about: dict, which columns the model reads; see `describe_inputs`.
        reads_times: bool, whether the model reads times.
        request_time: int, the second of each request, for a model that reads times. Default: unknown.
        context: dict, values by the name of a column, the same for each request. Default: unknown; of properties of users, those
            of the data.
        exclude: item ids that are not recommended to anybody. Default: none.
        pairs: PyArrow table of `user_id` and `item_id`, items that are not recommended to their user. Default: none.
    Raises:
        ValueError: the data lacks a column that the model reads or has it in another kind, or `context` has a column that the model
            does not read, or a value that is no number where the model reads numbers.
    """

    def __init__(
        self,
        data: PreparedData,
        about: Mapping[str, Any],
        *,
        reads_times: bool,
        request_time: int = 0,
        context: Mapping[str, Any] | None = None,
        exclude: Sequence[str] = (),
        pairs: pa.Table | None = None,
    ) -> None:
        self.data, self.reads_times, self.request_time = data, reads_times, request_time
        self._ids = np.array(["", "", *data.vocabulary.item_ids], object)  # by item index
        self._exclude = np.array(exclude, object).reshape(1, -1)
        self._pair_users, self._pair_items = _sorted_pairs(data, pairs)
        columns = {c["column"]: c for use in ("event", "context", "user") for c in about.get(f"{use}_features", ())}
        requested = {name for name, column in columns.items() if "request_input" in column}
        if unknown := sorted(set(context or {}) - requested):
            raise ValueError(
                f"`context`: the model reads no column {unknown[0]!r}. It reads: {', '.join(sorted(requested)) or 'none'}."
            )
        self._of_events = {c["input"]: _event_values(data, c) for c in columns.values() if "input" in c}
        self._of_requests = {
            c["request_input"]: _request_values(data, c, context or {})
            for c in columns.values()
            if c["column"] in requested
        }

    def batches(self, users: np.ndarray, max_length: int, max_rows: int) -> Iterator[np.ndarray]:
        """Cut users into batches with histories of about one length: numbers of places in `users`, each once.

        Args:
            users: int array.
            max_length: int, items of a history that the model reads.
            max_rows: int, users of a batch at most.
        """
        lengths = self.data.lengths[users]
        order, first = np.argsort(-lengths, kind="stable"), 0
        while first < len(order):
            longest = max(1, int(lengths[order[first]]))
            rows = max(1, min(POSITIONS // min(longest, max_length), CELLS // longest, max_rows))
            yield order[first : first + rows]
            first += rows

    def __call__(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of a request with a row for each of `users`, but `k` and filters: text as objects, "" = padding."""
        starts, ends = self.data.offsets[users], self.data.offsets[users + 1]
        event, rows = _gathered(starts, ends)
        inputs = {"history": rows(self._ids[self.data.item_index[event]], "")}
        if self.reads_times:
            inputs["timestamps"] = rows(self.data.seconds(event), 0)
            inputs["request_time"] = np.full(len(users), self.request_time, np.int64)
        for name, (values, texts) in self._of_events.items():
            inputs[name] = rows(values[event], np.nan) if texts is None else rows(texts[values[event]], "")
        inputs |= {name: values[users] for name, values in self._of_requests.items()}
        pair, rows = _gathered(*(np.searchsorted(self._pair_users, users, side) for side in ("left", "right")))
        common = np.tile(self._exclude, (len(users), 1))
        return inputs | {"exclude": np.concatenate([common, rows(self._pair_items[pair], "")], axis=1)}


def _gathered(starts: np.ndarray, ends: np.ndarray):
    """The places `starts[i] : ends[i]`, row after row, and a function that puts their values into rows with padding on the left."""
    lengths = ends - starts
    width = int(lengths.max(initial=0))
    is_given = np.arange(width) >= (width - lengths)[:, np.newaxis]

    def rows(values: np.ndarray, padding: Any) -> np.ndarray:
        padded: np.ndarray = np.full(is_given.shape, padding, values.dtype)
        padded[is_given] = values
        return padded

    return ranges(starts, lengths), rows


def _sorted_pairs(data: PreparedData, pairs: pa.Table | None) -> tuple[np.ndarray, np.ndarray]:
    """User rows in order, and an item id for each; pairs of other users are left out."""
    if pairs is None:
        return np.zeros(0, np.int64), np.zeros(0, object)
    row = user_rows(data, pairs["user_id"])
    row, items = row[row >= 0], pairs["item_id"].to_numpy(zero_copy_only=False)[row >= 0]
    order = np.argsort(row, kind="stable")
    return row[order], items[order]


def user_rows(data: PreparedData, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The row of each user id; -1 where the data has no such user."""
    known = data.users["user_id"].cast(pa.string()).combine_chunks()
    rows = pc.fill_null(pc.index_in(ids.cast(pa.string()), known), -1)
    return rows.to_numpy(zero_copy_only=False).astype(np.int64)


def _event_values(data: PreparedData, column: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The column of the data, and for a category the text of each code; the model numbers its values as its own data did."""
    name, kind = column["column"], column["kind"]
    known = {f.name: f for use in ("events", "context") for f in data.features.get(use, ())}
    if name not in known:
        raise ValueError(
            f"The model reads the column {name!r} of events, which the data lacks: prepare it with --event-feature {name}={kind} "
            f"or --context {name}={kind}."
        )
    if known[name].kind != kind:
        raise ValueError(
            f"The model reads the column {name!r} of events as {kind}, and the data has it as {known[name].kind}: prepare it as "
            f"{kind}."
        )
    texts = np.array(["", UNKNOWN, *known[name].values], object) if kind == "category" else None
    return data.event_columns[name], texts


def _request_values(data: PreparedData, column: Mapping[str, Any], context: Mapping[str, Any]) -> np.ndarray:
    """The value of each user: that of the request, else the property of the user; a context that is not given is missing."""
    name, kind = column["column"], column["kind"]
    if name not in context and "input" not in column:
        if name not in data.users.column_names:
            raise ValueError(
                f"The model reads the property {name!r} of users, which the data lacks: prepare it with --users FILE, or pass a "
                f"value for all of them in `context` (--context {name}=VALUE)."
            )
        return raw_column(name, kind, data.users[name])
    if kind == "category":
        value = text_of([context.get(name)])
    else:
        try:
            value = np.array([context.get(name)], np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"`context`: {name!r} is a number. Received: {context[name]!r}.") from None
    return np.broadcast_to(value, data.num_users)
