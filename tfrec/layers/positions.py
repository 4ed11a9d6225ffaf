"""Positions, distances and times of the items of a history."""

from __future__ import annotations

import keras
from keras import ops


def steps_from_newest(is_real, end=None):
    """The number of real items of the same history after each position: 0 at the newest.

    >>> import numpy as np
    >>> np.array(steps_from_newest(np.array([[False, True, True, True]])))
    array([[3, 2, 1, 0]], dtype=int32)

    Args:
        is_real: bool tensor, shape `(batch, length)`.
        end: int tensor, for packed rows; see `CausalSelfAttention`. Default: one history a row.
    Returns:
        int32 tensor, shape `(batch, length)`; without meaning at padding.
    """
    if end is not None:
        return ops.maximum(end - 1 - ops.arange(ops.shape(end)[1], dtype="int32"), 0)
    count = ops.cumsum(ops.cast(is_real, "int32"), axis=1)
    return count[:, -1:] - count


@keras.saving.register_keras_serializable("tfrec")
class PositionFromNewest(keras.layers.Layer):
    """Learned position embedding, counted from the newest item: the newest is position 0.

    Padding does not count, so more of it changes nothing, wherever it lies. A longer history leaves recent positions as
    they were.
    Source: Kang & McAuley 2018, section III-A (learned positions on left-padded rows). Differs from the source: none
    known; left padding to a fixed length also counts from the right.

    Args:
        max_length: int > 0, number of embeddings; positions further back share the last one.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: int tensor, for packed rows; see `CausalSelfAttention`. Default: one history a row.
    Returns:
        `x` plus the embedding of each position.
    """

    def __init__(self, max_length: int, **kwargs):
        super().__init__(**kwargs)
        self.max_length = max_length

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            shape=(self.max_length, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embeddings",
        )

    def call(self, x, is_real, end=None):
        position = ops.minimum(steps_from_newest(is_real, end), self.max_length - 1)
        return x + ops.take(self.embeddings, position, axis=0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"max_length": self.max_length}


