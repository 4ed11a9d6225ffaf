"""The seam to TensorFlow Recommenders: its `tasks.Retrieval` as a loss for Keras 3 models.

TFRS 0.7.7 is written for Keras 2 and runs on the package tf-keras, which TensorFlow puts in the place of `tf.keras` when
`TF_USE_LEGACY_KERAS=1` stands before `tf.keras` is first touched. Our own code never touches it, so both live in one
process. TFRS is imported here, when first needed, and nowhere else.
"""

from __future__ import annotations

import os
from functools import cached_property
from types import ModuleType

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.losses import RankingLoss, by_time, log_weight, position_weight, times_seen, uniform_items


def import_tfrs() -> ModuleType:
    """`import tensorflow_recommenders`, on Keras 2 beside our Keras 3.

    Raises:
        ImportError: `tf.keras` was already resolved to Keras 3 in this process; the message names the remedy.
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        import tensorflow as tf

        if getattr(tf.keras, "__version__", "2").startswith("3"):
            raise ImportError(
                "TensorFlow Recommenders needs `tf.keras` to be Keras 2, but it was already resolved to "
                "Keras 3 in this process. Set the environment variable TF_USE_LEGACY_KERAS=1 before Python "
                "starts, or write `import keras` instead of `tf.keras`."
            )
        import tensorflow_recommenders

        return tensorflow_recommenders
    finally:
        if before is None:
            del os.environ["TF_USE_LEGACY_KERAS"]
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


@keras.saving.register_keras_serializable("tfrec")
class TfrsRetrieval(RankingLoss):
    """`tfrs.tasks.Retrieval` over in-batch and uniform negatives, corrected for how often each is drawn.

    The candidates of a batch are the targets of all its positions and `num_negatives` items drawn uniformly. A candidate
    equal to a position's own target is an accidental hit and gets no probability. Each logit is lowered by the log of how
    often its item is expected among the candidates (logQ), so that popular items are not punished for standing in every
    batch: with `p` positions, `p * share(item) + num_negatives / num_items`.
    Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling"; the mix with uniform negatives is Yang et al. 2020,
    "Mixed Negative Sampling". Differs from the sources: shares are counted on the training data, not estimated in a stream.

    >>> loss = TfrsRetrieval(item_counts=[5, 1, 3], num_negatives=2)  # for model.compile("adam", loss)

    Args:
        item_counts: ints, shape `(num_items,)`, how often each item is a training target, in index order. They are a weight of
            the loss, which a model saves.
        num_negatives: int >= 0, uniform negatives, drawn anew for each batch and shared by its positions. Default: 1,024.
        temperature: float > 0, logits are divided by it. Default: 1.
        seed: int, seed of the draws. Default: 0.
        seen_weight: float in [0, 1], TFRS takes a mask of candidates and no weights, so a candidate counts for the positions
            that have seen it in this share of the batches, and is left out in the others. Default: 1.
    Raises:
        ValueError: Keras runs on another backend than TensorFlow.
    """

    def __init__(
        self,
        item_counts: ArrayLike,
        num_negatives: int = 1024,
        temperature: float = 1.0,
        seed: int = 0,
        seen_weight: float = 1.0,
        **kwargs,
    ):
        if keras.backend.backend() != "tensorflow":
            raise ValueError("`TfrsRetrieval` runs TensorFlow Recommenders, which needs KERAS_BACKEND=tensorflow.")
        super().__init__(**kwargs)
        counts = np.asarray(item_counts, np.int64)
        initial = keras.initializers.Constant(0)
        self.item_counts = self.add_weight(counts.shape, initial, dtype="int64", trainable=False, name="item_counts")
        self.item_counts.assign(counts)
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.seed = seed
        self.seen_weight = seen_weight
        self.seed_generator = keras.random.SeedGenerator(seed)

    @cached_property
    def _task(self):
        # Keras 3 calls `compute_loss` with autograph off, TFRS needs it on: the task has a tf.function of its own
        import tensorflow as tf

        task = import_tfrs().tasks.Retrieval(temperature=self.temperature, remove_accidental_hits=True)
        return tf.function(
            lambda query, candidates, weight, probability, ids, mask: task(
                query,
                candidates,
                sample_weight=weight,
                candidate_sampling_probability=probability,
                candidate_ids=ids,
                compute_metrics=False,
                compute_batch_metrics=False,
                score_mask=mask,
            )
        )

    def draw(self, num_items):
        """New uniform negatives: int32 item indexes, shape `(num_negatives,)`."""
        return uniform_items(self.num_negatives, num_items, self.seed_generator)

    def __call__(self, query, target, inputs, item_tower, sample_weight=None, negatives=None):
        query, is_real = by_time(ops.cast(query, "float32")), by_time(inputs["is_real"])  # P D, P
        negatives = self.draw(item_tower.num_items) if negatives is None else negatives
        index = ops.concatenate([by_time(target), negatives])  # C = P + negatives
        candidates = item_tower.candidates(index)  # C D
        ids = ops.maximum(item_tower.original(index), FIRST_ITEM_INDEX)
        num_real = ops.sum(ops.cast(is_real, "float32"))
        counts = ops.cast(self.item_counts, "float32")
        share = counts / ops.maximum(ops.sum(counts), 1)
        expected = num_real * ops.take(share, ids - FIRST_ITEM_INDEX) + self.num_negatives / item_tower.num_items
        # a common factor changes no softmax; TFRS clips probabilities to [1e-6, 1]
        probability = expected / ops.max(expected)
        # an item at a padded position is no candidate
        is_candidate = ops.expand_dims(ops.concatenate([is_real, ops.ones((self.num_negatives,), "bool")]), 0)
        if self.seen_weight != 1:
            times = ops.cast(times_seen(inputs, index), "float32")  # P C
            chance = keras.random.uniform((1, ops.shape(index)[0]), seed=self.seed_generator)
            is_own = ops.expand_dims(by_time(target), 1) == index
            is_candidate &= is_own | (ops.log(chance) < log_weight(self.seen_weight) * times)
        weight = by_time(position_weight(inputs, sample_weight))
        total = self._task(query, candidates, weight, probability, ids, is_candidate)
        return total, ops.sum(weight)

    def get_config(self):
        return super().get_config() | {
            "num_items": self.item_counts.shape[0],
            "num_negatives": self.num_negatives,
            "temperature": self.temperature,
            "seed": self.seed,
            "seen_weight": self.seen_weight,
        }

    @classmethod
    def from_config(cls, config):
        others = {name: value for name, value in config.items() if name not in ("num_items", "item_counts")}
        # The counts come with the weights of the model; files of tfrec 0.1 have them in the config.
        return cls(config.get("item_counts", np.zeros(config.get("num_items", 0))), **others)
