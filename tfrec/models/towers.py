"""The contract of a tower: what a sequence tower and an item tower of your own must offer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.normalization import l2_normalize


class AbstractSequenceTower(keras.layers.Layer):
    """The base of a sequence tower: reads item vectors and returns the query after each position.

    A subclass sets `max_length` in its constructor and implements `call(x, is_real, training=None)`. Register it with
    `@keras.saving.register_keras_serializable` and give it a `get_config`, so that a run can rebuild it.

    >>> import numpy as np
    >>> class LastItem(AbstractSequenceTower):
    ...     def __init__(self, max_length, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.max_length = max_length
    ...     def call(self, x, is_real, training=None):
    ...         return x * ops.expand_dims(ops.cast(is_real, x.dtype), -1)
    >>> LastItem(max_length=10)(np.ones((1, 2, 3)), is_real=np.array([[False, True]])).shape
    TensorShape([1, 2, 3])

    Attributes:
        max_length: int, the newest items of a history that the tower reads.
        reads_times: bool, whether `call` takes `timestamps` and `request_times`; see `TimeBias`. Default: False.
        reads_events: bool, whether `call` takes `events`; see `SequenceTower`. Default: False.
        reads_context: bool, whether `call` takes `context`; see `SequenceTower`. Default: False.
        event_features, context_features: dicts by the names of the features that it reads. `TwoTower.export` names inputs by
            them. Default: none.
        supports_packing: bool, whether `call` takes `end` and keeps the histories of a row apart; see `CausalSelfAttention`.
            Otherwise each history gets a row of its own. Default: False.
        has_attention: bool, whether there is an `attention_weights`, which `Run.attention` asks. Default: False.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`: item vectors, oldest first; `length` is at most `max_length`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding, on the left.
    Returns:
        Float tensor, shape of `x`: the query after each position. A position must not see later ones.
    """

    max_length: int
    reads_times: bool = False
    reads_events: bool = False
    reads_context: bool = False
    event_features: Mapping[str, Any] = {}
    context_features: Mapping[str, Any] = {}
    supports_packing: bool = False
    has_attention: bool = False

    @property
    def reads_features(self) -> bool:
        """Whether `call` takes `events` or `context`."""
        return self.reads_events or self.reads_context

    def call(self, x, is_real, training=None):
        raise NotImplementedError(
            f"{type(self).__name__} needs `call(x, is_real, training=None)`: a query after each position."
        )

    def attention_weights(self, x, is_real, **others) -> list:
        """The weights of every layer of attention.

        Args:
            x, is_real, others: the call arguments of the tower.
        Returns:
            A float tensor for each layer, shape `(batch, heads, length, length)`: how much of each column a row takes.
        Raises:
            ValueError: the tower has none.
        """
        raise ValueError(f"{type(self).__name__} has no attention weights: it has no method `attention_weights`.")

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape


class AbstractItemTower(keras.layers.Layer):
    """The base of an item tower: embeds items, for histories to read and for queries to rank.

    A subclass sets `num_items` and `width` in its constructor and implements `call(item_index)`.

    >>> import numpy as np
    >>> class OneHot(AbstractItemTower):
    ...     def __init__(self, num_items, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.num_items = self.width = num_items
    ...     def call(self, item_index):
    ...         return ops.one_hot(item_index - FIRST_ITEM_INDEX, self.num_items)
    >>> OneHot(3).catalogue().shape
    TensorShape([3, 3])

    Attributes:
        num_items: int, size of the catalogue, without padding and unknown.
        width: int, width of the vectors.
        normalize: bool, whether candidates are L2-normalised, so that scores are cosines. Default: False.
    Call arguments:
        item_index: int tensor, any shape: `PAD_INDEX`, `OOV_INDEX` or `FIRST_ITEM_INDEX + i`.
    Returns:
        Float tensor, shape `(*item_index.shape, width)`: the vectors that histories read.
    """

    num_items: int
    width: int
    normalize: bool = False

    def call(self, item_index):
        raise NotImplementedError(f"{type(self).__name__} needs `call(item_index)`: the vectors of items.")

    def as_candidates(self, x):
        """Vectors in the form that queries are compared with: float32, L2-normalised with `normalize`."""
        x = ops.cast(x, "float32")
        return l2_normalize(x) if self.normalize else x

    def candidates(self, item_index):
        """The vectors that queries are compared with: float32 tensor, shape `(*item_index.shape, width)`."""
        return self.as_candidates(self(item_index))

    def in_training(self):
        """The tower as the loss of a training step sees it. Default: as it is."""
        return self

    def catalogue(self):
        """Every candidate: float32 tensor, shape `(num_items, width)`; row `i` has item index `i + FIRST_ITEM_INDEX`."""
        return self.candidates(ops.arange(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + self.num_items, dtype="int32"))

    def original(self, item_index):
        """The item indexes in the catalogue; a view of some rows has its own."""
        return item_index

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.width)


def check_towers(item_tower, sequence_tower) -> None:
    """Raise for the first thing that a tower lacks.

    Raises:
        TypeError: a tower does not follow the contract; the message names the tower, the rule and the remedy.
    """
    for tower, base, numbers in (
        (item_tower, AbstractItemTower, ("num_items", "width")),
        (sequence_tower, AbstractSequenceTower, ("max_length",)),
    ):
        name = type(tower).__name__
        if not isinstance(tower, base):
            raise TypeError(f"A tower must derive from `tfrec.{base.__name__}`. Received: {name}.")
        for number in numbers:
            value = getattr(tower, number, None)
            if not isinstance(value, int) or value < 1:
                raise TypeError(
                    f"`{name}.{number}` must be an int above 0, set in the constructor. Received: {value!r}."
                )
    needed = ["is_real", *(["end"] if sequence_tower.supports_packing else [])]
    needed += ["timestamps", "request_times"] if sequence_tower.reads_times else []
    needed += ["events"] if sequence_tower.reads_events else []
    needed += ["context"] if sequence_tower.reads_context else []
    taken = inspect.signature(sequence_tower.call).parameters
    for argument in needed:
        if argument not in taken:
            raise TypeError(f"`{type(sequence_tower).__name__}.call` must take the argument `{argument}`.")
