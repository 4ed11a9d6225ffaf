"""What a query is trained against. A loss is called with the queries, their targets, and the item tower.

loss(query, target, is_real, item_tower) -> (sum over real positions, number of real positions)

query    float (batch, length, width)     target   int (batch, length), item indexes
is_real  bool  (batch, length)            True = the position has a target
"""

from __future__ import annotations

import keras
from keras import ops

from tfrec.vocabulary import FIRST_ITEM_INDEX


@keras.saving.register_keras_serializable("tfrec")
class FullSoftmax:
    """Cross-entropy over the whole catalogue: every item but the target is a negative.

    Source: the loss of GRU4Rec (Hidasi et al. 2016) and of "Turning Dross Into Gold" (Klenitskiy & Vasilev 2023), which
    shows it lifts SASRec above BERT4Rec. Differs from the sources: none known.

    Args:
        temperature: float > 0: logits are divided by it.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def __call__(self, query, target, is_real, item_tower):
        query = ops.reshape(ops.cast(query, "float32"), (-1, query.shape[-1])) / self.temperature  # P D
        is_real = ops.reshape(is_real, (-1,))
        logits = ops.matmul(query, ops.transpose(item_tower.catalogue()))  # P N
        label = ops.where(is_real, ops.reshape(target, (-1,)) - FIRST_ITEM_INDEX, 0)
        loss = ops.logsumexp(logits, axis=-1) - ops.squeeze(
            ops.take_along_axis(logits, ops.expand_dims(label, -1), axis=-1), -1
        )
        return ops.sum(ops.where(is_real, loss, 0)), ops.sum(ops.cast(is_real, "float32"))

    def get_config(self):
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
