"""Why an item has its score: how far each position of a history moved it, and the weights of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.batches import prepare_history
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX
from tfrec.index.answers import Answers

PAIRS = 1 << 20
"""Pairs of positions in the histories that are read at a time: attention has a weight for each, in every head."""


class Explainer:
    """Explains the scores of `Answers`.

    >>> from tfrec.models.item_tower import ItemTower
    >>> from tfrec.models.sequence_tower import SequenceTower
    >>> from tfrec.models.two_tower import TwoTower
    >>> model = TwoTower(ItemTower(3, 4), SequenceTower(5, num_heads=1))
    >>> model.build()
    >>> contributions, query = Explainer(Answers(model, item_counts=[5, 1, 3])).explain(np.array([2, 3, 1]), np.array([4]))
    >>> contributions.shape, contributions[0, 2]  # the third item of the history is unknown
    ((1, 3), np.float32(0.0))

    Args:
        answers: `Answers`.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        ids = tf.TensorSpec((None, None), tf.int32)
        asked = [ids, [put.spec(is_encoded=True) for put in answers.inputs]]
        self._eager = tf.function(self.contributions, [*asked, ids])
        self._eager_attention = tf.function(self._attention, asked)

    def contributions(self, history, others, candidates):
        """How far each position of a history moved the scores of candidates: the score less the score without that position.

        A position is left out as an unknown id is. Times and the context of the request stay. In a history that is longer than the
        model reads, an older item moves up. A history without items scores 0 here: its query is zero, and the share of a popular
        item is on another scale.
        Source: the occlusion of Zeiler & Fergus 2014, section 3.1. Differs from the source: an item of a history is dropped, where
        there a part of an image is covered.

        Args:
            history, others: see `Answers.query`.
            candidates: int32 tensor, shape `(batch, C)`, item indexes.
        Returns:
            `(contributions, query)`: float32, shape `(batch, C, length)`, 0 at padding, at unknown items, at items too old to be
            read, and for unknown candidates; and the query after the whole history, `(batch, width)`.
        """
        answers = self._answers
        most = answers.model().sequence_tower.max_length + 1  # one more than are read: it moves up
        others, (batch, length) = answers.checked(history, others), tf.unstack(tf.shape(history))
        place = tf.broadcast_to(tf.range(length), (batch, length))
        of_events = [values for put, values in zip(answers.inputs, others, strict=True) if not put.is_of_request]
        history, is_real, place, *kept = prepare_history(history, most, place, *of_events)
        others = [v if put.is_of_request else kept.pop(0) for put, v in zip(answers.inputs, others, strict=True)]
        cells = tf.cast(tf.where(is_real), tf.int32)  # row and column of each item
        rows, columns = cells[:, 0], cells[:, 1]
        whole = tf.range(batch), tf.fill((batch,), -1)
        queries = self._queries_without(
            history, others, tf.concat([whole[0], rows], 0), tf.concat([whole[1], columns], 0)
        )
        query, without = queries[:batch], queries[batch:]
        item = tf.gather(candidates, rows) - FIRST_ITEM_INDEX  # P C, for P items in all histories
        vectors = answers.index.vectors_of(tf.maximum(item, 0))
        moved = tf.where(item >= 0, tf.einsum("pd,pcd->pc", tf.gather(query, rows) - without, vectors), 0.0)
        cells = tf.stack([rows, tf.gather_nd(place, cells)], axis=1)  # where each item stood
        number = tf.scatter_nd(cells, tf.range(1, tf.size(rows) + 1), (batch, length))  # 0: no item
        return tf.transpose(tf.gather(tf.pad(moved, [[1, 0], [0, 0]]), number), (0, 2, 1)), query

    def _queries_without(self, history, others, rows, columns):
        """The queries of `rows` of the history, int32 `(P,)`, each without its position in `columns`; below 0: without none.

        They are read a part at a time, or the memory would grow with the cube of the length.
        """
        answers, model = self._answers, self._answers.model()
        batch, length = tf.unstack(tf.shape(history))
        # parts of one size are filled up with a history without items, so that there is one also for no request at all
        history, *others = (tf.pad(v, [[0, 1], *[[0, 0]] * (v.shape.rank - 1)]) for v in (history, *others))
        number, column = tf.size(rows), tf.range(length)
        size = tf.clip_by_value(number, 1, max(1, PAIRS // model.sequence_tower.max_length**2))
        parts = tf.maximum(-(-number // size), 1)
        missing = [[0, parts * size - number]]

        def read(part):
            own, left_out = part
            rest = tf.where(tf.equal(tf.expand_dims(left_out, 1), column), PAD_INDEX, tf.gather(history, own))
            return answers.query(rest, [tf.gather(values, own) for values in others])[0]

        filled = tf.pad(rows, missing, constant_values=batch), tf.pad(columns, missing)
        cut = tuple(tf.reshape(values, (parts, size)) for values in filled)
        queries = tf.map_fn(read, cut, fn_output_signature=tf.float32, parallel_iterations=1)
        return tf.reshape(queries, (parts * size, model.item_tower.width))[:number]

    def explain(self, history: np.ndarray, candidates: np.ndarray, **given: Any) -> tuple[np.ndarray, np.ndarray]:
        """Explain the scores of candidates after one history in Python.

        Args:
            history: int array of item indexes, oldest first.
            candidates: int array, shape `(C,)`, item indexes.
            given: `timestamps`, `request_times` and `features`; see `Answers.recommend`.
        Returns:
            `(contributions, query)`: float32, shape `(C, length)` and `(width,)`; see `contributions`.
        """
        asked = tf.constant(np.asarray(candidates, np.int32).reshape(1, -1))
        contributions, query = self._eager(*self._request(history, **given), asked)
        return contributions.numpy()[0], query.numpy()[0]

    def attention_weights(self, history: np.ndarray, **given: Any) -> list[np.ndarray]:
        """The attention weights of every block: float32 `(heads, L, L)` for the `L` items of one history that the model reads.

        Args:
            history, given: see `explain`.
        """
        is_real, weights = self._eager_attention(*self._request(history, **given))
        first = int(np.sum(~is_real.numpy()))  # after the padding
        return [of_block.numpy()[0, :, first:, first:] for of_block in weights]

    def _attention(self, history, others):
        inputs, vectors = self._answers.read(history, others)
        weights = self._answers.model().attention_weights(inputs, vectors)
        return inputs["is_real"], [tf.cast(of_block, tf.float32) for of_block in weights]

    def _request(self, history: np.ndarray, **given: Any) -> tuple:
        """One history as the tensors of `Answers.query`."""
        return next(self._answers.requests([history], 1, **given))
