"""TFRS's sequential tutorial: a GRU over the last ten items, in-batch softmax by `tfrs.tasks.Retrieval`, on Keras 2.

Every position of the training part is a target, as for the other contestants. Each is an example with a window of its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from common import (
    LEARNING_RATE,
    LENGTH,
    THREADS,
    WIDTH,
    Clock,
    arguments,
    epoch_timer,
    num_items,
    report,
    training_sequences,
)

WINDOW, BATCH = 10, 4096


class Model(tfrs.Model):
    def __init__(self, size: int) -> None:
        super().__init__()
        layers = tf.keras.layers
        self.query_tower = tf.keras.Sequential([layers.Embedding(size, WIDTH), layers.GRU(WIDTH)])
        self.candidate_tower = tf.keras.Sequential([layers.Embedding(size, WIDTH)])
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, features, training=False):
        history, target = features
        return self.task(self.query_tower(history), self.candidate_tower(target), compute_metrics=False)


def main() -> None:
    given, clock = arguments(), Clock()
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    windows, targets = [], []
    for sequence in training_sequences(given.data):
        kept = np.concatenate([np.zeros(WINDOW, np.int32), sequence[-LENGTH - 1 :]])
        windows.append(np.lib.stride_tricks.sliding_window_view(kept[1:-1], WINDOW))
        targets.append(kept[WINDOW + 1 :])
    windows, targets = np.concatenate(windows), np.concatenate(targets)
    dataset = tf.data.Dataset.from_tensor_slices((windows, targets)).shuffle(100_000).batch(BATCH, drop_remainder=True)
    model = Model(num_items(given.data) + 1)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(LEARNING_RATE))
    model.fit(
        dataset.prefetch(2),
        epochs=given.warm_up + given.epochs,
        verbose=0,
        callbacks=[epoch_timer(tf.keras.callbacks.Callback, clock)],
    )
    report("TFRS GRU tutorial, in-batch softmax", len(targets) // BATCH * BATCH, clock.seconds[given.warm_up :])


main()
