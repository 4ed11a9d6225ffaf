"""Ranking metrics for `TwoTower.compile(metrics=...)`: the whole catalogue is ranked at every position."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from tfrec.data.splits import keeps_seen
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.losses import LEFT_OUT, histories

LOGITS_BYTES = 16 << 20
"""About the size of the logits of the positions that are ranked at a time."""
LARGEST_BLOCK = 1024
"""Positions that are ranked at a time in a small catalogue."""


def target_ranks(query, target, inputs, item_tower, repeats="exclude"):
    """Rank the target of each position among the whole catalogue.

    The items of the position's own history, at it or before, are left out. A target that stands there is left out with them. With
    `repeats="allow"` nothing is left out.

    Args:
        query, target, inputs, item_tower: see `TwoTower.compile`.
        repeats: str, `"exclude"` or `"allow"`. Default: `"exclude"`.
    Returns:
        `(num_above, num_tied)`: int32 tensors, shape `(batch, length)`: the items with a higher score than the target, and those
        with its score, itself included; `num_tied` is 0 for a target that is left out.
    """
    rows, length = ops.shape(target)
    is_kept = keeps_seen(repeats)
    items = item_tower.catalogue()  # N D
    num_items, num_positions = item_tower.num_items, rows * length
    size = max(1, min(LOGITS_BYTES // (4 * num_items), LARGEST_BLOCK))
    num_blocks = (num_positions + size - 1) // size
    padding = num_blocks * size - num_positions
    flat = lambda x: ops.reshape(ops.cast(x, "int32"), (-1,))  # noqa: E731
    queries = ops.reshape(ops.cast(query, "float32"), (num_positions, item_tower.width))
    queries = ops.pad(queries, [[0, padding], [0, 0]])
    labels = ops.pad(ops.maximum(flat(target) - FIRST_ITEM_INDEX, 0), [[0, padding]])
    reach = length - 1  # how far back a history goes in its row
    read, history = (
        ops.pad(x, [[reach, padding]], constant_values=-1)
        for x in (flat(inputs["history"]) - FIRST_ITEM_INDEX, flat(histories(inputs)))
    )
    is_before = ops.expand_dims(ops.arange(reach + size), 1) <= reach + ops.arange(size)  # E R

    def above_and_tied(scores, label):
        own = ops.take_along_axis(scores, ops.expand_dims(label, 0), axis=0)
        return tuple(ops.sum(ops.cast(is_one, "int32"), axis=0) for is_one in (scores > own, scores == own))

    def rank(block):
        first = block * size
        label = ops.slice(labels, (first,), (size,))
        scores = ops.matmul(items, ops.transpose(ops.slice(queries, (first, 0), (size, item_tower.width))))  # N R
        if is_kept:
            return above_and_tied(scores, label)
        item, of = (ops.slice(x, (first,), (reach + size,)) for x in (read, history))
        is_seen = is_before & (ops.expand_dims(of, 1) == of[reach:]) & ops.expand_dims(item >= 0, 1)  # E R
        is_repeat = ops.any(is_seen & (ops.expand_dims(item, 1) == label), axis=0)  # R
        left_out = ops.where(is_seen, LEFT_OUT, 0.0)
        scores = ops.scatter_update(scores, ops.expand_dims(ops.maximum(item, 0), 1), left_out, reduction="add")
        num_above, num_tied = above_and_tied(scores, label)
        return num_above, ops.where(is_repeat, 0, num_tied)

    ranks = ops.map(rank, ops.arange(num_blocks, dtype="int32"))
    return tuple(ops.reshape(ops.reshape(x, (-1,))[:num_positions], (rows, length)) for x in ranks)


class RankingMetric(keras.metrics.Mean):
    """The base of the metrics: the mean gain of a rank over positions, weighted by `sample_weight`.

    Ties: a target gets the mean gain over its possible ranks. Denominator: all real positions. Seen items: the items of the
    position's history are left out of the ranking; a target among them is a miss, with gain 0. With `repeats="allow"` they are
    ranked like others. `tfrec.evaluate` ranks one held-out target a user instead; its rules are the same.

    Args:
        repeats: str, `"exclude"` or `"allow"`. Default: `"exclude"`.
    """

    def __init__(self, *args, repeats: str = "exclude", **kwargs):
        super().__init__(*args, **kwargs)
        keeps_seen(repeats)  # refuse another value here
        self.repeats = repeats

    def get_config(self):
        return super().get_config() | {"repeats": self.repeats}

    def gain(self, rank):
        """The gain of ranks from 1: float array of the same shape."""
        raise NotImplementedError

    def update_state(self, num_above, num_tied, num_items, sample_weight=None):
        """Add targets.

        Args:
            num_above, num_tied: int tensors of one shape; see `target_ranks`.
            num_items: int, size of the catalogue.
            sample_weight: float tensor of that shape. Default: 1.
        """
        total = np.concatenate([[0.0], np.cumsum(self.gain(np.arange(1, num_items + 1)))]).astype("float32")
        total = ops.convert_to_tensor(total)
        earned = ops.take(total, num_above + num_tied, axis=0) - ops.take(total, num_above, axis=0)
        earned = earned / ops.cast(ops.maximum(num_tied, 1), "float32")
        return super().update_state(earned, sample_weight=sample_weight)


@keras.saving.register_keras_serializable("tfrec")
class HitRate(RankingMetric):
    """The share of targets among the first `k`; 1 up to rank k, else 0. See `RankingMetric` for ties and seen items.

    >>> metric = HitRate(2)
    >>> metric.update_state(np.array([0, 1, 2]), np.array([1, 2, 1]), num_items=5)  # ranks 1, 2 or 3, and 3
    >>> float(metric.result())
    0.5

    Args:
        k: int > 0. Default: 10.
    """

    def __init__(self, k: int = 10, name: str | None = None, **kwargs):
        super().__init__(name=name or f"hr@{k}", **kwargs)
        self.k = k

    def gain(self, rank):
        return (rank <= self.k).astype(float)

    def get_config(self):
        return super().get_config() | {"k": self.k}


@keras.saving.register_keras_serializable("tfrec")
class NDCG(HitRate):
    """Normalised discounted cumulative gain of one target: `1 / log2(rank + 1)` up to rank k. See `RankingMetric`.

    Source: Jarvelin & Kekalainen 2002. Differs from the source: one relevant item, so the ideal gain is 1.

    >>> metric = NDCG(2)
    >>> metric.update_state(np.array([0, 1]), np.array([1, 1]), num_items=5)
    >>> round(float(metric.result()), 4)
    0.8155

    Args:
        k: int > 0. Default: 10.
    """

    def __init__(self, k: int = 10, name: str | None = None, **kwargs):
        super().__init__(k, name=name or f"ndcg@{k}", **kwargs)

    def gain(self, rank):
        return np.where(rank <= self.k, 1 / np.log2(rank + 1), 0)


@keras.saving.register_keras_serializable("tfrec")
class MRR(RankingMetric):
    """Mean reciprocal rank of the target: `1 / rank`. See `RankingMetric` for ties and seen items.

    >>> metric = MRR()
    >>> metric.update_state(np.array([0, 1]), np.array([1, 1]), num_items=5)
    >>> float(metric.result())
    0.75
    """

    def __init__(self, name: str = "mrr", **kwargs):
        super().__init__(name=name, **kwargs)

    def gain(self, rank):
        return 1 / rank