@keras.saving.register_keras_serializable("tfrec")
class RelativePositionBias(keras.layers.Layer):
    """A learned number for each head and distance, to be added to the logits of attention.

    Source: the relative attention bias of Raffel et al. 2020 (T5) and of HSTU (Zhai et al. 2024). Differs from T5: a
    number for each distance, no buckets; starts at zero.

    Args:
        num_heads: int > 0.
        max_distance: int > 0, number of distances; larger distances share the last number.
    """

    def __init__(self, num_heads: int, max_distance: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.max_distance = max_distance

    def build(self, input_shape=None):
        self.bias = self.add_weight(shape=(self.num_heads, self.max_distance), initializer="zeros", name="bias")

    def between(self, length, by_gather=False):
        """The bias of `length` positions with each other: float tensor, shape `(num_heads, length, length)`.

        `[h, i, j]` belongs to the distance `i - j`, and is zero where that is negative. With a gather, XLA's loops over the
        logits and their gradients stay vectorised. Without XLA, a gather takes three times as long as the ring below.
        """
        if by_gather:
            place = ops.arange(length)
            distance = ops.expand_dims(place, 1) - place  # L L
            far = ops.take(self.bias, ops.clip(distance, 0, self.max_distance - 1), axis=1)
            return ops.cast(ops.where(distance >= 0, far, 0), self.compute_dtype)
        distance = ops.minimum(ops.arange(length), self.max_distance - 1)
        far = ops.take(ops.cast(self.bias, self.compute_dtype), distance, axis=1)  # H L
        # a ring of 2 L numbers, unrolled with a step of 2 L - 1, moves by one column in each row: no gather of L x L
        ring = ops.concatenate([far[:, :1], ops.zeros_like(far), ops.flip(far[:, 1:], axis=1)], axis=1)
        step = abs(2 * length - 1)  # an empty row has no distances, and no negative step
        unrolled = ops.tile(ring, (1, length))[:, : length * step]
        return ops.reshape(unrolled, (self.num_heads, length, step))[:, :, :length]

    def get_config(self):
        return super().get_config() | {"num_heads": self.num_heads, "max_distance": self.max_distance}


def rotate(x, base: float = 10_000.0):
    """Rotary position embedding: pairs of features turn by an angle that grows with the column.

    The product of a rotated query and a rotated key then depends on their distance alone.
    Source: Su et al. 2021 (RoFormer); the first half of the features pairs with the second, as in GPT-NeoX. Differs from the
    source: none known.

    Args:
        x: float tensor, shape `(batch, heads, length, head_dim)`, `head_dim` even.
    Returns:
        Float tensor, shape and dtype of `x`.
    """
    half = x.shape[-1] // 2
    speed = base ** (-ops.arange(half, dtype="float32") / half)
    angle = ops.expand_dims(ops.arange(ops.shape(x)[2], dtype="float32"), 1) * ops.expand_dims(speed, 0)  # L half
    cos, sin = ops.cast(ops.cos(angle), x.dtype), ops.cast(ops.sin(angle), x.dtype)
    a, b = x[..., :half], x[..., half:]
    return ops.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def elapsed_bucket(happened, asked, num_buckets: int):
    """The bucket of the time between two moments: int32; 0 where one is unknown. Each bucket is 1.35 times as long as the last.

    >>> import numpy as np
    >>> np.array(elapsed_bucket(np.array([100, 100, 0]), np.array([100, 160, 160]), 72))
    array([ 1, 14,  0], dtype=int32)
    """
    seconds = ops.cast(ops.maximum(asked - happened, 1), "float32")
    bucket = 1 + ops.cast(ops.log(seconds) / 0.301, "int32")
    is_known = ops.logical_and(asked > 0, happened > 0)
    return ops.where(is_known, ops.minimum(bucket, num_buckets - 1), 0)


@keras.saving.register_keras_serializable("tfrec")
class TimeBias(keras.layers.Layer):
    """A learned number for each head and bucket of elapsed time, to be added to the logits of attention.

    The time runs from each item of the history to the request for a position's next item. A request knows its own time, so the
    future is not seen. Buckets grow by a factor of 1.35.
    Source: the temporal part of HSTU's relative attention bias, Zhai et al. 2024, section 3.2. Differs from the source: a
    number for each head; a bucket of its own for unknown times; starts at zero.

    Args:
        num_heads: int > 0.
        num_buckets: int > 1; 72 buckets reach 75 years. Default: 72.
    """

    def __init__(self, num_heads: int, num_buckets: int = 72, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_buckets = num_buckets

    def build(self, input_shape=None):
        self.bias = self.add_weight(shape=(self.num_buckets, self.num_heads), initializer="zeros", name="bias")

    def between(self, timestamps, request_times):
        """The bias of positions with each other: float tensor, shape `(batch, num_heads, length, length)`.

        Args:
            timestamps: int64 tensor, shape `(batch, length)`: the second of each item; 0 = unknown.
            request_times: int64 tensor of that shape: the second of the request for the next item; 0 = unknown.
        """
        # [b, i, j] is from item j to request i
        bucket = elapsed_bucket(ops.expand_dims(timestamps, 1), ops.expand_dims(request_times, 2), self.num_buckets)
        bias = ops.take(ops.cast(self.bias, self.compute_dtype), bucket, axis=0)
        return ops.transpose(bias, (0, 3, 1, 2))

    def get_config(self):
        return super().get_config() | {"num_heads": self.num_heads, "num_buckets": self.num_buckets}


@keras.saving.register_keras_serializable("tfrec")
class ElapsedEmbedding(keras.layers.Layer):
    """A learned vector for the time from each item to the request for the next one.

    The softmax of attention sees differences of biases alone. Where the rest of the history lies far back, `TimeBias` cannot tell a
    request a second after the last item from a request a year later; this layer can. Buckets are those of `TimeBias`.
    Source: the time intervals of Time-LSTM (Zhu et al. 2017). Differs from the source: an embedding of the input, no gate;
    starts at zero.

    Args:
        num_buckets: int > 1.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        timestamps, request_times: int tensors; see `TimeBias`.
    Returns:
        `x` plus the vectors.
    """

    def __init__(self, num_buckets: int = 72, **kwargs):
        super().__init__(**kwargs)
        self.num_buckets = num_buckets

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=(self.num_buckets, input_shape[-1]), initializer="zeros", name="vectors")

    def call(self, x, timestamps, request_times):
        bucket = elapsed_bucket(timestamps, request_times, self.num_buckets)
        return x + ops.take(ops.cast(self.vectors, x.dtype), bucket, axis=0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"num_buckets": self.num_buckets}


@keras.saving.register_keras_serializable("tfrec")
class CalendarEmbedding(keras.layers.Layer):
    """Learned vectors for the hour of the day and the weekday of the request for the next item.

    Hours and days are those of UTC; Monday is 0. An unknown time adds nothing.
    Source: the time features of two-tower rankers (Covington et al. 2016, section 3.3, the age of an example). Differs from
    the source: embeddings of the times that repeat by day and week; starts at zero.

    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        request_times: int64 tensor, shape `(batch, length)`: seconds since 1970; 0 = unknown.
    Returns:
        `x` plus the two vectors.
    """

    def build(self, input_shape):
        self.hours = self.add_weight(shape=(24, input_shape[-1]), initializer="zeros", name="hours")
        self.weekdays = self.add_weight(shape=(7, input_shape[-1]), initializer="zeros", name="weekdays")

    def call(self, x, request_times):
        second = ops.cast(
            ops.mod(request_times, 7 * 86_400), "int32"
        )  # of a week that begins on a Thursday, as 1970 did
        moment = ops.take(self.hours, ops.mod(ops.floor_divide(second, 3600), 24), axis=0)
        moment += ops.take(self.weekdays, ops.mod(ops.floor_divide(second, 86_400) + 3, 7), axis=0)
        is_known = ops.expand_dims(request_times > 0, -1)
        return x + ops.where(is_known, ops.cast(moment, x.dtype), 0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape
