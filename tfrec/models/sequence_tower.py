"""The sequence tower reads a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers.blocks import GatedBlock, HSTUBlock, TransformerBlock
from tfrec.layers.dropout import Dropout
from tfrec.layers.features import FeatureDropout, FeatureEmbedding
from tfrec.layers.normalization import l2_normalize
from tfrec.layers.positions import (
    CalendarEmbedding,
    ElapsedEmbedding,
    PositionFromNewest,
    RelativePositionBias,
    TimeBias,
)
from tfrec.layers.recurrent import CELLS, RecurrentBlock
from tfrec.models.towers import AbstractSequenceTower

BLOCKS = ("transformer", "gated", "hstu", *CELLS)
POSITIONS = ("absolute", "relative", "rotary")


@keras.saving.register_keras_serializable("tfrec")
class SequenceTower(AbstractSequenceTower):
    """Reads a history of item vectors with causal self-attention; each position becomes a query for the next item.

    Source: SASRec, Kang & McAuley 2018, is `block="transformer"`, `positions=["absolute"]`. Differs from the source: pre-LN
    blocks, positions counted from the newest item. eSASRec is `block="gated"`, HSTU is `block="hstu"`,
    `positions=["relative"]`; NARM is `block="gru"`, `positions=[]`.

    >>> import numpy as np
    >>> tower = SequenceTower(max_length=5, num_heads=1)
    >>> tower(np.ones((1, 2, 4)), is_real=np.array([[True, True]])).shape
    TensorShape([1, 2, 4])

    Args:
        max_length: int > 0, the newest items of a history that are read.
        num_blocks: int >= 0. Default: 2.
        num_heads: int > 0; must divide the width of the item vectors. Default: 2.
        hidden_dim: int > 0, width of the feed-forward layers. Default: four times the width of the item vectors.
        dropout_rate: float in [0, 1). Default: 0.2.
        block: `"transformer"` (`TransformerBlock`), `"gated"` (`GatedBlock`), `"hstu"` (`HSTUBlock`), or, to compare with,
            `"gru"` and `"lstm"` (`RecurrentBlock`). The last three have no feed-forward layer.
        positions: encodings of the order of items, any of `"absolute"` (`PositionFromNewest`), `"relative"`
            (`RelativePositionBias`) and `"rotary"` (`rotate`). Default: `("absolute",)`.
        attention_window: int > 0, the number of newest positions up to itself that a position sees, at a cost linear in the
            length. Default: all.
        time_bias: bool, whether attention knows the age of each item (`TimeBias`), and each position the time until the next
            request (`ElapsedEmbedding`). Default: False.
        calendar: bool, whether the tower knows hour and weekday of the request (`CalendarEmbedding`). Default: False.
        attention_dropout_rate: float in [0, 1), dropout of the attention weights. Default: `dropout_rate`.
        mask_rate: float in [0, 1), share of a history's items that training hides. Default: 0.
        normalize: bool, whether queries are L2-normalised. Default: False.
        event_features: dict, what is known of each event of a history, by name: what `FeatureEmbedding` takes. Default: none.
        context_features: dict, what is known of the request for each next item, such as its device. Default: none.
        feature_dropout_rate: float in [0, 1), how much of both training hides; see `FeatureDropout`. Default: 0.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`: item vectors, oldest first.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: int tensor, for rows that pack several histories; see `CausalSelfAttention`.
        timestamps, request_times: int tensors, for a tower that reads times; see `TimeBias`.
        events: dict of tensors by name, shape `(batch, length)`: the event features of each item.
        context: dict of tensors by name, shape `(batch, length)`: the context of the request after each item.
        newest_only: bool, return the query after the last column alone, for less work in the last block. Default: False.
    Returns:
        Float tensor, shape of `x`: the query after each position; zeros at padding. With `newest_only`, `(batch, 1, width)`.
    """

    supports_packing = True

    def __init__(
        self,
        max_length: int,
        num_blocks: int = 2,
        num_heads: int = 2,
        hidden_dim: int | None = None,
        dropout_rate: float = 0.2,
        block: str = "transformer",
        positions: Sequence[str] = ("absolute",),
        attention_window: int | None = None,
        time_bias: bool = False,
        calendar: bool = False,
        attention_dropout_rate: float | None = None,
        mask_rate: float = 0.0,
        normalize: bool = False,
        event_features: Mapping[str, Mapping[str, Any]] | None = None,
        context_features: Mapping[str, Mapping[str, Any]] | None = None,
        feature_dropout_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # float16 does not hold every number of a feature
        if block not in BLOCKS:
            raise ValueError(f"`block` must be one of {', '.join(BLOCKS)}. Received: {block!r}.")
        if unknown := set(positions) - set(POSITIONS):
            raise ValueError(f"`positions` may hold {', '.join(POSITIONS)}. Received: {', '.join(sorted(unknown))}.")
        if attention_window and time_bias:
            raise ValueError("`time_bias` needs every pair of positions; leave out `attention_window`.")
        if block in CELLS and (attention_window or "rotary" in positions):
            raise ValueError(f"`block={block}` has neither an `attention_window` nor rotary positions; leave them out.")
        self.max_length = max_length
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout_rate = dropout_rate
        self.block = block
        self.positions = list(positions)
        self.attention_window = attention_window
        self.time_bias = time_bias
        self.calendar = calendar
        self.attention_dropout_rate = attention_dropout_rate
        self.mask_rate = mask_rate
        self.normalize = normalize
        self.event_features = {name: dict(spec) for name, spec in (event_features or {}).items()}
        self.context_features = {name: dict(spec) for name, spec in (context_features or {}).items()}
        self.feature_dropout_rate = feature_dropout_rate
        own = {"dtype": self.dtype_policy}
        self.hide_events = FeatureDropout(self.event_features, feature_dropout_rate, **own)
        self.hide_context = FeatureDropout(self.context_features, feature_dropout_rate, **own)
        self.mask = Dropout(mask_rate, whole_vectors=True, **own)
        self.position = PositionFromNewest(max_length, **own) if "absolute" in positions else None
        self.elapsed = ElapsedEmbedding(**own) if time_bias else None
        self.moment = CalendarEmbedding(**own) if calendar else None
        self.dropout = Dropout(dropout_rate, **own)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)

    def build(self, input_shape):
        own: dict[str, Any] = {"dtype": self.dtype_policy}
        self.blocks = [self._block(input_shape[-1], name=f"block_{i}", **own) for i in range(self.num_blocks)]
        self.distances: list[Any] = [
            RelativePositionBias(self.num_heads, self.max_length, name=f"distance_{i}", **own)
            for i in range(self.num_blocks if "relative" in self.positions else 0)
        ]
        self.times: list[Any] = [
            TimeBias(self.num_heads, name=f"time_{i}", **own) for i in range(self.num_blocks if self.time_bias else 0)
        ]
        self.event, self.context = (
            FeatureEmbedding(specs, input_shape[-1], name=name, **own) if specs else None
            for name, specs in (("event", self.event_features), ("context", self.context_features))
        )
        for layer in filter(
            None, (self.event, self.context, self.position, self.elapsed, self.moment, *self.blocks, self.norm)
        ):
            layer.build(input_shape)
        for bias in (*self.distances, *self.times):
            bias.build(None)

    def _block(self, width: int, **own) -> keras.layers.Layer:
        """A new block for vectors of `width`."""
        if self.block in CELLS:
            return RecurrentBlock(self.block, self.dropout_rate, **own)
        attention: dict[str, Any] = {"rotary": "rotary" in self.positions, "window": self.attention_window}
        if self.block == "hstu":
            return HSTUBlock(self.num_heads, self.max_length, self.dropout_rate, **attention, **own)
        kind = GatedBlock if self.block == "gated" else TransformerBlock
        attention["attention_dropout_rate"] = self.attention_dropout_rate
        return kind(self.num_heads, self.hidden_dim or 4 * width, self.dropout_rate, **attention, **own)

    @property
    def reads_times(self) -> bool:  # type: ignore[override]
        """Whether `call` needs `timestamps` and `request_times`."""
        return self.time_bias or self.calendar

    @property
    def reads_events(self) -> bool:  # type: ignore[override]
        """Whether `call` needs `events`."""
        return bool(self.event_features)

    @property
    def reads_context(self) -> bool:  # type: ignore[override]
        """Whether `call` needs `context`."""
        return bool(self.context_features)

    @property
    def has_attention(self) -> bool:  # type: ignore[override]
        """Whether the blocks have attention heads."""
        return self.num_blocks > 0 and self.block not in CELLS

    def _bias(self, block: int, length, is_packed: bool, timestamps, request_times, newest_only: bool = False):
        """The bias that block number `block` adds to the logits of its attention, or None; of the last row with `newest_only`."""
        window, bias = self.attention_window, None
        if self.distances:
            of_distance = self.distances[block].between(2 * window if window else length, by_gather=is_packed)
            bias = ops.expand_dims(of_distance[:, window or (length - 1 if newest_only else 0) :], 0)
        if self.times:
            of_time = self.times[block].between(timestamps, request_times[:, -1:] if newest_only else request_times)
            bias = of_time if bias is None else bias + of_time
        return bias

    def _read(self, x, is_real, end, timestamps, request_times, events, context, training=None):
        """The vectors that the first block reads."""
        if self.reads_times and timestamps is None:
            raise ValueError("`time_bias` and `calendar` need `timestamps` and `request_times`.")
        for name, wanted, given in (
            ("events", self.event_features, events),
            ("context", self.context_features, context),
        ):
            if lacking := sorted(set(wanted) - set(given or {})):
                raise ValueError(f"The model reads the feature {lacking[0]!r}: pass its values in `{name}`.")
        x = ops.cast(x, self.compute_dtype)
        if self.event:
            x = x + self.event(self.hide_events(events, training=training))
        x = self.mask(x, training=training)  # an item and what happened to it
        if self.position:
            x = self.position(x, is_real, end)  # B L D
        if self.elapsed:
            x = self.elapsed(x, timestamps, request_times)
        if self.moment:
            x = self.moment(x, request_times)
        if self.context:
            x = x + self.context(self.hide_context(context, training=training))
        return self.dropout(x, training=training)

    def call(  # type: ignore[override]
        self,
        x,
        is_real,
        end=None,
        timestamps=None,
        request_times=None,
        events=None,
        context=None,
        newest_only=False,
        training=None,
    ):
        x = self._read(x, is_real, end, timestamps, request_times, events, context, training)
        for i, block in enumerate(self.blocks):
            is_last = newest_only and i == self.num_blocks - 1 and self.block not in CELLS
            bias = self._bias(i, ops.shape(x)[1], end is not None, timestamps, request_times, is_last)
            own = {"newest_only": True} if is_last else {}
            x = block(x, is_real, end, bias, training=training, **own)
        if newest_only:
            x, is_real = x[:, -1:], is_real[:, -1:]
        x = self.norm(x)
        if self.normalize:
            x = l2_normalize(x)
        return ops.where(ops.expand_dims(is_real, -1), x, 0)

    def attention_weights(  # type: ignore[override]
        self, x, is_real, end=None, timestamps=None, request_times=None, events=None, context=None
    ) -> list:
        if not self.has_attention:
            raise ValueError(
                f"Only transformer, gated and hstu blocks have attention weights for each head. The tower has "
                f"{self.num_blocks} of `block={self.block}`."
            )
        x = self._read(x, is_real, end, timestamps, request_times, events, context)
        weights = []
        for i, block in enumerate(self.blocks):
            bias = self._bias(i, ops.shape(x)[1], end is not None, timestamps, request_times)
            weights.append(block.attention_weights(x, is_real, end, bias))
            x = block(x, is_real, end, bias)
        return weights

    def get_config(self):
        own = {
            "max_length": self.max_length,
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "dropout_rate": self.dropout_rate,
            "block": self.block,
            "positions": self.positions,
            "attention_window": self.attention_window,
            "time_bias": self.time_bias,
            "calendar": self.calendar,
            "attention_dropout_rate": self.attention_dropout_rate,
            "mask_rate": self.mask_rate,
            "normalize": self.normalize,
            "event_features": self.event_features,
            "context_features": self.context_features,
            "feature_dropout_rate": self.feature_dropout_rate,
        }
        return super().get_config() | own
