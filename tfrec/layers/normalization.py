"""Vectors of unit length."""

from __future__ import annotations

from keras import ops


def l2_normalize(x):
    """L2-normalise the vectors of the last axis; zeros stay zeros, with a gradient of zero, not NaN.

    >>> import numpy as np
    >>> np.array(l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]], "float32"))).round(1)
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    return x * inverse_norm(x)


def inverse_norm(x):
    """What `l2_normalize` multiplies the vectors of the last axis by, which stays with the size 1."""
    return ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))
