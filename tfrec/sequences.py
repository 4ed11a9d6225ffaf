"""From histories to what the tower reads: truncation, order, padding, and batches of few shapes.

A prepared history holds the newest `max_length` known items, oldest first, padding on the left. `prepare_history` does
this for a tensor (in the served model and at the edge, where ids can be unknown or missing anywhere in the row),
`pad_histories` for slices of the memory-mapped log (in training and evaluation, where every item is known). A test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

from tfrec.splits import LeaveLastOut
from tfrec.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX

if TYPE_CHECKING:
    import tensorflow as tf


def prepare_history(item_index, max_length: int):
    """Keep the newest `max_length` known items of each row, oldest first, padding on the left.

    Padding and unknown ids are dropped as if they were not there, wherever they stand.

    >>> history, is_real = prepare_history(np.array([[7, 0, 1, 8, 9, 0]], "int32"), max_length=4)
    >>> np.array(history), np.array(is_real)
    (array([[0, 7, 8, 9]], dtype=int32), array([[False,  True,  True,  True]]))

    Args:
        item_index: int32 tensor, shape `(batch, length)`, oldest first.
        max_length: int > 0.
    Returns:
        `(history, is_real)`: int32 and bool tensors, shape `(batch, min(length, max_length))`.
    """
    length = ops.shape(item_index)[1]
    is_known = item_index >= FIRST_ITEM_INDEX
    column = ops.cast(ops.expand_dims(ops.arange(1, length + 1), 0), "int32")
    newest_first, _ = ops.top_k(ops.where(is_known, column, 0), k=ops.minimum(length, max_length))
    kept = ops.flip(newest_first, axis=1)
    is_real = kept > 0
    history = ops.take_along_axis(item_index, ops.maximum(kept - 1, 0), axis=1)
    return ops.where(is_real, history, PAD_INDEX), is_real


def pad_histories(item_index: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int, rows: int):
    """Gather events `starts[i] : ends[i]` into row `i`, the newest `length` of them, padding on the left.

    >>> pad_histories(np.array([7, 8, 9, 5], "int32"), np.array([0, 3]), np.array([3, 4]), length=2, rows=3)
    (array([[8, 9],
           [0, 5],
           [0, 0]], dtype=int32), array([[ True,  True],
           [False,  True],
           [False, False]]))

    Returns:
        `(history, is_real)`: int32 and bool arrays, shape `(rows, length)`; rows beyond the given ones are all padding.
    """
    history = np.full((rows, length), PAD_INDEX, np.int32)
    is_real = np.zeros((rows, length), bool)
    columns = ends[:, None] - np.arange(length, 0, -1)
    is_real[: len(starts)] = columns >= starts[:, None]
    history[is_real] = item_index[columns[is_real[: len(starts)]]]
    return history, is_real


def bucket_lengths(lengths: np.ndarray, max_length: int, num_buckets: int = 5) -> list[int]:
    """The row lengths that pad the given histories least: any up to 32, multiples of 8 beyond, `max_length` at most.

    XLA compiles a step once for each shape, so they are few. Chosen exactly, by dynamic programming over the histogram.

    >>> bucket_lengths(np.array([3] * 90 + [30] * 10 + [45]), max_length=50, num_buckets=3)
    [3, 30, 48]
    """
    lengths = np.minimum(lengths, max_length)
    edges = np.unique(np.minimum([*range(1, 33), *range(40, max_length + 8, 8)], max_length))
    edges = edges[: np.searchsorted(edges, lengths.max(initial=1)) + 1]
    count = np.searchsorted(np.sort(lengths), edges, side="right")  # histories no longer than each edge
    cost = (count * edges).astype(float)  # of one bucket that ends at each edge
    choice: list[np.ndarray] = []
    for _ in range(min(num_buckets, len(edges)) - 1):
        # best cost with one more bucket: the last one spans edges (j, i]
        table = cost[None, :] + (count[:, None] - count[None, :]) * edges[:, None]
        table[np.triu_indices(len(edges))] = np.inf
        table[np.arange(len(edges)), np.arange(len(edges))] = cost
        choice.append(table.argmin(axis=1))
        cost = table.min(axis=1)
    i = len(edges) - 1
    chosen = {int(edges[i])}
    for previous in reversed(choice):
        i = int(previous[i])
        chosen.add(int(edges[i]))
    return sorted(chosen)


class BucketedBatches:
    """Batches of histories of similar length, for `model.fit` and for evaluation.

    Each batch has one of a few static shapes `(rows, length)` with about `batch_positions` positions; the last batch of
    a bucket is filled up with padding rows. A batch is `(inputs, target)`:

        inputs["history"]  int32 (rows, length), oldest first, padding on the left
        inputs["is_real"]  bool  (rows, length), True = real item
        target             int32 (rows, length), the item that followed each position; without targets, the history

    Each iteration is an epoch, its order drawn from `(seed, epoch)` alone, so that a resumed run sees the same batches.

    Args:
        item_index: int32 `(events,)`, memory-mapped or not.
        starts, ends: int64 `(rows,)`: row `i` reads events `starts[i] : ends[i]`.
        max_length: int > 0: longer histories keep their newest items.
        batch_positions: int > 0: positions (real or padding) in a batch.
        seed: int, or None to keep the given order within each bucket.
        has_targets: whether the targets, the events one later, are wanted; then the event at `ends[i]` must exist.
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
    ) -> None:
        self.item_index, self.starts, self.ends = item_index, np.asarray(starts), np.asarray(ends)
        self.seed, self.epoch, self.has_targets = seed, 0, has_targets
        lengths = np.minimum(self.ends - self.starts, max_length)
        self.num_positions = int(lengths.sum())
        """Real positions in an epoch: the work that counts."""
        self.lengths = bucket_lengths(lengths, max_length) if len(lengths) else []
        bucket = np.searchsorted(self.lengths, lengths)
        self.buckets = [
            (length, max(1, batch_positions // length), np.flatnonzero(bucket == b))
            for b, length in enumerate(self.lengths)
        ]
        """`(length, rows of a batch, members)` of each bucket."""

    @classmethod
    def for_training(cls, split: LeaveLastOut, *, max_length: int, batch_positions: int, seed: int) -> BucketedBatches:
        """Every position of the training part is an example: it predicts the next item of its user."""
        starts, ends = split.data.offsets[:-1], split.train_ends - 1
        has_target = ends > starts
        return cls(
            split.data.item_index,
            starts[has_target],
            ends[has_target],
            max_length=max_length,
            batch_positions=batch_positions,
            seed=seed,
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(members) // rows) for _, rows, members in self.buckets)

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for _, inputs, target in self.with_members():
            yield inputs, target

    def with_members(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
        """An epoch of `(members, inputs, target)`; `members` says which of the given rows the batch's first rows are."""
        rng = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        batches = []
        for length, rows, members in self.buckets:
            if rng is not None:
                members = rng.permutation(members)
            batches += [(length, rows, members[i : i + rows]) for i in range(0, len(members), rows)]
        if rng is not None:
            rng.shuffle(batches)
        for length, rows, members in batches:
            starts, ends = self.starts[members], self.ends[members]
            history, is_real = pad_histories(self.item_index, starts, ends, length, rows)
            target = history
            if self.has_targets:  # the same gather, one event later
                starts = np.maximum(starts, ends - length)
                target, _ = pad_histories(self.item_index, starts + 1, ends + 1, length, rows)
            yield members, {"history": history, "is_real": is_real}, target

    def dataset(self) -> tf.data.Dataset:
        """The batches as a `tf.data.Dataset` that prepares the next ones while the model works."""
        import tensorflow as tf

        ints = tf.TensorSpec((None, None), tf.int32)
        signature = ({"history": ints, "is_real": tf.TensorSpec((None, None), tf.bool)}, ints)
        dataset = tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)
