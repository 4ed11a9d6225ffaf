"""A second head beside the ranking: predicts a column of the next event, such as its rating or its type, for an item."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.dropout import Dropout
from tfrec.layers.normalization import l2_normalize

KINDS = ("number", "category")
"""The kinds of columns that a head predicts."""
QUERY_DROPOUT = 0.1
"""The share of the positions whose query training hides, so that the item alone tells something after an empty history."""


@keras.saving.register_keras_serializable("tfrec")
class TaskHead(keras.layers.Layer):
    """Predicts a column of an event from the query before it and the candidate vector of its item.

    An MLP reads the query and the candidate, each scaled to a root mean square of 1, and their elementwise product. It reads
    candidates as an index holds them, so that it is served from the index's own vectors.
    Source: neural collaborative filtering (He et al. 2017), whose network reads both vectors and their product; joint training
    of rating and ranking as in the TensorFlow Recommenders tutorial on multi-task models. Differs from the sources: one network for
    product and vectors, on the vectors of the ranking; for some positions it does not see the query.

    >>> import numpy as np
    >>> head = TaskHead("rating", mean=3.5, stddev=1.1)
    >>> head.predict(np.ones((2, 4), "float32"), np.ones((2, 4), "float32")).shape
    TensorShape([2])

    Args:
        column: str, name of the column of events that it predicts.
        kind: str, `"number"` (the mean, by squared error) or `"category"` (the most likely value, by cross-entropy).
            Default: `"number"`.
        num_values: int > 1, known values of a category. Default: 0, for a number.
        mean, stddev: float, of a number, on the scale of `is_log`: predictions are standardised by them. Default: 0 and 1.
        is_log: bool, whether `sign(x) log(1 + |x|)` of a number is predicted, and turned back. Default: False.
        loss_weight: float > 0, the weight of its loss beside that of the ranking. Default: 1.
        hidden_dims: ints, hidden widths (GELU). Default: one, of 64.
        dropout_rate: float in [0, 1), dropout before the last layer. Default: 0.
    Call arguments:
        query: float tensor, shape `(..., width)`, the queries.
        candidate: float tensor of the same shape, the vectors of the items.
    Returns:
        Float32 tensor: the standardised number, shape `(..., 1)`, or the logits of the values, shape `(..., num_values)`.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        column: str,
        kind: str = "number",
        num_values: int = 0,
        mean: float = 0.0,
        stddev: float = 1.0,
        is_log: bool = False,
        loss_weight: float = 1.0,
        hidden_dims: Sequence[int] = (64,),
        dropout_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32"} | kwargs)
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}.")
        if kind == "category" and num_values < 2:
            raise ValueError(f"A category needs two known values to choose from. Received: num_values={num_values}.")
        if not loss_weight > 0:
            raise ValueError(f"`loss_weight` must be above 0. Received: {loss_weight}.")
        self.column = column
        self.kind = kind
        self.num_values = num_values
        self.mean = mean
        self.stddev = stddev
        self.is_log = is_log
        self.loss_weight = loss_weight
        self.hidden_dims = list(hidden_dims)
        self.dropout_rate = dropout_rate
        own = {"dtype": self.dtype_policy}
        self.hide = Dropout(QUERY_DROPOUT, whole_vectors=True, **own)
        self.hidden = [keras.layers.Dense(dim, activation="gelu", **own) for dim in self.hidden_dims]
        self.dropout = Dropout(dropout_rate, **own)
        self.output_layer = keras.layers.Dense(num_values if kind == "category" else 1, **own)

    def build(self, query_shape, candidate_shape=None):
        dim = 3 * query_shape[-1]
        for layer in self.hidden:
            layer.build((None, dim))
            dim = layer.units
        self.output_layer.build((None, dim))

    def call(self, query, candidate, training=None):
        query = self.hide(query, training=training)
        query, candidate = (l2_normalize(ops.cast(x, "float32")) * x.shape[-1] ** 0.5 for x in (query, candidate))
        x = ops.concatenate([query, candidate, query * candidate], axis=-1)
        for layer in self.hidden:
            x = layer(x)
        return self.output_layer(self.dropout(x, training=training))

    def compute_output_shape(self, query_shape, candidate_shape=None):
        return (*query_shape[:-1], self.num_values if self.kind == "category" else 1)

    def mean_loss(self, query, candidate, value, is_real, training=None):
        """The mean loss over the positions that have a value: a scalar; 0 where none has.

        Args:
            query, candidate: see above, shape `(batch, length, width)`.
            value: tensor, shape `(batch, length)`: a number, NaN where it is missing; or the number of a category's value, as
                `PreparedData.event_columns` has it: 0 where it is missing, 1 where it is unknown.
            is_real: bool tensor, shape `(batch, length)`; positions where it is False do not count.
        """
        output = self(query, candidate, training=training)
        if self.kind == "number":
            value = ops.cast(value, "float32")
            is_given = ops.logical_and(is_real, ops.equal(value, value))
            wanted = (self._scaled(ops.where(is_given, value, 0.0)) - self.mean) / self.stddev
            loss = ops.square(output[..., 0] - wanted)
        else:
            label = ops.cast(value, "int32") - FIRST_ITEM_INDEX
            is_given = ops.logical_and(is_real, label >= 0)
            chosen = ops.one_hot(ops.maximum(label, 0), self.num_values, dtype="float32")
            loss = ops.logsumexp(output, axis=-1) - ops.sum(output * chosen, axis=-1)
        weight = ops.cast(is_given, "float32")
        return ops.sum(ops.where(is_given, loss, 0.0)) / ops.maximum(ops.sum(weight), 1.0)

    def predict(self, query, candidate):
        """The predicted values, shape `(...,)`: float32 numbers, or the int32 numbers of a category's values, from 2."""
        output = self(query, candidate, training=False)
        if self.kind == "category":
            return ops.cast(ops.argmax(output, axis=-1), "int32") + FIRST_ITEM_INDEX
        value = output[..., 0] * self.stddev + self.mean
        return ops.sign(value) * (ops.exp(ops.abs(value)) - 1) if self.is_log else value

    def _scaled(self, value):
        return ops.sign(value) * ops.log(1 + ops.abs(value)) if self.is_log else value

    def get_config(self):
        own = {"column": self.column, "kind": self.kind, "num_values": self.num_values, "mean": self.mean}
        own |= {"stddev": self.stddev, "is_log": self.is_log, "loss_weight": self.loss_weight}
        own |= {"hidden_dims": self.hidden_dims, "dropout_rate": self.dropout_rate}
        return super().get_config() | own
