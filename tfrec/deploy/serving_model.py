"""The served model: ids in, ids and scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.batches import prepare_inputs
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, OOV_INDEX, PAD_INDEX, Vocabulary
from tfrec.index import ExactIndex, build_index
from tfrec.index.exact import is_in
from tfrec.index.filters import ItemFilter, build_filter
from tfrec.models.two_tower import TwoTower
from tfrec.training.run import Run

BLOCK = 1 << 16
"""Items whose vectors are measured at a time."""


def _ids(*shape, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.string, name)


HISTORY = _ids(None, None, name="history")
EXCLUDE = _ids(None, None, name="exclude")
ALLOW = _ids(None, None, name="allow")
DENY = _ids(None, None, name="deny")
CANDIDATES = _ids(None, None, name="candidates")
ITEM_IDS = _ids(None, name="item_ids")
K = tf.TensorSpec((None,), tf.int32, "k")
TIMES = (tf.TensorSpec((None, None), tf.int64, "timestamps"), tf.TensorSpec((None,), tf.int64, "request_time"))
"""What a model that reads times has besides the history: when each item was and when the request is, in seconds."""
DTYPES = {spec.name: spec.dtype for spec in (K, *TIMES)}
"""Of the inputs that are no strings."""


class ServingModel(tf.Module):
    """The served model: vocabulary, towers, index and the rules of the contract, as six signatures; a seventh with a filter.

    Ids that the vocabulary lacks are dropped before attention. What the history or `exclude` holds is not recommended. A
    history with nothing known gets the popular items, scored by their share of the events. Rows shorter than the answer is
    wide are filled with `""` and `-inf`. A model that reads times takes `timestamps` and `request_time` wherever it takes
    `history`.

    Args:
        model: the trained towers.
        vocabulary: the catalogue.
        item_counts: ints `(num_items,)`: how often each item occurs: what "popular" means.
        index: over `model.item_tower.catalogue()`.
        k: how many `serving_default` recommends.
        item_filter: None, or what `recommend_filtered` filters by: `recommend` with `allow` and `deny`.
    """

    def __init__(
        self,
        model: TwoTower,
        vocabulary: Vocabulary,
        item_counts: Sequence[int],
        index: ExactIndex,
        k: int = 10,
        item_filter: ItemFilter | None = None,
    ):
        super().__init__(name="tfrec")
        self.index = index
        # where candidates are the rows of the item table, histories read them too: a large table is stored once; where they
        # are its rows at length 1, with their lengths beside them
        tower = model.item_tower
        self._is_shared = index.storage != "bfloat16" and not tower.mlp_dims
        owned = model.sequence_tower.variables if self._is_shared else model.variables
        blocks = np.array_split(np.arange(index.num_items, dtype=np.int32), -(-index.num_items // BLOCK))
        self._length: tf.Variable | None = None
        if self._is_shared and tower.normalize:
            length = np.concatenate([tf.norm(tower(block + FIRST_ITEM_INDEX), axis=1).numpy() for block in blocks])
            self._length = tf.Variable(length, trainable=False, name="length")
        self._variables = [v.value for v in owned]  # what a tf.Module can track of Keras 3
        self._towers = lambda: model  # behind a function, or it would be tracked, and every variable stored twice
        self.k = k
        self._filter = item_filter
        self._item_ids = tf.Variable(vocabulary.item_ids, dtype=tf.string, trainable=False, name="item_ids")
        keys = tf.constant(["", *vocabulary.item_ids])
        values = tf.constant([PAD_INDEX, *range(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + len(vocabulary))], tf.int32)
        self._item_index = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), OOV_INDEX)
        counts = np.asarray(item_counts, np.float64)
        popular = np.argsort(-counts, kind="stable")
        share = (counts / max(counts.sum(), 1)).astype(np.float32)
        self._share = tf.Variable(share, trainable=False, name="share")
        self._popular = tf.Variable(popular.astype(np.int32), trainable=False, name="popular")
        norm = np.concatenate([tf.norm(index.vectors_of(block), axis=1).numpy() for block in blocks])
        self._inverse_norm = tf.Variable(1 / np.maximum(norm, 1e-12), trainable=False, name="inverse_norm")

        times = TIMES if model.sequence_tower.reads_times else ()
        self.serving_default = tf.function(self._serving_default, [HISTORY, *times])
        self.recommend = tf.function(self._recommend, [HISTORY, *times, EXCLUDE, K])
        if item_filter:
            filtered = [HISTORY, *times, EXCLUDE, K, ALLOW, DENY]
            self.recommend_filtered = tf.function(self._recommend_filtered, filtered)
        self.similar_items = tf.function(self._similar_items, [ITEM_IDS, K])
        self.score = tf.function(self._score, [HISTORY, *times, CANDIDATES])
        self.embed_history = tf.function(self._embed_history, [HISTORY, *times])
        self.embed_items = tf.function(self._embed_items, [ITEM_IDS])
        self.release = tf.function(self._release, [])

    @property
    def signatures(self) -> dict[str, Any]:
        """The functions to save, by signature name."""
        filtered = ("recommend_filtered",) if self._filter else ()
        names = ("serving_default", "recommend", *filtered, "similar_items", "score", "embed_history", "embed_items")
        return {name: getattr(self, name) for name in names}

    def _release(self) -> None:
        """Free what no garbage collection frees, in the process that built the model and in one that loaded it."""
        for handle in [self._item_index.resource_handle, *self.index.handles()]:
            tf.raw_ops.DestroyResourceOp(resource=handle)

    def _serving_default(self, history, *times):
        exclude = tf.zeros((tf.shape(history)[0], 0), tf.string)
        return self._rank(history, times, exclude, tf.fill((tf.shape(history)[0],), self.k), self.k)

    def _recommend(self, history, *others, allows=None):
        *times, exclude, k = others
        return self._rank(history, times, exclude, k, tf.reduce_max(tf.concat([k, [0]], 0)), allows)

    def _recommend_filtered(self, history, *others):
        *plain, allow, deny = others
        item_filter: Any = self._filter
        allows = lambda items, rows: item_filter.allows(items, tf.gather(allow, rows), tf.gather(deny, rows))  # noqa: E731
        return self._recommend(history, *plain, allows=allows)

    def _similar_items(self, item_ids, k):
        """The items with the highest cosine to each; always exact. An unknown item has none."""
        item = self._item_index.lookup(item_ids) - FIRST_ITEM_INDEX  # B
        is_known = item >= 0
        own = tf.maximum(item, 0)
        vectors = self.index.vectors_of(own) * tf.expand_dims(tf.gather(self._inverse_norm.value(), own), 1)
        scores = self.index.score_all(vectors) * self._inverse_norm  # B N
        is_self = tf.equal(tf.range(self.index.num_items)[tf.newaxis], tf.expand_dims(own, 1))
        scores = tf.where(tf.logical_or(is_self, tf.expand_dims(~is_known, 1)), -np.inf, scores)
        width = tf.minimum(tf.reduce_max(tf.concat([k, [0]], 0)), self.index.num_items)
        scores, items = tf.math.top_k(scores, width)
        return self._answer(scores, items, k)

    def _score(self, history, *others):
        *times, candidates = others
        query, is_cold = self._query(self._item_index.lookup(history), times)
        item = self._item_index.lookup(candidates) - FIRST_ITEM_INDEX  # B C
        own = tf.maximum(item, 0)
        dots = tf.einsum("bd,bcd->bc", query, self.index.vectors_of(own))
        scores = tf.where(tf.expand_dims(is_cold, 1), tf.gather(self._share.value(), own), dots)
        return {"scores": tf.where(item >= 0, scores, -np.inf)}

    def _embed_history(self, history, *times):
        return {"embedding": self._query(self._item_index.lookup(history), times)[0]}

    def _embed_items(self, item_ids):
        item = self._item_index.lookup(item_ids) - FIRST_ITEM_INDEX
        vectors = self.index.vectors_of(tf.maximum(item, 0))
        return {"embedding": tf.where(tf.expand_dims(item >= 0, 1), vectors, 0.0)}

    def _query(self, item_index, times):
        """`(query, is_cold)`: float32 `(B, D)`, and bool `(B,)`: True where nothing of the history is known."""
        model = self._towers()
        inputs = prepare_inputs(item_index, model.sequence_tower.max_length, *times)
        vectors, item = None, tf.maximum(inputs["history"] - FIRST_ITEM_INDEX, 0)
        if self._is_shared:
            vectors = self.index.vectors_of(item)
        if self._length is not None:
            vectors *= tf.expand_dims(tf.gather(self._length.value(), item), -1)
        return model.embed_history(inputs, vectors), ~tf.reduce_any(inputs["is_real"], axis=1)

    def _rank(self, history, times, exclude, k, width, allows=None):
        """The best `width` for each row; for a row with nothing known, the most popular."""
        history = self._item_index.lookup(history)
        query, is_cold = self._query(history, times)
        width = tf.minimum(width, self.index.num_items)
        # B X, below 0: not an item
        excluded = tf.concat([history, self._item_index.lookup(exclude)], axis=1) - FIRST_ITEM_INDEX
        scores, items = self.index.query(query, width, excluded, allows)
        cold = tf.where(is_cold)

        def with_popular():
            number = self.index.num_items if allows else tf.minimum(width + tf.shape(excluded)[1], self.index.num_items)
            rows = tf.cast(cold[:, 0], tf.int32)
            popular = tf.tile(tf.expand_dims(self._popular[:number], 0), (tf.size(rows), 1))
            is_given = ~is_in(popular, tf.gather(excluded, rows))
            if allows:
                is_given = tf.logical_and(is_given, allows(popular, rows))
            share, kept = tf.math.top_k(tf.where(is_given, tf.gather(self._share.value(), popular), -np.inf), width)
            popular = tf.gather(popular, kept, batch_dims=1)
            put = tf.tensor_scatter_nd_update
            return put(scores, cold, share), put(items, cold, popular)

        scores, items = tf.cond(tf.logical_and(tf.size(cold) > 0, width > 0), with_popular, lambda: (scores, items))
        return self._answer(scores, items, k)

    def _answer(self, scores, items, k):
        """Ids and scores, best first; beyond row `b`'s own `k[b]`, and where nothing is left, `""` and `-inf`."""
        is_given = tf.expand_dims(tf.range(tf.shape(scores)[1]), 0) < tf.expand_dims(k, 1)
        is_given = tf.logical_and(is_given, scores > -np.inf)
        return {
            "item_ids": tf.where(is_given, tf.gather(self._item_ids.value(), items), ""),
            "scores": tf.where(is_given, scores, -np.inf),
        }


def build_serving_model(
    run: Run,
    index: str = "scann",
    k: int = 10,
    *,
    storage: str = "float32",
    recall: float = 0.99,
    queries: np.ndarray | None = None,
    history_length: int = 0,
    filters: Sequence[str] = (),
) -> ServingModel:
    """The served model of a run, in memory. The arguments are those of `export` and of `build_index`.

    With a typical `history_length`, an index is tuned to rank so many items more than `k`, since a request takes them out.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Received: {k}.")
    catalogue = tf.function(run.model.item_tower.catalogue, jit_compile=True)  # without a table of squares beside it
    built = build_index(index, catalogue(), storage=storage, queries=queries, recall=recall, k=k + history_length)
    item_filter = build_filter(filters, run.items)
    return ServingModel(run.model, run.vocabulary, run.items["num_events"], built, k, item_filter)
