"""Training a large item table: a step reads, differentiates and updates only the rows that its batch holds.

Automatic differentiation gives the whole table a gradient, and an optimizer touches every row of it and of its moments; at a
million items that is most of a step. Here the rows of a batch are gathered first; the compiled step sees them as a small
table of its own, and gives back their gradient; `LazyAdamW` updates those rows. A step costs what its batch costs, whatever
the catalogue.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

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
        """Move `rows`, which stand at `index` in the table, against their gradient. A repeated index must repeat its row."""
        rate = self.learning_rate(self.step) if callable(self.learning_rate) else self.learning_rate
        step = tf.cast(self.step.assign_add(1), tf.float32)
        mean = self.beta_1 * tf.gather(self.mean, index) + (1 - self.beta_1) * gradient
        square = self.beta_2 * tf.gather(self.square, index) + (1 - self.beta_2) * tf.square(gradient)
        scale = tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        move = scale * mean / (tf.sqrt(square) + self.epsilon) + self.weight_decay * rows
        for variable, value in ((self.mean, mean), (self.square, square), (self.table.value, rows - rate * move)):
            tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=index, updates=value)


class LazyTableTrainer:
    """The training step of a `TwoTower` whose item table is updated lazily.

    Args:
        model: built and compiled; its optimizer has everything but the table.
        optimizer: for the table.
        jit_compile: compile the step with XLA, between the gather of the rows and their update.
    """

    def __init__(self, model: TwoTower, optimizer: LazyAdamW, jit_compile: bool = True) -> None:
        self.model, self.optimizer = model, optimizer
        self.dense = [v for v in model.trainable_variables if v is not model.item_tower.table]
        self._step = tf.function(self._differentiate, jit_compile=jit_compile, autograph=False)

    def __call__(self, inputs, target) -> None:
        """One step: the body of `TwoTower.train_step`."""
        history, tower = inputs["history"], self.model.item_tower
        negatives = self.model.loss.draw(tower.num_items)
        # so many different rows at most, whatever the batch holds
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
        gradient = self._step(rows, index, inputs | {"history": history}, target, negatives)
        self.optimizer.update(index, rows, gradient)

    def _differentiate(self, rows, index, inputs, target, negatives):
        model = self.model
        with tf.GradientTape() as tape, model.item_tower.reading(rows, index):
            tape.watch(rows)
            query = model(inputs, training=True)
            total, count = model.loss(query, target, inputs, model.item_tower, negatives)
            loss = total / tf.maximum(count, 1)
        of_rows, *of_dense = tape.gradient(loss, [rows, *(v.value for v in self.dense)])
        model.optimizer.apply(of_dense, self.dense)
        model.mean_loss.update_state(loss, sample_weight=count)
        return tf.convert_to_tensor(of_rows)
