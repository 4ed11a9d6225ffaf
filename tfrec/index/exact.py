"""The exact index, and the part that all indexes share: exclusions, filters, and `k` results while the catalogue has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

SPARE = 1000
"""Further candidates beside those asked for, where a filter may take some out, and at most for what a request excludes."""
# rows are gathered from `variable.value()`: gathering from a variable itself makes TensorFlow copy it whole whenever it is read
STORAGES = ("float32", "bfloat16")

Allows = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""`allows(items, rows)`: which items, int32 `(R, C)`, the requests of the batch numbered `rows`, `(R,)`, let through."""


def num_distinct(excluded):
    """How many different items each row of `excluded`, int32 `(B, X)`, holds; below 0: no item. Int32 `(B,)`."""
    ordered = tf.sort(excluded, axis=1)
    before = tf.concat([tf.fill((tf.shape(ordered)[0], 1), -1), ordered[:, :-1]], axis=1)
    return tf.reduce_sum(tf.cast(tf.logical_and(ordered >= 0, ordered != before), tf.int32), axis=1)


def is_in(items, excluded, for_edge: bool = False):
    """Whether each of `items`, int32 `(B, C)`, is in its row of `excluded`, int32 `(B, X)`: bool `(B, C)`.

    A sorted row is searched in O(log X) for each item, without a `(C, X)` table. LiteRT has no such search: there the table.
    """
    if for_edge:
        return tf.reduce_any(tf.equal(tf.expand_dims(items, 2), tf.expand_dims(excluded, 1)), axis=2)
    excluded = tf.concat([tf.sort(excluded, axis=1), tf.fill((tf.shape(excluded)[0], 1), tf.int32.max)], axis=1)
    return tf.equal(tf.gather(excluded, tf.searchsorted(excluded, items), batch_dims=1), items)


def keep_best(scores, items, k, excluded, allows: Allows | None, rows, for_edge: bool = False):
    """The `k` best of some candidates: those that are neither excluded nor filtered out.

    Args:
        scores, items: float32 and int32, shape `(B, C)`.
        k: int or int32 scalar; at most C.
        excluded: int32 `(B, X)`, or None.
        allows: the filter, or None.
        rows: int32 `(B,)`, the numbers of the requests in the batch, for the filter.
        for_edge: bool, use only ops that LiteRT has built in. Default: False.
    Returns:
        `(scores, items)`, shape `(B, k)`, best first; -inf where no item is left.
    """
    if excluded is not None:
        scores = tf.where(is_in(items, excluded, for_edge), -np.inf, scores)
    if allows is not None:
        scores = tf.where(allows(items, rows), scores, -np.inf)
    scores, kept = tf.math.top_k(scores, k)
    return scores, tf.gather(items, kept, batch_dims=1)


