"""SASRec from keras-hub layers as the keras-rs example builds it, with the full softmax as loss.

As in the example: token and position embeddings, `TransformerDecoder` blocks with ReLU, rows padded to the full length.
Changed for the comparison: the full softmax over the tied table instead of one negative, and the sizes in `common`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from common import (
    BLOCKS,
    DROPOUT,
    HEADS,
    LEARNING_RATE,
    LENGTH,
    THREADS,
    WIDTH,
    Clock,
    arguments,
    epoch_timer,
    num_items,
    real_positions,
    report,
    training_sequences,
)

BATCH = 64


def build(vocabulary_size: int) -> keras.Model:
    items = keras_hub.layers.ReversibleEmbedding(vocabulary_size, WIDTH, embeddings_initializer="glorot_uniform")
    ids, is_real = keras.Input((LENGTH,), dtype="int32"), keras.Input((LENGTH,), dtype="bool")
    x = items(ids)
    x = x + keras_hub.layers.PositionEmbedding(LENGTH, initializer="glorot_uniform")(x)
    x = keras.layers.Dropout(DROPOUT)(x)
    for _ in range(BLOCKS):
        x = keras_hub.layers.TransformerDecoder(
            intermediate_dim=WIDTH, num_heads=HEADS, dropout=DROPOUT, activation="relu", normalize_first=True
        )(x, decoder_padding_mask=is_real)
    x = keras.layers.LayerNormalization(epsilon=1e-8)(x)
    model = keras.Model([ids, is_real], items(x, reverse=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=loss, jit_compile="auto")
    return model


def main() -> None:
    given, clock = arguments(), Clock()
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    sequences = training_sequences(given.data)
    ids, targets = np.zeros((2, len(sequences), LENGTH), np.int32)
    for row, sequence in enumerate(sequences):
        kept = sequence[-LENGTH - 1 :]
        ids[row, : len(kept) - 1], targets[row, : len(kept) - 1] = kept[:-1], kept[1:]
    is_real = ids > 0
    dataset = tf.data.Dataset.from_tensor_slices(((ids, is_real), targets, is_real.astype(np.float32)))
    dataset = dataset.shuffle(len(ids)).batch(BATCH, drop_remainder=True).prefetch(2)
    model = build(num_items(given.data) + 1)
    model.fit(
        dataset,
        epochs=given.warm_up + given.epochs,
        verbose=0,
        callbacks=[epoch_timer(keras.callbacks.Callback, clock)],
    )
    share = len(sequences) // BATCH * BATCH / len(sequences)  # the share of the rows that drop_remainder keeps
    report("keras-hub/keras-rs SASRec, softmax", int(share * real_positions(sequences)), clock.seconds[given.warm_up :])


main()
