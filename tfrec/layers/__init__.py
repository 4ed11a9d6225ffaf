"""Keras layers of the towers; `keras.ops` only, so they run on any Keras backend."""

from tfrec.layers.attention import CausalSelfAttention
from tfrec.layers.blocks import GatedBlock, HSTUBlock, TransformerBlock
from tfrec.layers.dropout import Dropout
from tfrec.layers.features import CategoryEmbedding, FeatureDropout, FeatureEmbedding, NumberEmbedding
from tfrec.layers.positions import (
    CalendarEmbedding,
    ElapsedEmbedding,
    PositionFromNewest,
    RelativePositionBias,
    TimeBias,
)
from tfrec.layers.recurrent import AdditiveAttention, RecurrentBlock

__all__ = [
    "AdditiveAttention",
    "CalendarEmbedding",
    "CategoryEmbedding",
    "CausalSelfAttention",
    "Dropout",
    "ElapsedEmbedding",
    "FeatureDropout",
    "FeatureEmbedding",
    "GatedBlock",
    "HSTUBlock",
    "NumberEmbedding",
    "PositionFromNewest",
    "RecurrentBlock",
    "RelativePositionBias",
    "TimeBias",
    "TransformerBlock",
]