class ExactIndex(tf.Module):
    """Ranks every item by its dot product with the query: one matrix product and a top-k, in stock ops.

    Args:
        vectors: float32 `(num_items, width)`; a tensor is kept as it is, an array is copied.
        storage: `"float32"`; or `"bfloat16"`: half the memory, and scores of the rounded vectors.
    """

    kind = "exact"
    is_exact = True
    custom_ops: tuple[str, ...] = ()

    def __init__(self, vectors: np.ndarray | tf.Tensor, storage: str = "float32") -> None:
        super().__init__(name=f"{self.kind}_index")
        if storage not in STORAGES:
            raise ValueError(
                f"`storage` of an {self.kind} index is one of {', '.join(STORAGES)}. Received: {storage!r}."
            )
        self.vectors = tf.Variable(tf.cast(vectors, storage), trainable=False, name="vectors")
        self.storage = storage

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the build, for the manifest."""
        return {"storage": self.storage}

    @property
    def num_items(self) -> int:
        return self.vectors.shape[0]

    def handles(self) -> list[tf.Tensor]:
        """Resources beside the variables, which only `DestroyResourceOp` frees."""
        return []

    def vectors_of(self, items: tf.Tensor) -> tf.Tensor:
        """The vectors of items: float32 `(*items.shape, width)`."""
        return tf.cast(tf.gather(self.vectors.value(), items), tf.float32)

    def score_all(self, queries: tf.Tensor) -> tf.Tensor:
        """The dot products of each query with every item: float32 `(batch, num_items)`."""
        vectors = tf.cast(self.vectors, tf.float32)  # bfloat16 products are slow on a CPU
        return tf.linalg.matmul(queries, vectors, transpose_b=True)

    def candidates(self, queries: tf.Tensor, number: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """About the `number` best items: `(scores, items)`, float32 and int32 `(batch, number)`, best first.

        Where an approximate index finds fewer, the score is -inf.
        """
        return tf.math.top_k(self.score_all(queries), number)

    def query(
        self,
        queries: tf.Tensor,
        k: tf.Tensor | int,
        excluded: tf.Tensor | None = None,
        allows: Allows | None = None,
        for_edge: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The `k` best items that are neither excluded nor filtered out.

        Scores are exact. A row for which too few candidates are left is answered by an exact pass over the items that are
        allowed to it: `k` results come back while the catalogue has them.

        Args:
            queries: float32 `(batch, width)`.
            k: int or int32 scalar.
            excluded: None, or int32 `(batch, X)`: items that are not to come back; below 0: no item.
            allows: None, or the filter.
            for_edge: bool, use only ops that LiteRT has built in, for one query; the number of candidates covers all
                exclusions, so no exact pass follows. Default: False.
        Returns:
            `(scores, items)`: float32 and int32, `(batch, min(k, num_items))`, best first; -inf where no item is left.
        """
        if for_edge:
            assert isinstance(k, int)
            k = min(k, self.num_items)
            number: Any = min(k + (0 if excluded is None else excluded.shape[1]), self.num_items)
            scores, items = self.candidates(queries, number)
            return keep_best(scores, items, k, excluded, allows, tf.range(1), for_edge)
        k = tf.minimum(k, self.num_items)
        number = tf.minimum(k if allows is None else k + SPARE, self.num_items)
        scores, items = self._left(queries, number, excluded)
        if allows is not None:
            scores, items = keep_best(scores, items, k, None, allows, tf.range(tf.shape(items)[0]))
        if self.is_exact and allows is None:
            return scores, items
        # all items were seen where an exact index had room for them
        is_open = True if not self.is_exact else number < self.num_items
        short = tf.where(tf.logical_and(tf.reduce_any(tf.math.is_inf(scores), axis=1), is_open))

        def complete():
            rank = lambda row: self._rank_allowed(queries, k, row, excluded, allows)  # noqa: E731
            better = tf.map_fn(rank, tf.cast(short[:, 0], tf.int32), fn_output_signature=(tf.float32, tf.int32))
            return (
                tf.tensor_scatter_nd_update(scores, short, better[0]),
                tf.tensor_scatter_nd_update(items, short, better[1]),
            )

        return tf.cond(tf.size(short) > 0, complete, lambda: (scores, items))

    def _left(self, queries, number, excluded):
        """The `number` best items that are not excluded; fewer, with -inf, where an approximate index found fewer."""
        if excluded is None:
            return self.candidates(queries, number)
        if (
            not self.is_exact
        ):  # a row that excludes more is completed by an exact pass, and its neighbours do not pay for it
            more = tf.minimum(tf.reduce_max(tf.concat([num_distinct(excluded), [0]], 0)), SPARE)
            scores, items = self.candidates(queries, tf.minimum(number + more, self.num_items))
            return keep_best(scores, items, number, excluded, None, None)
        place = tf.where(excluded >= 0)  # rows and columns of `excluded`
        cells = tf.stack([tf.cast(place[:, 0], tf.int32), tf.gather_nd(excluded, place)], axis=1)
        scores = tf.tensor_scatter_nd_update(self.score_all(queries), cells, tf.fill((tf.shape(cells)[0],), -np.inf))
        return tf.math.top_k(scores, number)

    def _rank_allowed(self, queries, k, row, excluded, allows):
        """The `k` best of the items that are allowed to one row, by an exact pass over these alone."""
        items = tf.expand_dims(tf.range(self.num_items), 0)
        is_allowed = tf.ones_like(items, tf.bool) if allows is None else allows(items, tf.expand_dims(row, 0))
        if excluded is not None:
            is_allowed = tf.logical_and(is_allowed, ~is_in(items, tf.expand_dims(excluded[row], 0)))
        items = tf.boolean_mask(items, is_allowed)
        scores = tf.linalg.matvec(self.vectors_of(items), queries[row])
        missing = tf.maximum(k - tf.size(items), 0)
        scores, kept = tf.math.top_k(tf.pad(scores, [[0, missing]], constant_values=-np.inf), k)
        return scores, tf.gather(tf.pad(items, [[0, missing]]), kept)
