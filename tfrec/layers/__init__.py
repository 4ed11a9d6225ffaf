"""Keras layers of the towers; `keras.ops` only, so they run on any Keras backend."""

from tfrec.layers.attention import CausalSelfAttention
from tfrec.layers.blocks import TransformerBlock
from tfrec.layers.dropout import Dropout
from tfrec.layers.positions import PositionFromNewest

__all__ = ["CausalSelfAttention", "Dropout", "PositionFromNewest", "TransformerBlock"]
