"""One vector for a history."""

from __future__ import annotations

from keras import ops

from tfrec.layers.positions import steps_from_newest


def newest(x, is_real):
    """The vector at the newest real position of each row; zeros for a row without one.

    Args:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
    Returns:
        Float tensor, shape `(batch, width)`.
    """
    is_newest = ops.logical_and(is_real, ops.equal(steps_from_newest(is_real), 0))
    return ops.sum(ops.where(ops.expand_dims(is_newest, -1), x, 0), axis=1)
