"""The rules of an answer, on item indexes: for the SavedModel, for LiteRT and for Python alike.

Padding and unknown items are dropped before attention. The items of `exclude` are not recommended, nor those of the history unless
repeats are allowed. A history without a known item gets the popular items, scored by their share of the events. An answer has `k`
items while the catalogue has them; the rest of its row is `PAD_INDEX` with the score -inf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.batches import prepare_inputs
from tfrec.data.features import Feature
from tfrec.data.splits import keeps_seen
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX
from tfrec.index.exact import Allows, ExactIndex, keep_best, num_distinct
from tfrec.index.filters import ItemFilter, wanted_of
from tfrec.index.inputs import request_inputs
from tfrec.models.item_tower import ItemTower
from tfrec.models.two_tower import TwoTower

BLOCK = 1 << 16
"""Items whose norms are computed at a time."""
SCORES_BYTES = 64 << 20
"""About the size of the scores of the histories that `recommend` answers at a time."""


class Answers(tf.Module):
    """Answers requests: a model, an index over its catalogue, and the rules.

    >>> from tfrec.models.sequence_tower import SequenceTower
    >>> model = TwoTower(ItemTower(3, 4), SequenceTower(5, num_heads=1))
    >>> model.build()
    >>> items, scores = Answers(model, item_counts=[5, 1, 3]).recommend([np.array([], np.int32)], k=2)
    >>> items  # nothing is known: the popular items
    array([[2, 4]], dtype=int32)

    Args:
        model: `TwoTower`.
        item_counts: ints, shape `(num_items,)`, how often each item occurs.
        index: index over `model.item_tower.catalogue()`. Default: an exact one.
        item_filter: `ItemFilter` that `allow` and `deny` are read by. Default: none.
        for_edge: bool, use only ops that LiteRT has built in. Default: False.
        repeats: str, whether the items of a history may be recommended, `"exclude"` or `"allow"`. Default: `"exclude"`.
        features: lists of `Feature` by whose they are, as `Run.features`, of a model that reads some. Default: none.
    """

    def __init__(
        self,
        model: TwoTower,
        item_counts: Sequence[int],
        index: ExactIndex | None = None,
        item_filter: ItemFilter | None = None,
        for_edge: bool = False,
        repeats: str = "exclude",
        features: Mapping[str, Sequence[Feature]] | None = None,
    ) -> None:
        super().__init__(name="answers")
        self.inputs = request_inputs(model.sequence_tower, features or {})
        keeps_seen(repeats)  # refuse another value here
        self.repeats = repeats
        tower = model.item_tower
        self.index = ExactIndex(tower.catalogue()) if index is None else index
        self.filter = item_filter
        self._for_edge = for_edge
        # Candidates that are rows of the item table, L2-normalised or not, also serve as what histories read: a large table is
        # then stored once, with the norms beside it.
        self._is_shared = (
            isinstance(tower, ItemTower) and not tower.mlp_dims and self.index.storage != "bfloat16" and not for_edge
        )
        owned = model.sequence_tower.variables if self._is_shared else model.variables
        owned = [*owned, *model.task_head.variables] if self._is_shared and model.task_head else owned
        blocks = np.array_split(np.arange(self.index.num_items, dtype=np.int32), -(-self.index.num_items // BLOCK))
        self._norm: tf.Variable | None = None
        if self._is_shared and tower.normalize:
            norm = np.concatenate([tf.norm(tower(block + FIRST_ITEM_INDEX), axis=1).numpy() for block in blocks])
            self._norm = tf.Variable(norm, trainable=False, name="norm")
        self._variables = [v.value for v in owned]  # a tf.Module does not track variables of Keras 3 by itself
        self.model = lambda: model  # behind a function, or it would be tracked, and every variable stored twice
        counts = np.asarray(item_counts, np.float64)
        popular = np.argsort(-counts, kind="stable")
        share = (counts / max(counts.sum(), 1)).astype(np.float32)
        self._share = tf.Variable(share, trainable=False, name="share")
        self._popular = tf.Variable(popular.astype(np.int32), trainable=False, name="popular")
        norm = np.concatenate([tf.norm(self.index.vectors_of(block), axis=1).numpy() for block in blocks])
        self._inverse_norm = tf.Variable(1 / np.maximum(norm, 1e-12), trainable=False, name="inverse_norm")
        # traced once, though a served model embeds histories in most of its signatures
        self._embed = (
            self._embed_once if for_edge else tf.function(self._embed_once, reduce_retracing=True, autograph=False)
        )
        self._eager = tf.function(self.rank, reduce_retracing=True)
        self._eager_score = tf.function(self.score, reduce_retracing=True)

    def query(self, history, others=()):
        """Embed histories.

        Args:
            history: int32 tensor, shape `(batch, length)`, item indexes, oldest first.
            others: tensors, the further inputs in the order of `inputs`: of events `(batch, length)`, of requests `(batch,)`.
                Features are encoded. Times are int64, see `to_seconds`; at the edge: seconds.
        Returns:
            `(query, is_cold)`: float32 `(batch, width)`; bool `(batch,)`, True for a history without a known item.
        """
        return self._embed(history, list(others))

    def _embed_once(self, history, others):
        inputs, vectors = self.read(history, others)
        return self.model().embed_history(inputs, vectors, is_aligned=True), ~tf.reduce_any(inputs["is_real"], axis=1)

    def read(self, history, others):
        """The inputs of the model, and the item vectors of the histories where the index has them."""
        given: dict[str, Any] = {"events": {}, "event_context": {}, "request_context": {}}
        for put, values in zip(self.inputs, self.checked(history, others), strict=True):
            if put.feature is not None:
                for use in put.uses:
                    given[use][put.feature.name] = values
            else:  # LiteRT does not divide int64
                given[put.name] = values if self._for_edge else to_seconds(values)
        inputs = prepare_inputs(history, self.model().sequence_tower.max_length, **given)
        vectors, item = None, tf.maximum(inputs["history"] - FIRST_ITEM_INDEX, 0)
        if self._is_shared:
            vectors = self.index.vectors_of(item)
        if self._norm is not None:
            vectors *= tf.expand_dims(tf.gather(self._norm.value(), item), -1)
        return inputs, vectors

    def checked(self, history, others) -> list:
        """The further inputs; an error for one of another shape, or the values of other items would be read."""
        checked = []
        for put, values in zip(self.inputs, others, strict=True):
            if not (put.is_of_request or self._for_edge):
                message = f"`{put.name}` must have the shape of `history`."
                check = tf.debugging.assert_equal(tf.shape(values), tf.shape(history), message)
                with tf.control_dependencies([] if check is None else [check]):
                    values = tf.identity(values)
            checked.append(values)
        return checked

    def rank(self, history, others, exclude, k, width, allow=None, deny=None, repeats=None):
        """Recommend items.

        Args:
            history, others: as for `query`.
            exclude: int32 tensor, shape `(batch, E)`, item indexes; None: none.
            k: int32 tensor, shape `(batch,)`, items of each row.
            width: int or int32 scalar, the largest `k`.
            allow, deny: string tensors, shape `(batch, A)`; see `ItemFilter`. Default: no filter.
            repeats: str, `"exclude"` or `"allow"`. Default: that of the `Answers`.
        Returns:
            `(items, scores)`: int32 item indexes and float32, shape `(batch, min(width, num_items))`, best first.
        """
        allows: Allows | None = None
        if allow is not None:
            item_filter: Any = self.filter
            allows = lambda items, rows: item_filter.allows(items, tf.gather(allow, rows), tf.gather(deny, rows))  # noqa: E731
        query, is_cold = self.query(history, others)
        width = min(width, self.index.num_items) if self._for_edge else tf.minimum(width, self.index.num_items)
        left_out = [] if keeps_seen(self.repeats if repeats is None else repeats) else [history]
        left_out += [] if exclude is None else [exclude]
        excluded = tf.concat(left_out, axis=1) - FIRST_ITEM_INDEX if left_out else None  # below 0: not an item
        scores, items = self.index.query(query, width, excluded, allows, for_edge=self._for_edge)
        if self._for_edge:  # a branch costs more than the popular items of one row
            popular_scores, popular = self._rank_popular(width, excluded, tf.range(1), None)
            is_cold = tf.expand_dims(is_cold, 1)
            scores, items = tf.where(is_cold, popular_scores, scores), tf.where(is_cold, popular, items)
        else:
            cold = tf.where(is_cold)

            def with_popular():
                rows = tf.cast(cold[:, 0], tf.int32)
                own = None if excluded is None else tf.gather(excluded, rows)
                popular_scores, popular = self._rank_popular(width, own, rows, allows)
                put = tf.tensor_scatter_nd_update
                return put(scores, cold, popular_scores), put(items, cold, popular)

            is_needed = tf.logical_and(tf.size(cold) > 0, width > 0)
            scores, items = tf.cond(is_needed, with_popular, lambda: (scores, items))
        return self._pad(scores, items, k)

    def _rank_popular(self, width, excluded, rows, allows):
        """The most popular items of the requests numbered `rows`, whose exclusions are `excluded`."""
        number = self.index.num_items
        if self._for_edge:
            number = min(width + (0 if excluded is None else excluded.shape[1]), number)
        elif allows is None:
            more = 0 if excluded is None else tf.reduce_max(tf.concat([num_distinct(excluded), [0]], 0))
            number = tf.minimum(width + more, number)
        popular = tf.tile(tf.expand_dims(self._popular[:number], 0), (tf.size(rows), 1))
        share = tf.gather(self._share.value(), popular)
        return keep_best(share, popular, width, excluded, allows, rows, self._for_edge)

    def similar(self, item_index, k):
        """The items with the highest cosine to each of `item_index`, `(batch,)`; always exact. An unknown item has none."""
        item = item_index - FIRST_ITEM_INDEX  # B
        is_known = item >= 0
        own = tf.maximum(item, 0)
        vectors = self.index.vectors_of(own) * tf.expand_dims(tf.gather(self._inverse_norm.value(), own), 1)
        scores = self.index.score_all(vectors) * self._inverse_norm  # B N
        is_self = tf.equal(tf.range(self.index.num_items)[tf.newaxis], tf.expand_dims(own, 1))
        scores = tf.where(tf.logical_or(is_self, tf.expand_dims(~is_known, 1)), -np.inf, scores)
        width = tf.minimum(tf.reduce_max(tf.concat([k, [0]], 0)), self.index.num_items)
        scores, items = tf.math.top_k(scores, width)
        return self._pad(scores, items, k)

    def score(self, history, others, candidates):
        """Score candidates after histories.

        Args:
            history, others: as for `query`.
            candidates: int32 tensor, shape `(batch, C)`, item indexes.
        Returns:
            `(scores, predicted)`, shape `(batch, C)`. `scores`: float32, -inf for unknown items. `predicted`: what the second head
            predicts, float32 with NaN for unknown items, or int32 numbers of a category's values with 0 for unknown items; None
            for a model without a head. After a history without a known item the item alone decides it.
        """
        query, is_cold = self.query(history, others)
        item = candidates - FIRST_ITEM_INDEX  # B C
        own = tf.maximum(item, 0)
        vectors = self.index.vectors_of(own)  # B C D
        dots = tf.einsum("bd,bcd->bc", query, vectors)
        scores = tf.where(tf.expand_dims(is_cold, 1), tf.gather(self._share.value(), own), dots)
        head, predicted = self.model().task_head, None
        if head is not None:
            predicted = head.predict(tf.expand_dims(query, 1) + tf.zeros_like(vectors), vectors)
            predicted = tf.where(item >= 0, predicted, np.nan if head.kind == "number" else PAD_INDEX)
        return tf.where(item >= 0, scores, -np.inf), predicted

    def embed_items(self, item_index):
        """The vectors of items, float32 `(batch, width)`; zeros for unknown ones."""
        item = item_index - FIRST_ITEM_INDEX
        vectors = self.index.vectors_of(tf.maximum(item, 0))
        return tf.where(tf.expand_dims(item >= 0, 1), vectors, 0.0)

    def _pad(self, scores, items, k):
        """Item indexes and scores; beyond row `b`'s own `k[b]`, and where nothing is left, `PAD_INDEX` and -inf."""
        is_given = scores > -np.inf
        if not self._for_edge:  # there `k` is the width
            is_own = tf.expand_dims(tf.range(tf.shape(scores)[1]), 0) < tf.expand_dims(k, 1)
            is_given = tf.logical_and(is_own, is_given)
        return tf.where(is_given, items + FIRST_ITEM_INDEX, PAD_INDEX), tf.where(is_given, scores, -np.inf)

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        exclude: np.ndarray | Sequence[int] = (),
        repeats: str | None = None,
        timestamps: Sequence[np.ndarray] | None = None,
        request_times: Sequence[int] | np.ndarray | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        deny: Mapping[str, Sequence[str]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Recommend items in Python, a few histories at a time.

        Args:
            histories: int arrays of item indexes, oldest first.
            k: int.
            exclude: item indexes that are not recommended to any of them. Default: none.
            repeats: str, `"exclude"` or `"allow"`. Default: that of the `Answers`.
            timestamps: for a model that reads times, the second of each event, int arrays like `histories`. Default: unknown.
            request_times: for such a model, the second of each request. Default: unknown.
            features: encoded features by the names of their inputs, for each history an array, or one value of the request. An
                input that is left out is missing.
            allow, deny: values by the name of an attribute of the filter. Default: none.
        Returns:
            `(items, scores)`: int32 item indexes and float32 arrays, shape `(histories, min(k, num_items))`.
        """
        rows = max(1, SCORES_BYTES // (4 * self.index.num_items))
        parts = []
        for history, others in self.requests(histories, rows, timestamps, request_times, features):
            wanted = [
                tf.constant([values] * len(history), tf.string, (len(history), len(values)))
                for values in (wanted_of(allow or {}), wanted_of(deny or {}))
            ]
            excluded = np.tile(np.asarray(exclude, np.int32).reshape(1, -1), (len(history), 1))
            filters = wanted if self.filter is not None else ()
            limit = tf.fill((len(history),), k)
            asked_for = (history, others, tf.constant(excluded), limit, tf.constant(k), *filters)
            parts.append(self._eager(*asked_for, repeats=self.repeats if repeats is None else repeats))
        items, scores = (np.concatenate([part.numpy() for part in column]) for column in zip(*parts, strict=True))
        return items, scores

    def score_candidates(
        self,
        histories: Sequence[np.ndarray],
        candidates: np.ndarray,
        *,
        timestamps: Sequence[np.ndarray] | None = None,
        request_times: Sequence[int] | np.ndarray | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Score the same candidates after each history in Python, a few histories at a time.

        Args:
            candidates: int array, shape `(C,)`, item indexes.
            histories, timestamps, request_times, features: see `recommend`.
        Returns:
            `(scores, predicted)`, shape `(histories, C)`; see `score`.
        """
        rows = max(1, SCORES_BYTES // (4 * max(1, len(candidates)) * self.model().item_tower.width))
        parts = [
            self._eager_score(
                history, others, tf.constant(np.tile(np.asarray(candidates, np.int32), (len(history), 1)))
            )
            for history, others in self.requests(histories, rows, timestamps, request_times, features)
        ]
        scores, predicted = zip(*parts, strict=True)
        return np.concatenate(scores), None if predicted[0] is None else np.concatenate(predicted)

    def requests(
        self,
        histories: Sequence[np.ndarray],
        rows: int,
        timestamps: Sequence[np.ndarray] | None = None,
        request_times: Sequence[int] | np.ndarray | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
    ) -> Iterator[tuple]:
        """`(history, others)` as for `query`, for `rows` histories at a time; for the arguments, see `recommend`."""
        given: dict[str, Any] = {"timestamps": timestamps, "request_time": request_times, **(features or {})}
        for first in range(0, len(histories), rows):
            here = slice(first, first + rows)
            history = _padded(histories[here], np.int32)
            others = []
            for put in self.inputs:
                spec = put.spec(is_encoded=True)
                if given.get(put.name) is not None:
                    values = given[put.name][here]
                else:
                    values = [put.missing(1 if put.is_of_request else len(h)) for h in histories[here]]
                row = np.reshape(values, -1) if put.is_of_request else _padded(values, spec.dtype.as_numpy_dtype)
                others.append(tf.constant(row, spec.dtype))
            yield tf.constant(history), others


def _padded(rows: Sequence[Any], dtype: type) -> np.ndarray:
    """Rows of different lengths as one array, padded with 0 on the left."""
    width = max((len(row) for row in rows), default=0)
    array: np.ndarray = np.zeros((len(rows), width), dtype)
    for padded, row in zip(array, rows, strict=True):
        padded[width - len(row) :] = row
    return array


def to_seconds(times):
    """Seconds of times in seconds, milliseconds, microseconds or nanoseconds: above 1e11, a number is no second before 5138.

    >>> to_seconds(tf.constant([0, 1_700_000_000, 1_700_000_000_123, 1_700_000_000_123_456], tf.int64))
    <tf.Tensor: shape=(4,), dtype=int64, numpy=array([         0, 1700000000, 1700000000, 1700000000])>
    """
    for _ in range(3):
        times = tf.where(times > 10**11, times // 1000, times)
    return times
