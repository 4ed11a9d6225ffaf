"""From histories to the input of a sequence tower: truncation, order, padding, and batches with next to no padding.

A prepared history holds the newest `max_length` known items, oldest first, padding on the left. `prepare_history` does
this for a tensor (in the served model and at the edge, where ids can be unknown or missing anywhere in the row),
`PackedBatches` for slices of the memory-mapped log (in training and evaluation, where every item is known), several to a
row. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from tfrec.data.splits import Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX

if TYPE_CHECKING:
    import tensorflow as tf


def prepare_history(item_index, max_length: int, *others):
    """Keep the newest `max_length` known items of each row, oldest first, padding on the left.

    Padding and unknown ids are dropped as if they were not there, wherever they stand.

    >>> history, is_real = prepare_history(np.array([[7, 0, 1, 8, 9, 0]], "int32"), max_length=4)
    >>> np.array(history), np.array(is_real)
    (array([[0, 7, 8, 9]], dtype=int32), array([[False,  True,  True,  True]]))

    Args:
        item_index: int32 tensor, shape `(batch, length)`, oldest first.
        max_length: int > 0.
        *others: tensors of the shape of `item_index`, such as timestamps, to be kept in step with it.
    Returns:
        `(history, is_real, *others)`: int32 and bool tensors, shape `(batch, min(length, max_length))`; 0 at padding.
    """
    length = ops.shape(item_index)[1]
    is_known = item_index >= FIRST_ITEM_INDEX
    column = ops.cast(ops.expand_dims(ops.arange(1, length + 1), 0), "int32")
    newest_first, _ = ops.top_k(ops.where(is_known, column, 0), k=ops.minimum(length, max_length))
    kept = ops.flip(newest_first, axis=1)
    is_real = kept > 0
    history, *kept_others = (
        ops.where(is_real, ops.take_along_axis(values, ops.maximum(kept - 1, 0), axis=1), PAD_INDEX)
        for values in (item_index, *others)
    )
    return history, is_real, *kept_others


def prepare_inputs(
    item_index,
    max_length: int,
    timestamps=None,
    request_time=None,
    *,
    events: Mapping[str, Any] | None = None,
    event_context: Mapping[str, Any] | None = None,
    request_context: Mapping[str, Any] | None = None,
) -> dict:
    """The inputs of a `TwoTower` from raw rows: `prepare_history`, and for a model that reads them times and features.

    Each item of a history was the answer to a request: the context of the request after a position is that of the next event, and
    after the newest event that of the request itself.

    >>> own = {"event_context": {"device": np.array([[2, 3]])}, "request_context": {"device": np.array([4])}}
    >>> prepared = prepare_inputs(np.array([[7, 8]]), max_length=4, **own)
    >>> np.array(prepared["context"]["device"])
    array([[3, 4]])

    Args:
        item_index, max_length: see `prepare_history`.
        timestamps: int64 tensor, shape `(batch, length)`, the second of each item; 0 = unknown. Default: no times.
        request_time: int64 tensor, shape `(batch,)`, the second of the request; 0 = unknown.
        events: dict of encoded event features by name, shape `(batch, length)`. Default: none.
        event_context: dict of encoded features by name, shape `(batch, length)`: the context of each event. Default: none.
        request_context: dict of encoded features by name, shape `(batch,)`: the context of the request. A feature that
            `event_context` lacks, such as a property of the user, holds at every position. Default: none.
    """
    columns = [*(events or {}).values(), *(event_context or {}).values(), *([] if timestamps is None else [timestamps])]
    history, is_real, *kept = prepare_history(item_index, max_length, *columns)
    inputs: dict[str, Any] = {"history": history, "is_real": is_real}
    if timestamps is not None:
        times = kept.pop()
        inputs |= {"timestamps": times, "request_times": _of_next(times, request_time)}
    if events:
        inputs["events"] = {name: kept.pop(0) for name in events}
    if request_context:
        past = dict(zip(event_context or {}, kept, strict=True))
        inputs["context"] = {
            name: _of_next(past[name], value)
            if name in past
            else ops.broadcast_to(ops.expand_dims(value, 1), ops.shape(history))
            for name, value in request_context.items()
        }
    return inputs


def _of_next(of_events, of_request):
    """What is known of the event after each position, from events `(batch, length)` and the request `(batch,)` after them."""
    return ops.concatenate([of_events, ops.expand_dims(of_request, 1)], axis=1)[:, 1:]


def pack(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place histories in few rows by best-fit decreasing: the longest first, each row filled up with the longest that fits.

    The places depend on the lengths alone, so that histories of the same length can swap places each epoch. A row is filled
    from the right.

    >>> row, end, length = pack(np.array([2, 5, 3, 4]), row_length=6)
    >>> row.tolist(), end.tolist(), length.tolist()
    ([0, 1, 1, 2], [6, 6, 2, 6], [5, 4, 2, 3])

    Args:
        lengths: int array, values in 1 to `row_length`.
    Returns:
        `(row, end, length)`: int arrays with a place each: its row, the column after its last, how many columns it has.
    """
    count = np.bincount(lengths, minlength=row_length + 1)
    row, end, length, num_rows = [], [], [], 0
    while count.any():
        room, pattern = row_length, []
        while len(fitting := np.flatnonzero(count[: room + 1])):
            pattern.append((int(fitting[-1]), room))
            count[fitting[-1]] -= 1
            room -= int(fitting[-1])
        used = np.bincount([n for n, _ in pattern], minlength=len(count))
        more = int((count[used > 0] // used[used > 0]).min())  # rows of the same pattern
        count -= more * used
        for n, stop in pattern:
            row.append(np.arange(num_rows, num_rows + more + 1))
            end.append(np.full(more + 1, stop))
            length.append(np.full(more + 1, n))
        num_rows += more + 1
    if not num_rows:
        return tuple(np.zeros((3, 0), np.int64))  # type: ignore[return-value]
    return np.concatenate(row), np.concatenate(end), np.concatenate(length)


class PackedBatches:
    """Batches of one shape, several histories to a row, for `model.fit` and for evaluation.

    Histories are packed whole, next to each other, so that nearly no position is padding, and the model keeps them apart by
    `end`. A batch is `(inputs, target)`, all of shape `(rows, length)`. Padding rows fill up the last batch.

        inputs["history"]  int32, oldest first
        inputs["is_real"]  bool, True = real item
        inputs["end"]      int32, the column after the newest item of the history of a position; only of packed rows
        inputs["timestamps"], inputs["request_times"]   int64, when each item and the one after it were; only with `timestamp`
        inputs["events"]   dict, the columns of `events` by name, of the event at each position; only with `events`
        inputs["context"]  dict, the columns of `context`, of the event after each position, and those of `users`
        inputs["task"]     the column `task` of the event after each position; only with `task`
        target             int32, the item that followed each position; without targets, the history
        sample_weight      float32, the weight of the event after each position; a third member of the batch, only with `weight`

    Each iteration is an epoch, its order drawn from `(seed, epoch)` alone, so that a resumed run sees the same batches.
    Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination". Differs from the source: best-fit
    decreasing.

    >>> from tfrec.data.prepared import PreparedData
    >>> from tfrec.data.splits import LeaveLastOut
    >>> split = LeaveLastOut(PreparedData.from_histories(["abcd", "dcba"]))
    >>> batches = PackedBatches.for_training(split, max_length=4, batch_positions=8, seed=0)
    >>> inputs, target = next(iter(batches))
    >>> inputs["history"].shape, int(inputs["is_real"].sum())
    ((1, 4), 2)

    Args:
        item_index: int32 `(events,)`, memory-mapped or not.
        starts, ends: int64 `(histories,)`: history `i` reads events `starts[i] : ends[i]`.
        max_length: int > 0: longer histories keep their newest items.
        batch_positions: int > 0: about how many positions a batch has.
        seed: int, or None to keep one order. Default: None.
        has_targets: bool, whether batches have targets, the events one later; then the event at `ends[i]` must exist.
            Default: True.
        timestamp: int64 `(events,)`, for models that read times; then the event at `ends[i]` must exist. Default: no times.
        ticks_per_second: int, the resolution of `timestamp`; a batch has seconds. Default: 1.
        crop_rate: float in [0, 1]: the share of histories that an epoch cuts in two at a random place: the newer items do
            not see the older ones. Every item is still learned from.
        reorder_rate: float in [0, 1]: the share of items that an epoch lets change places with the next, where it has not
            changed places itself.
        events: arrays of shape `(events,)` by name, which go along with their items. Default: none.
        context: arrays of shape `(events,)` by name, of the event that is to be found; then the event at `ends[i]` must exist.
            Default: none.
        users: arrays of shape `(histories,)` by name, which go to the context. Default: none.
        weight: float `(events,)`, how much each event counts as a target. Default: batches have no weights.
        task: array `(events,)`, a column of events that a model learns to predict; see `TaskHead`. Default: none.
        is_packed: bool, whether rows hold several histories. Otherwise each history has a row of its own, with padding on the
            left, for towers that do not know `end`. Default: True.
    Raises:
        ValueError: `crop_rate` is given for rows that are not packed.
    """

    def __init__(
        self,
        item_index: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        *,
        max_length: int,
        batch_positions: int,
        seed: int | None = None,
        has_targets: bool = True,
        timestamp: np.ndarray | None = None,
        ticks_per_second: int = 1,
        crop_rate: float = 0.0,
        reorder_rate: float = 0.0,
        is_packed: bool = True,
        events: Mapping[str, np.ndarray] | None = None,
        context: Mapping[str, np.ndarray] | None = None,
        users: Mapping[str, np.ndarray] | None = None,
        weight: np.ndarray | None = None,
        task: np.ndarray | None = None,
    ) -> None:
        if crop_rate and not is_packed:
            raise ValueError("`crop_rate` cuts a history in two within a row, which takes packed rows: leave it at 0.")
        self.is_packed = is_packed
        self.item_index, self.timestamp, self.ends = item_index, timestamp, np.asarray(ends)
        self.ticks_per_second = ticks_per_second
        self.events, self.context, self.users = events or {}, context or {}, users or {}
        self.weight, self.task = weight, task
        self.lengths = np.minimum(self.ends - np.asarray(starts), max_length)
        self.seed, self.epoch, self.has_targets = seed, 0, has_targets
        self.crop_rate, self.reorder_rate = crop_rate, reorder_rate
        self.num_positions = int(self.lengths.sum())
        """Real positions in an epoch: the work that counts."""
        self._members = np.flatnonzero(self.lengths)  # an empty history takes no place
        self.length = int(min(max_length, -(-self.lengths.max(initial=1) // 8) * 8))
        """Positions of a row: what the longest history needs, a multiple of 8 or `max_length`."""
        lengths = self.lengths[self._members]
        if is_packed:
            row, end, length = pack(lengths, self.length)
        else:
            row, end, length = np.arange(len(lengths)), np.full(len(lengths), self.length), lengths
        by_length = np.argsort(length, kind="stable")
        self._row, self._end = row[by_length], end[by_length]  # the places, shortest first
        self._num_rows = int(row.max(initial=-1)) + 1
        self.rows = max(1, min(batch_positions // self.length, self._num_rows))
        """Rows of a batch."""

    @classmethod
    def for_training(
        cls,
        split: Split,
        *,
        max_length: int,
        batch_positions: int,
        seed: int,
        windows: bool = False,
        has_times: bool = False,
        has_features: bool = False,
        weights: Sequence[str] = (),
        task: str | None = None,
        crop_rate: float = 0.0,
        reorder_rate: float = 0.0,
        is_packed: bool = True,
    ) -> PackedBatches:
        """Every position of the training part is an example: it predicts the next item of its user.

        A user with more than `max_length` of them gives the newest; with `windows`, as many rows as hold them all.
        `has_times` and `has_features` add the times, and the columns of events and users, that the data has. Batches have weights
        where the split has `targets`, whose other events weigh 0, or `weights` are given; see `event_weights`. `task` names a
        column of events to predict.
        `crop_rate` and `reorder_rate` are two of the augmentations of CL4SRec (Xie et al. 2022), here of histories to learn
        from, without a contrastive loss; the third, hidden items, is `mask_rate` of the tower.
        """
        starts, ends = split.data.offsets[:-1], split.train_ends - 1
        number = np.maximum(ends - starts, 0)
        number = -(-number // max_length) if windows else np.minimum(number, 1)
        user = np.repeat(np.arange(len(number)), number)
        back = np.arange(len(user)) - np.repeat(np.cumsum(number) - number, number)  # windows from the newest
        starts, ends, weight = starts[user], ends[user] - max_length * back, split.weights(weights)
        if weight is not None:  # nothing is learned from a window without a target
            before = np.insert(np.cumsum(weight > 0, dtype=np.int32), 0, 0)
            counts = before[ends + 1] > before[np.maximum(starts, ends - max_length) + 1]
            starts, ends, user = starts[counts], ends[counts], user[counts]
        return cls(
            split.data.item_index,
            starts,
            ends,
            **(split.data.model_inputs(user) if has_features else {}),
            weight=weight,
            task=None if task is None else split.data.event_columns[task],
            max_length=max_length,
            batch_positions=batch_positions,
            seed=seed,
            timestamp=split.data.timestamp if has_times else None,
            ticks_per_second=split.data.ticks_per_second,
            crop_rate=crop_rate,
            reorder_rate=reorder_rate,
            is_packed=is_packed,
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self._num_rows // self.rows)

    def __iter__(self) -> Iterator[tuple]:
        for _, _, *batch in self.with_members():
            yield tuple(batch)

    def with_members(self) -> Iterator[tuple]:
        """An epoch of `(members, newest, inputs, target)`, with `weight` also `sample_weight`.

        `members` are the histories in the batch; `newest`, where their newest items stand in `history.reshape(-1)`.
        """
        rng = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        members, row = self._members, np.arange(self._num_rows)
        if rng is not None:  # histories of one length swap places, rows swap batches
            members, row = rng.permutation(members), rng.permutation(row)
        members = members[np.argsort(self.lengths[members], kind="stable")]
        row = row[self._row]
        order = np.argsort(row, kind="stable")
        members, row, end = members[order], row[order], self._end[order]
        for first in range(0, self._num_rows, self.rows):
            here = slice(*np.searchsorted(row, (first, first + self.rows)))
            newest = (row[here] - first) * self.length + end[here] - 1
            yield members[here], newest, *self._batch(members[here], newest, end[here], rng)

    def _batch(
        self, members: np.ndarray, newest: np.ndarray, end: np.ndarray, rng: np.random.Generator | None
    ) -> tuple:
        """The inputs, the target and perhaps the weights of a batch that holds `members` at `newest`."""
        lengths = self.lengths[members]
        back = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())  # steps from the newest
        place, event = np.repeat(newest, lengths) - back, np.repeat(self.ends[members] - 1, lengths) - back
        end, item, target = np.repeat(end, lengths), event, event + self.has_targets
        if rng is not None and self.crop_rate:
            cut = np.where(rng.random(len(members)) < self.crop_rate, rng.integers(1, lengths + 1), lengths)
            newer = np.repeat(cut, lengths)  # how many items stand after the cut
            end = np.where(back < newer, end, end - newer)
        if rng is not None and self.reorder_rate:
            swaps = rng.random(len(event)) < self.reorder_rate  # with the next
            swaps[1:] &= ~swaps[:-1]
            is_first = back == np.repeat(lengths - 1, lengths)
            item = event + swaps - (np.roll(swaps, 1) & ~is_first)
            target = event + np.where(swaps, 0, 1 + (np.roll(swaps, -1) & (back > 0)))

        def spread(values, dtype=np.int32):
            flat = np.zeros(self.rows * self.length, dtype)
            flat[place] = values
            return flat.reshape(self.rows, self.length)

        history = spread(self.item_index[item])
        inputs: dict[str, Any] = {"history": history, "is_real": spread(True, bool)}
        if self.is_packed:
            inputs["end"] = spread(end)
        if self.timestamp is not None:
            inputs["timestamps"] = spread(self.timestamp[event] // self.ticks_per_second, np.int64)
            inputs["request_times"] = spread(self.timestamp[event + 1] // self.ticks_per_second, np.int64)
        if self.events:
            inputs["events"] = {name: spread(values[item], values.dtype) for name, values in self.events.items()}
        if self.context or self.users:
            of_event = {name: spread(values[event + 1], values.dtype) for name, values in self.context.items()}
            user = np.repeat(members, lengths)
            of_user = {name: spread(values[user], values.dtype) for name, values in self.users.items()}
            inputs["context"] = of_event | of_user
        if self.task is not None:
            inputs["task"] = spread(self.task[target], self.task.dtype)
        batch = inputs, spread(self.item_index[target])
        return batch if self.weight is None else (*batch, spread(self.weight[target], np.float32))

    def dataset(self) -> tf.data.Dataset:
        """The batches as a `tf.data.Dataset` that prepares the next ones while the model works."""
        import tensorflow as tf

        shape = (self.rows, self.length)
        ints, times = tf.TensorSpec(shape, tf.int32), tf.TensorSpec(shape, tf.int64)
        inputs = {"history": ints, "is_real": tf.TensorSpec(shape, tf.bool)}
        inputs |= {"end": ints} if self.is_packed else {}
        inputs |= {} if self.timestamp is None else {"timestamps": times, "request_times": times}
        for use, columns in (("events", self.events), ("context", {**self.context, **self.users})):
            if columns:
                inputs[use] = {name: tf.TensorSpec(shape, values.dtype) for name, values in columns.items()}
        if self.task is not None:
            inputs["task"] = tf.TensorSpec(shape, self.task.dtype)
        signature = (inputs, ints, *([] if self.weight is None else [tf.TensorSpec(shape, tf.float32)]))
        dataset = tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)
