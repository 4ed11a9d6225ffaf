"""The model: two towers and a loss between them."""

from __future__ import annotations

from typing import Any

import keras

from tfrec.layers.pooling import newest
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower


@keras.saving.register_keras_serializable("tfrec")
class TwoTower(keras.Model):
    """A two-tower retrieval model: queries from histories, candidates from the catalogue, their dot product the score.

    It is trained with `fit` on every position of a history at once, against any loss of `tfrec.models.losses` or
    `tfrec.models.tfrs_task`, given to `compile(loss=...)`.

    Args:
        item_tower: `ItemTower`.
        sequence_tower: `SequenceTower`.
    Call arguments:
        inputs: dict of `history`, int32 `(batch, length)`, oldest first, and `is_real`, bool `(batch, length)`; where rows
            pack several histories, also `end`, int32 `(batch, length)`: see `CausalSelfAttention`; for a
            tower that `reads_times`, `timestamps` and `request_times`, int64 `(batch, length)`: see `TimeBias`.
        vectors: None, or float tensor `(batch, length, width)`: the item vectors of the history, where they are at hand.
    Returns:
        Float tensor, shape `(batch, length, width)`: the query after each position.
    """

    def __init__(self, item_tower: ItemTower, sequence_tower: SequenceTower, **kwargs):
        super().__init__(**kwargs)
        self.item_tower = item_tower
        self.sequence_tower = sequence_tower
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.table_trainer: Any = None
        """A `LazyTableTrainer` takes the place of the training step of Keras, for a large item table."""

    def build(self, input_shape=None):
        if not self.item_tower.built:
            self.item_tower.build()
        if not self.sequence_tower.built:
            self.sequence_tower.build((None, None, self.item_tower.width))

    def build_from_config(self, config):
        self.build()

    @property
    def metrics(self):
        """Keras's own mean of the loss weighs batches by their rows; ours, by their positions, takes its place."""
        return [m for m in super().metrics if m.name != "loss" or m is self.mean_loss]

    def call(self, inputs, vectors=None, training=None):
        vectors = self.item_tower(inputs["history"]) if vectors is None else vectors  # B L D
        others = {name: value for name, value in inputs.items() if name != "history"}
        return self.sequence_tower(vectors, **others, training=training)

    def embed_history(self, inputs, vectors=None):
        """The query after the whole history: float32, shape `(batch, width)`; zeros for an empty one."""
        return keras.ops.cast(newest(self(inputs, vectors, training=False), inputs["is_real"]), "float32")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        total, count = self.loss(y_pred, y, x, self.item_tower)
        loss = total / keras.ops.maximum(count, 1)
        self.mean_loss.update_state(loss, sample_weight=count)
        return loss

    def train_step(self, data):
        if self.table_trainer is None:
            return super().train_step(data)
        inputs, target, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.table_trainer(inputs, target)
        return self.get_metrics_result()

    def predict_step(self, data):
        """What `predict` returns: `embed_history` of each row; where rows pack several histories, every position's query."""
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if "end" in inputs:
            return keras.ops.cast(self(inputs, training=False), "float32")
        return self.embed_history(inputs)

    def get_config(self):
        towers = {"item_tower": self.item_tower, "sequence_tower": self.sequence_tower}
        return super().get_config() | {name: keras.saving.serialize_keras_object(t) for name, t in towers.items()}

    @classmethod
    def from_config(cls, config):
        for name in ("item_tower", "sequence_tower"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
