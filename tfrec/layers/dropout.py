"""Cheap dropout: its mask is computed where it is needed and never stored."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops


def random_keep(shape, keep_rate: float, seed):
    """A bool tensor of `shape`, True with probability `keep_rate`: a hash of each element's place and the seed.

    It takes a few integer operations an element, which XLA fuses into the operation that uses the mask, forwards and backwards.
    Source: counter-based random numbers, Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"; the mixing
    steps are those of MurmurHash3's finalizer. Differs from the source: one round, which dropout does not notice and a
    simulation would.

    Args:
        shape: ints or a tensor of them.
        keep_rate: float in (0, 1).
        seed: uint32 tensor, shape `(2,)`.
    """
    is_static = all(isinstance(size, int) for size in shape)
    number = math.prod(shape) if is_static else ops.prod(ops.cast(ops.stack(shape), "int32"))
    h = ops.cast(ops.arange(number), "uint32") * np.uint32(0x9E3779B1) + seed[0] * np.uint32(0x27D4EB2F)
    h = ops.bitwise_xor(h, ops.right_shift(h, np.uint32(16)))
    h = h * np.uint32(0x85EBCA6B) + seed[1] * np.uint32(0x165667B1)
    h = ops.bitwise_xor(h, ops.right_shift(h, np.uint32(13))) * np.uint32(0xC2B2AE35)
    return ops.reshape(h < np.uint32(keep_rate * 2**32), shape)


@keras.saving.register_keras_serializable("tfrec")
class Dropout(keras.layers.Layer):
    """Sets elements to zero at random while training, and scales the others up so that the mean stays.

    It takes the place of `keras.layers.Dropout`, whose random numbers were a fifth of a training step on a CPU.
    Source: Srivastava et al. 2014. Differs from the source: scaled in training, not at inference; `random_keep`'s numbers.

    Args:
        rate: float in [0, 1), share of the elements that are set to zero.
        whole_vectors: bool, drop vectors along the last axis as a whole, and do not scale the others. Default: False.
        seed: int. Default: drawn from Keras's global seed.
    """

    def __init__(self, rate: float, whole_vectors: bool = False, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}.")
        self.rate = rate
        self.whole_vectors = whole_vectors
        self.seed = seed
        if rate:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, x, training=None):
        if not (training and self.rate):
            return x
        seed = ops.cast(self.seed_generator.next(), "uint32")
        if self.whole_vectors:
            return ops.where(random_keep((*ops.shape(x)[:-1], 1), 1 - self.rate, seed), x, 0)
        return ops.where(random_keep(ops.shape(x), 1 - self.rate, seed), x / (1 - self.rate), 0)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "whole_vectors": self.whole_vectors, "seed": self.seed}
