"""Training a large item table: a step reads, differentiates and updates only the rows of its batch.

Automatic differentiation gives the whole table a gradient, and an optimizer touches every row of the table and of its moments. At
a million items that is most of a step. Here the rows of a batch are gathered first. The compiled step sees them as a small table
of its own and returns their gradient, and `LazyAdamW` updates those rows. The cost of a step does not depend on the catalogue.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfrec.models.item_tower import ItemTower
from tfrec.models.two_tower import TwoTower


class LazyAdamW:
    """AdamW on some rows of a table: a row that no batch holds keeps its value and its moments.

    Source: the `LazyAdam` of TensorFlow Addons and `SparseAdam` of PyTorch, for Adam (Kingma & Ba 2015) with decoupled weight
    decay (Loshchilov & Hutter 2019). Differs from AdamW: moments of absent rows do not decay and absent rows do not move,
    so rare items keep their momentum; the bias correction counts steps, not visits.

    Args:
        table: the Keras variable to update, float32 `(rows, width)`.
        learning_rate: float or schedule.
        weight_decay: float.
    """

    def __init__(self, table: keras.Variable, learning_rate, weight_decay: float = 0.0, beta_1: float = 0.9,
                 beta_2: float = 0.999, epsilon: float = 1e-7) -> None:  # fmt: skip
        self.table = table
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        zeros = np.zeros(table.shape, np.float32)
        self.mean = tf.Variable(zeros, trainable=False, name="mean")
        self.square = tf.Variable(zeros, trainable=False, name="square")
        self.step = tf.Variable(0, trainable=False, name="step", dtype=tf.int64)

    @property
    def variables(self) -> list[tf.Variable]:
        return [self.mean, self.square, self.step]

    def update(self, index: tf.Tensor, rows: tf.Tensor, gradient: tf.Tensor) -> None:
        """Move `rows`, which lie at `index` in the table, against their gradient. A repeated index must repeat its row."""
        rate = self.learning_rate(self.step) if callable(self.learning_rate) else self.learning_rate
        step = tf.cast(self.step.assign_add(1), tf.float32)
        mean = self.beta_1 * tf.gather(self.mean, index) + (1 - self.beta_1) * gradient
        square = self.beta_2 * tf.gather(self.square, index) + (1 - self.beta_2) * tf.square(gradient)
        scale = tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        move = scale * mean / (tf.sqrt(square) + self.epsilon) + self.weight_decay * rows
        for variable, value in ((self.mean, mean), (self.square, square), (self.table.value, rows - rate * move)):
            tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=index, updates=value)


class RowsOfTable:
    """An item tower over some rows of its table: item indexes are places in `rows`.

    Args:
        tower: `ItemTower`.
        rows: float tensor, shape `(R, width)`, the rows.
        item_index: int tensor, shape `(R,)`, the item index of each row.
        features: dict of tensors, the features of each row; empty for a tower without content.
    """

    def __init__(
        self, tower: ItemTower, rows: tf.Tensor, item_index: tf.Tensor, features: dict[str, tf.Tensor]
    ) -> None:
        self.tower, self.item_index, self.num_items = tower, item_index, tower.num_items
        rows = tf.cast(rows, tower.compute_dtype)
        # content is the work of a row, so each is made once; without it a place costs a gather
        self.vectors = tower.refine(rows, features, training=True)

    def __call__(self, place):
        """The vectors that histories read; see `ItemTower.call`."""
        return tf.gather(self.vectors, place)

    def candidates(self, place):
        """The vectors that queries are compared with; see `ItemTower.candidates`."""
        return self.tower.as_candidates(self(place))

    def original(self, place):
        """The item indexes in the catalogue."""
        return tf.gather(self.item_index, place)


class LazyTableTrainer:
    """The training step of a `TwoTower` whose item table is updated lazily.

    Args:
        model: `TwoTower` with an `ItemTower`, built and compiled with a loss that draws negatives; its optimizer has all
            weights but the table.
        optimizer: `LazyAdamW` for the table.
        jit_compile: bool, compile the step with XLA, between the gather of the rows and their update. Default: True.
    """

    def __init__(self, model: TwoTower, optimizer: LazyAdamW, jit_compile: bool = True) -> None:
        self.model, self.optimizer = model, optimizer
        self.dense = [v for v in model.trainable_variables if v is not model.item_tower.table]
        self._step = tf.function(self._differentiate, jit_compile=jit_compile, autograph=False)

    def __call__(self, inputs, target, sample_weight=None) -> tf.Tensor:
        """Train one step, the body of `TwoTower.train_step`; return the queries."""
        history, tower = inputs["history"], self.model.item_tower
        weight = self.model.position_weights(inputs, target, sample_weight, training=True)
        negatives = self.model.loss.draw(tower.num_items)
        # at most so many different rows, for any batch
        parts = [tf.reshape(history, [-1]), tf.reshape(target, [-1]), negatives]
        unique, local = tf.unique(tf.concat(parts, 0))
        most = 2 * tf.size(history) + tf.size(negatives) + 1
        index = tf.pad(unique, [[0, most - tf.size(unique)]])  # padding reads row 0, whose gradient is zero
        history, target, negatives = (
            tf.reshape(part, tf.shape(like))
            for part, like in zip(
                tf.split(local, [tf.size(p) for p in parts]), [history, target, negatives], strict=True
            )
        )
        rows = tf.gather(tower.table.value, index)
        features = {name: tf.gather(weight.value, index) for name, weight in tower.features.items()}
        gradient, query = self._step(rows, index, features, inputs | {"history": history}, target, weight, negatives)
        self.optimizer.update(index, rows, gradient)
        return query

    def _differentiate(self, rows, index, features, inputs, target, weight, negatives):
        model = self.model
        with tf.GradientTape() as tape:
            tape.watch(rows)
            items = RowsOfTable(model.item_tower, rows, index, features)
            query = model(inputs, vectors=items(inputs["history"]), training=True)
            loss = model.loss_of(query, target, inputs, items, weight, True, negatives=negatives)
        of_rows, *of_dense = tape.gradient(loss, [rows, *(v.value for v in self.dense)])
        model.optimizer.apply(of_dense, self.dense)
        return tf.convert_to_tensor(of_rows), query
