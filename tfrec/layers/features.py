"""Features of items, events, users and requests as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers.dropout import random_keep

FIRST_VALUE = 2
"""Encoded categories: 0 is missing, 1 unknown, and the known values follow."""
STDDEV = 0.02
"""Standard deviation of the first values: small beside what a feature is added to."""


@keras.saving.register_keras_serializable("tfrec")
class CategoryEmbedding(keras.layers.Layer):
    """Embeds a category; of several values the mean. Missing ones give zeros.

    >>> import numpy as np
    >>> CategoryEmbedding(num_values=3, width=4)(np.array([0, 2, 4])).shape
    TensorShape([3, 4])

    Args:
        num_values: int >= 0, known values.
        width: int > 0, width of the vectors.
        is_multi: bool, whether the last axis holds the values of one feature. Default: False.
    Call arguments:
        x: int tensor, shape `(...,)` or `(..., values)`: 0 is missing, 1 unknown, `2 + i` the known value `i`.
    Returns:
        Float tensor, shape `(..., width)`.
    """

    def __init__(self, num_values: int, width: int, is_multi: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.num_values = num_values
        self.width = width
        self.is_multi = is_multi

    def build(self, input_shape=None):
        initializer = keras.initializers.RandomNormal(stddev=STDDEV)
        self.table = self.add_weight((self.num_values + FIRST_VALUE, self.width), initializer, name="table")

    def call(self, x):
        x = ops.cast(x, "int32")
        is_given = ops.expand_dims(x > 0, -1)
        vectors = ops.where(is_given, ops.take(ops.cast(self.table, self.compute_dtype), x, axis=0), 0)
        if not self.is_multi:
            return vectors
        number = ops.sum(ops.cast(is_given, vectors.dtype), axis=-2)
        return ops.sum(vectors, axis=-2) / ops.maximum(number, 1)

    def compute_output_shape(self, input_shape):
        return (*(input_shape[:-1] if self.is_multi else input_shape), self.width)

    def get_config(self):
        own = {"num_values": self.num_values, "width": self.width, "is_multi": self.is_multi}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfrec")
class NumberEmbedding(keras.layers.Layer):
    """Embeds a number: a learned direction times the standardised number; a learned vector where it is missing.

    >>> import numpy as np
    >>> NumberEmbedding(width=4, mean=2000, stddev=10)(np.array([1994.0, np.nan])).shape
    TensorShape([2, 4])

    Args:
        width: int > 0, width of the vectors.
        mean, stddev: float, of the numbers, on the scale that is read. Default: 0 and 1.
        is_log: bool, whether `sign(x) log(1 + |x|)` is read in place of `x`. Default: False.
    Call arguments:
        x: float tensor, shape `(...,)`; NaN is missing.
    Returns:
        Float tensor, shape `(..., width)`.
    """

    def __init__(self, width: int, mean: float = 0.0, stddev: float = 1.0, is_log: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)  # float16 does not hold every number
        self.width = width
        self.mean = mean
        self.stddev = stddev
        self.is_log = is_log

    def build(self, input_shape=None):
        initializer = keras.initializers.RandomNormal(stddev=STDDEV)
        self.direction = self.add_weight((self.width,), initializer, name="direction")
        self.missing = self.add_weight((self.width,), "zeros", name="missing")

    def call(self, x):
        x = ops.cast(x, "float32")
        is_given = ops.equal(x, x)
        x = ops.where(is_given, x, self.mean)
        if self.is_log:
            x = ops.sign(x) * ops.log(1 + ops.abs(x))
        x = ops.clip((x - self.mean) / self.stddev, -5.0, 5.0)
        x, is_given = (ops.expand_dims(ops.cast(v, self.compute_dtype), -1) for v in (x, is_given))
        direction, missing = (ops.cast(w, self.compute_dtype) for w in (self.direction, self.missing))
        return is_given * x * direction + (1 - is_given) * missing

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.width)

    def get_config(self):
        own = {"width": self.width, "mean": self.mean, "stddev": self.stddev, "is_log": self.is_log}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfrec")
class FeatureEmbedding(keras.layers.Layer):
    """Embeds several features: the sum of a vector for each, and what a residual MLP makes of it.

    >>> import numpy as np
    >>> embed = FeatureEmbedding({"genre": {"kind": "category", "num_values": 3}, "year": {"kind": "number"}}, width=4)
    >>> embed({"genre": np.array([2, 0]), "year": np.array([1994.0, np.nan])}).shape
    TensorShape([2, 4])

    Args:
        features: dict, what each feature is, by name: `{"kind": "category" or "multi", "num_values": int}`, see
            `CategoryEmbedding`; `{"kind": "number", "mean": float, "stddev": float, "is_log": bool}`, see `NumberEmbedding`; or
            `{"kind": "vector", "width": int}`, a linear map.
        width: int > 0, width of the result.
        hidden_dims: ints, hidden widths of the MLP (GELU). Default: no MLP.
    Call arguments:
        x: dict of tensors by the name of the feature: int or float, shape `(...,)`; `multi` and `vector` have one axis more.
    Returns:
        Float tensor, shape `(..., width)`.
    """

    def __init__(
        self, features: Mapping[str, Mapping[str, Any]], width: int, hidden_dims: Sequence[int] = (), **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        self.features = {name: dict(spec) for name, spec in features.items()}
        self.width = width
        self.hidden_dims = list(hidden_dims)
        own = {"dtype": self.dtype_policy}
        self.embeddings = [self._embedding(**spec, **own) for spec in self.features.values()]
        self.mlp = [keras.layers.Dense(dim, activation="gelu", **own) for dim in self.hidden_dims]
        if self.mlp:
            self.mlp.append(keras.layers.Dense(width, **own))

    def _embedding(self, kind: str, num_values: int = 0, width: int = 0, dtype=None, **number) -> keras.layers.Layer:
        if kind in ("category", "multi"):
            return CategoryEmbedding(num_values, self.width, kind == "multi", dtype=dtype)
        if kind == "number":
            return NumberEmbedding(self.width, dtype=dtype, **number)
        if kind == "vector":
            initializer = keras.initializers.RandomNormal(stddev=STDDEV)
            return keras.layers.Dense(self.width, use_bias=False, kernel_initializer=initializer, dtype=dtype)
        raise ValueError(f"A feature's `kind` must be category, multi, number or vector. Received: {kind!r}.")

    def build(self, input_shape=None):
        for embedding, spec in zip(self.embeddings, self.features.values(), strict=True):
            embedding.build((None, spec["width"]) if spec["kind"] == "vector" else (None,))
        dim = self.width
        for layer in self.mlp:
            layer.build((None, dim))
            dim = layer.units

    def call(self, x):
        parts = [embed(x[name]) for name, embed in zip(self.features, self.embeddings, strict=True)]
        total = sum(parts[1:], parts[0])
        h = total
        for layer in self.mlp:
            h = layer(h)
        return total + h if self.mlp else total

    def compute_output_shape(self, input_shape):
        name, spec = next(iter(self.features.items()))
        rows = input_shape[name][:-1] if spec["kind"] in ("multi", "vector") else input_shape[name]
        return (*rows, self.width)

    def get_config(self):
        own = {"features": self.features, "width": self.width, "hidden_dims": self.hidden_dims}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfrec")
class FeatureDropout(keras.layers.Layer):
    """Hides values of features at random while training: they are missing, so that a model learns to do without them.

    A value is hidden with all of its row, as in a request that leaves a feature out, or alone. In a row whose values are hidden, a
    few are shown: a request may know its device, and nothing of the devices before. Each feature has rows of its own.

    >>> import numpy as np
    >>> layer = FeatureDropout({"device": {"kind": "category", "num_values": 3}}, rate=0.5, seed=1)
    >>> values = {"device": np.full((4, 6), 2)}
    >>> np.array(layer(values)["device"] == 0).any(), np.array(layer(values, training=True)["device"] == 0).any()
    (np.False_, np.True_)

    Args:
        features: dict, what each feature is, by name; see `FeatureEmbedding`.
        rate: float in [0, 1), share of the rows that hide a feature, and of the values that differ from their row. In all,
            `2 * rate * (1 - rate)` of the values are hidden.
        seed: int. Default: drawn from Keras's global seed.
    Call arguments:
        x: dict of tensors by the name of the feature: int or float, shape `(batch, length)`; `multi` and `vector` have an axis
            more.
    Returns:
        The dict, with 0 for hidden categories and vectors, NaN for hidden numbers. Features that are not named stay as they are.
    """

    def __init__(self, features: Mapping[str, Mapping[str, Any]], rate: float, seed: int | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # float16 does not hold every number
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}.")
        self.features = {name: dict(spec) for name, spec in features.items()}
        self.rate = rate
        self.seed = seed
        if rate and features:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, x, training=None):
        if not (training and self.rate and self.features):
            return x
        batch, length = ops.shape(x[next(iter(self.features))])[:2]
        of_rows, of_values = (
            random_keep((len(self.features), batch, number), 1 - self.rate, self._next_seed()) for number in (1, length)
        )
        is_shown = ops.equal(of_rows, of_values)
        shown = {name: self._show(spec, x[name], is_shown[i]) for i, (name, spec) in enumerate(self.features.items())}
        return {**x, **shown}

    def _next_seed(self):
        return ops.cast(self.seed_generator.next(), "uint32")

    def _show(self, spec, values, is_shown):
        if spec["kind"] == "number":
            return ops.where(is_shown, ops.cast(values, "float32"), float("nan"))
        has_more = spec["kind"] in ("multi", "vector")
        return ops.where(ops.expand_dims(is_shown, -1) if has_more else is_shown, values, 0)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"features": self.features, "rate": self.rate, "seed": self.seed}
