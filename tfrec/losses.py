"""What a query is trained against. A loss is called with the queries, their targets, and the item tower.

loss(query, target, is_real, item_tower) -> (sum over real positions, number of real positions)

query    float (batch, length, width)     target   int (batch, length), item indexes
is_real  bool  (batch, length)            True = the position has a target
"""

from __future__ import annotations

import math

import keras
from keras import ops

from tfrec.vocabulary import FIRST_ITEM_INDEX

LOGITS_BYTES = 4 << 20
"""About how much a block of logits takes: what fits a core's share of the last cache level."""
SMALLEST_BLOCK = 128
"""Positions of a block for however many items: fewer make slow matrix products. A loss never holds more logits than these."""


def softmax_cross_entropy(query, items, label, weight, label_smoothing=0.0):
    """Weighted sum of `-log softmax(query @ items.T)[label]`, without ever holding all logits.

    The gradient is made in the forward pass: a block of positions at a time computes its logits, what they contribute to the
    gradients of `query` and `items`, and forgets them. Three matrix products as without blocks, no recomputation, and
    memory for one block.
    Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", and Liger Kernel's fused linear
    cross-entropy. Differs from the sources: plain `keras.ops`, blocks of positions only.

    Args:
        query: float32 tensor, shape `(positions, width)`.
        items: float32 tensor, shape `(num_items, width)`.
        label: int tensor, shape `(positions,)`: rows of `items`.
        weight: float32 tensor, shape `(positions,)`; 0 leaves a position out.
        label_smoothing: float in [0, 1): this share of each target is spread evenly over all items.
    Returns:
        Float32 scalar tensor.
    """
    num_items, width = items.shape
    num_positions = ops.shape(query)[0]
    size = max(SMALLEST_BLOCK, LOGITS_BYTES // (4 * num_items))

    @ops.custom_gradient
    def fused(query, items):
        num_blocks = (num_positions + size - 1) // size
        padding = num_blocks * size - num_positions
        queries = ops.pad(query, [[0, padding], [0, 0]])  # P D
        weights = ops.pad(weight, [[0, padding]])
        items_by_width = ops.transpose(items)  # D N

        def block(i, total, d_query, d_items):
            q = ops.slice(queries, (i * size, 0), (size, width))  # R D
            w = ops.slice(weights, (i * size,), (size,))
            # a column for each position: sums over items then run along contiguous positions, which vectorises
            logits = ops.matmul(items, ops.transpose(q))  # N R
            highest = ops.max(logits, axis=0)
            powers = ops.exp(logits - highest)
            sums = ops.sum(powers, axis=0)  # R
            share = w / sums
            total += ops.sum(w * (ops.log(sums) + highest))
            d_query = ops.slice_update(d_query, (0, i * size), ops.matmul(items_by_width, powers) * share)  # D P
            d_items += ops.matmul(powers, q * ops.expand_dims(share, -1))  # N D
            return i + 1, total, d_query, d_items

        start = (0, ops.zeros(()), ops.zeros_like(ops.transpose(queries)), ops.zeros_like(items))
        _, total, d_query, d_items = ops.while_loop(lambda i, *_: i < num_blocks, block, start)
        # the label's own logit: its part of the loss and of the gradients
        weighted = (1 - label_smoothing) * ops.expand_dims(weight, -1)
        own = weighted * ops.take(items, label, axis=0)  # P D
        d_items -= ops.segment_sum(weighted * query, label, num_segments=num_items)
        if label_smoothing:
            spread = label_smoothing * ops.expand_dims(weight, -1)
            own += spread * ops.mean(items, axis=0)
            d_items -= ops.sum(spread * query, axis=0) / num_items
        total -= ops.sum(own * query)
        d_query = ops.transpose(d_query)[:num_positions] - own

        def grad(*args, upstream=None):
            upstream = args[-1] if upstream is None else upstream
            return upstream * d_query, upstream * d_items

        return total, grad

    return fused(query, items)


def uniform_items(number, num_items, seed_generator):
    """Item indexes drawn uniformly, with replacement: int32 tensor, shape `(number,)`."""
    last = num_items + FIRST_ITEM_INDEX
    return keras.random.randint((number,), FIRST_ITEM_INDEX, last, seed=seed_generator)


@keras.saving.register_keras_serializable("tfrec")
class FullSoftmax:
    """Cross-entropy over the whole catalogue: every item but the target is a negative.

    Source: the loss of GRU4Rec (Hidasi et al. 2016) and of "Turning Dross Into Gold" (Klenitskiy & Vasilev 2023), which
    shows it lifts SASRec above BERT4Rec. Differs from the sources: none known; computed by `softmax_cross_entropy`.

    Args:
        temperature: float > 0: logits are divided by it.
        label_smoothing: float in [0, 1): this share of each target is spread evenly over all items.
    """

    def __init__(self, temperature: float = 1.0, label_smoothing: float = 0.0):
        self.temperature = temperature
        self.label_smoothing = label_smoothing

    def __call__(self, query, target, is_real, item_tower):
        query = ops.reshape(ops.cast(query, "float32"), (-1, query.shape[-1])) / self.temperature  # P D
        weight = ops.cast(ops.reshape(is_real, (-1,)), "float32")
        label = ops.maximum(ops.reshape(target, (-1,)) - FIRST_ITEM_INDEX, 0)
        total = softmax_cross_entropy(query, item_tower.catalogue(), label, weight, self.label_smoothing)
        return total, ops.sum(weight)

    def get_config(self):
        return {"temperature": self.temperature, "label_smoothing": self.label_smoothing}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def sampled_logits(query, target, is_real, item_tower, negatives, temperature):
    """Logits of positions against their targets and against negatives that they share, in one matrix product.

    Returns:
        `(own, others, weight)`: float32 tensors, shapes `(positions, 1)`, `(positions, num_negatives)`, `(positions,)`.
        A negative that is a position's own target, an accidental hit, has -1e9. Padding has weight 0.
    """
    query = ops.reshape(ops.cast(query, "float32"), (-1, query.shape[-1])) / temperature  # P D
    target = ops.reshape(target, (-1,))
    own = ops.sum(query * item_tower.candidates(target), axis=-1, keepdims=True)  # P 1
    others = ops.matmul(query, ops.transpose(item_tower.candidates(negatives)))  # P K
    is_hit = ops.equal(ops.expand_dims(target, 1), ops.expand_dims(negatives, 0))
    return own, ops.where(is_hit, -1e9, others), ops.cast(ops.reshape(is_real, (-1,)), "float32")


@keras.saving.register_keras_serializable("tfrec")
class SampledSoftmax:
    """Cross-entropy against a few uniform negatives, drawn once a step and shared by all positions.

    One matrix product for all positions. A negative equal to a position's own target is an accidental hit and gets no
    probability. Each negative stands for `num_items / num_negatives` items, so its logit is raised by the log of that (the
    logQ correction): with many negatives the loss tends to the full softmax.
    Source: Jean et al. 2015, "On Using Very Large Target Vocabulary", section 3. Differs from the source: uniform sampling
    with replacement, one draw for the whole batch.

    Args:
        num_negatives: int > 0.
        temperature: float > 0: logits are divided by it.
        seed: int.
    """

    def __init__(self, num_negatives: int = 1024, temperature: float = 1.0, seed: int = 0):
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def draw(self, num_items):
        """New negatives: int32 item indexes, shape `(num_negatives,)`."""
        return uniform_items(self.num_negatives, num_items, self.seed_generator)

    def __call__(self, query, target, is_real, item_tower, negatives=None):
        negatives = self.draw(item_tower.num_items) if negatives is None else negatives
        own, others, weight = sampled_logits(query, target, is_real, item_tower, negatives, self.temperature)
        others += math.log(item_tower.num_items / self.num_negatives)
        loss = ops.logsumexp(ops.concatenate([own, others], axis=-1), axis=-1) - own[:, 0]
        return ops.sum(loss * weight), ops.sum(weight)

    def get_config(self):
        return {"num_negatives": self.num_negatives, "temperature": self.temperature, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("tfrec")
class GBCE(SampledSoftmax):
    """Generalised binary cross-entropy against a few uniform negatives, drawn once a step and shared by all positions.

    `-(beta log sigmoid(own) + sum over negatives of log(1 - sigmoid(other)))`, logits lowered by `log(num_items)`. With few
    negatives plain binary cross-entropy is overconfident; `beta` takes that back, in full at `calibration` 1, not at all at 0.
    Source: Petrov & Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling". Differs from the source: the negatives are shared by the positions of a batch, and logits are lowered, which
    leaves every ranking as it is: training begins at the probability of an item drawn at random instead of 1/2 (as in Lin et
    al. 2017, "Focal Loss for Dense Object Detection", section 3.3). From 1/2 the queries first learn, all alike, to reject
    whatever is asked, and take long to differ again.

    Args:
        num_negatives: int > 0.
        calibration: float in [0, 1], the paper's `t`.
        temperature: float > 0: logits are divided by it.
        seed: int.
    """

    def __init__(self, num_negatives: int = 256, calibration: float = 0.75, temperature: float = 1.0, seed: int = 0):
        super().__init__(num_negatives, temperature, seed)
        self.calibration = calibration

    def beta(self, num_items: int) -> float:
        """The power of the target's probability."""
        rate = min(1.0, self.num_negatives / max(1, num_items - 1))
        return rate * (self.calibration * (1 - 1 / rate) + 1 / rate)

    def __call__(self, query, target, is_real, item_tower, negatives=None):
        negatives = self.draw(item_tower.num_items) if negatives is None else negatives
        own, others, weight = sampled_logits(query, target, is_real, item_tower, negatives, self.temperature)
        prior = math.log(item_tower.num_items)
        loss = self.beta(item_tower.num_items) * ops.softplus(prior - own[:, 0])
        loss += ops.sum(ops.softplus(others - prior), axis=-1)
        return ops.sum(loss * weight), ops.sum(weight)

    def get_config(self):
        return super().get_config() | {"calibration": self.calibration}
