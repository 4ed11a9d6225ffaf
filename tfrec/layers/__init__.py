"""Keras layers of the towers; `keras.ops` only, so they run on any Keras backend."""

from tfrec.layers.attention import CausalSelfAttention
from tfrec.layers.blocks import GatedBlock, HSTUBlock, TransformerBlock
from tfrec.layers.dropout import Dropout
from tfrec.layers.positions import PositionFromNewest, RelativePositionBias, TimeBias

__all__ = [
    "CausalSelfAttention",
    "Dropout",
    "GatedBlock",
    "HSTUBlock",
    "PositionFromNewest",
    "RelativePositionBias",
    "TimeBias",
    "TransformerBlock",
]
