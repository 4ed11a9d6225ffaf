"""Losses between queries and the catalogue.

loss(query, target, inputs, item_tower, sample_weight) -> (weighted sum over positions, sum of weights)

query          float (batch, length, width), the query after each position
target         int (batch, length), the item index of the next item
inputs         the inputs of `TwoTower`: `is_real`, `history` and, of packed rows, `end`
sample_weight  float32 (batch, length), the weight of each position, 0 at padding; by default 1 at real positions

`seen_weight` multiplies the odds of the items in a position's history, at it or before, once for each time that an item is there;
the odds of the position's own target stay. A ranking leaves seen items out, so a model need not learn to avoid them. At 1 the
table that reads an item draws queries to it, and the softmax drives them away. At 0 the softmax ignores seen items, as the ranking
does.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX

LOGITS_BYTES = 4 << 20
"""About the size of a block of logits: a core's share of the last cache level."""
SMALLEST_BLOCK = 128
"""The fewest positions of a block, for any number of items: fewer make slow matrix products."""
LARGEST_BLOCK = 1024
"""The most positions of a block, for any number of items: seen items take a table of a block's positions by themselves."""
LEFT_OUT = -1e9
"""Added to the logit of an item that is left out."""


def log_weight(weight: float) -> float:
    """The logit offset that multiplies the odds by `weight`."""
    return math.log(weight) if weight else LEFT_OUT


def histories(inputs):
    """The number of the history that each position belongs to: int32 tensor, shape `(batch, length)`; -1 at padding."""
    is_real = inputs["is_real"]
    rows, length = ops.shape(is_real)
    end = ops.cast(inputs["end"], "int32") if "end" in inputs else ops.full((rows, length), length, "int32")
    first = ops.expand_dims(ops.arange(rows, dtype="int32") * (length + 1), 1)
    return ops.where(is_real, first + end, -1)


def softmax_cross_entropy(query, items, label, weight, label_smoothing=0.0, seen=None):
    """Weighted sum of `-log softmax(query @ items.T)[label]`, without ever holding all logits.

    The gradient is computed in the forward pass. A block of positions at a time computes its logits and their part of the
    gradients of `query` and `items`, and forgets them: three matrix products as without blocks, no recomputation, and
    memory for one block.
    Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", and Liger Kernel's fused linear
    cross-entropy. Differs from the sources: plain `keras.ops`, blocks of positions only.

    Args:
        query: float32 tensor, shape `(positions, width)`.
        items: float32 tensor, shape `(num_items, width)`.
        label: int tensor, shape `(positions,)`: rows of `items`.
        weight: float32 tensor, shape `(positions,)`; 0 leaves a position out.
        label_smoothing: float in [0, 1): this share of each target is spread evenly over all items that are not left out.
        seen: None, or `(read, history, reach, change)`. `change` is added to the logits of a position for the items that its
            history read at it and before, but for its label. `read`, int tensor `(positions,)`, holds rows of `items`, or
            negative numbers; `history`, int tensor `(positions,)`, tells histories apart; `reach` is the longest way back.
    Returns:
        Float32 scalar tensor.
    """
    num_items, width = items.shape
    num_positions = ops.shape(query)[0]
    size = min(max(SMALLEST_BLOCK, LOGITS_BYTES // (4 * num_items)), LARGEST_BLOCK)
    if seen:
        read, history, reach, change = seen
        # a block also needs what was read before it
        read, history = (ops.pad(x, [[reach, size]], constant_values=-1) for x in (read, history))
        labels = ops.pad(label, [[0, size]])
        is_before = ops.expand_dims(ops.arange(reach + size), 1) <= reach + ops.arange(size)  # E R

    def changed(logits, first):
        """Logits `(num_items, size)` of the positions from `first` on, with `change` where an item was seen."""
        r, h = (ops.slice(x, (first,), (reach + size,)) for x in (read, history))  # E
        is_own = ops.expand_dims(r, 1) == ops.slice(labels, (first,), (size,))
        is_seen = is_before & (ops.expand_dims(h, 1) == h[reach:]) & ops.expand_dims(r >= 0, 1) & ~is_own  # E R
        rows = ops.expand_dims(ops.maximum(r, 0), 1)
        return ops.scatter_update(logits, rows, ops.where(is_seen, change, 0.0), reduction="add")

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
            if seen:
                logits = changed(logits, i * size)
            highest = ops.max(logits, axis=0)
            powers = ops.exp(logits - highest)
            sums = ops.sum(powers, axis=0)  # R
            share = w / sums
            total += ops.sum(w * (ops.log(sums) + highest))
            if label_smoothing:
                is_left = ops.cast(logits > LEFT_OUT / 2, "float32")
                each = label_smoothing / ops.sum(is_left, axis=0)  # R
                total -= ops.sum(w * each * ops.sum(logits * is_left, axis=0))
                powers -= each * sums * is_left
            d_query = ops.slice_update(d_query, (0, i * size), ops.matmul(items_by_width, powers) * share)  # D P
            d_items += ops.matmul(powers, q * ops.expand_dims(share, -1))  # N D
            return i + 1, total, d_query, d_items

        start = (0, ops.zeros(()), ops.zeros_like(ops.transpose(queries)), ops.zeros_like(items))
        _, total, d_query, d_items = ops.while_loop(lambda i, *_: i < num_blocks, block, start)
        # the label's own logit: its part of the loss and of the gradients
        weighted = (1 - label_smoothing) * ops.expand_dims(weight, -1)
        own = weighted * ops.take(items, label, axis=0)  # P D
        d_items -= ops.segment_sum(weighted * query, label, num_segments=num_items)
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


class RankingLoss(keras.layers.Layer):
    """The base of the losses: a Keras layer, so that a model tracks and saves its weights and random generators.

    It is called directly, without the conversions of a layer's inputs: the item tower is an argument like the tensors.
    """

    def __init__(self, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.built = True

    def __call__(self, query, target, inputs, item_tower, sample_weight=None):
        raise NotImplementedError

    def get_config(self):
        return {"name": self.name}


def position_weight(inputs, sample_weight):
    """The weight of each position: float32 tensor, shape `(batch, length)`; by default 1 at real positions."""
    return ops.cast(inputs["is_real"] if sample_weight is None else sample_weight, "float32")


@keras.saving.register_keras_serializable("tfrec")
class FullSoftmax(RankingLoss):
    """Cross-entropy over the whole catalogue: every item but the target is a negative.

    Source: the loss of GRU4Rec (Hidasi et al. 2016) and of "Turning Dross Into Gold" (Klenitskiy & Vasilev 2023), which
    shows it lifts SASRec above BERT4Rec. Differs from the sources: none known; computed by `softmax_cross_entropy`.

    >>> loss = FullSoftmax(temperature=0.05)  # for model.compile("adam", loss)

    Args:
        temperature: float > 0, logits are divided by it. Default: 1.
        label_smoothing: float in [0, 1), this share of each target is spread evenly over all items that are not left out.
            Default: 0.
        seen_weight: float in [0, 1], multiplies the odds of items in the history; 0 leaves them out. Default: 1.
    """

    def __init__(self, temperature: float = 1.0, label_smoothing: float = 0.0, seen_weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.seen_weight = seen_weight

    def __call__(self, query, target, inputs, item_tower, sample_weight=None):
        query = ops.reshape(ops.cast(query, "float32"), (-1, query.shape[-1])) / self.temperature  # P D
        weight = ops.reshape(position_weight(inputs, sample_weight), (-1,))
        label = ops.maximum(ops.reshape(target, (-1,)) - FIRST_ITEM_INDEX, 0)
        seen = None
        if self.seen_weight != 1:
            read, history = (ops.reshape(x, (-1,)) for x in (inputs["history"] - FIRST_ITEM_INDEX, histories(inputs)))
            seen = read, history, ops.shape(target)[1] - 1, log_weight(self.seen_weight)
        total = softmax_cross_entropy(query, item_tower.catalogue(), label, weight, self.label_smoothing, seen)
        return total, ops.sum(weight)

    def get_config(self):
        own = {"temperature": self.temperature, "label_smoothing": self.label_smoothing}
        return super().get_config() | own | {"seen_weight": self.seen_weight}


def by_time(x):
    """Flatten `(batch, length, ...)` to `(positions, ...)`, all rows of a time step next to each other."""
    return ops.reshape(ops.swapaxes(x, 0, 1), (-1, *x.shape[2:]))


def times_seen(inputs, candidates):
    """The number of times that each candidate occurs in a position's history, at it or before, in the order of `by_time`.

    Args:
        inputs: see the losses.
        candidates: int tensor, shape `(num_candidates,)`: item indexes.
    Returns:
        Int32 tensor, shape `(positions, num_candidates)`.
    """
    history = ops.transpose(histories(inputs))  # L B
    goes_on = ops.pad(history[1:] == history[:-1], [[1, 0], [0, 0]])
    shape = ops.shape(history)[1], ops.shape(candidates)[0]  # B C

    def read(times, position):
        item, goes_on = (ops.expand_dims(x, 1) for x in position)
        times = ops.where(goes_on, times, 0) + ops.cast(item == candidates, "int32")
        return times, times

    _, times = ops.scan(read, ops.zeros(shape, "int32"), (ops.transpose(inputs["history"]), goes_on))  # L B C
    return ops.reshape(times, (-1, shape[1]))


def sampled_logits(query, target, inputs, item_tower, negatives, temperature, seen_weight=1.0, sample_weight=None):
    """Logits of positions, in the order of `by_time`, against their targets and against negatives that they share.

    Returns:
        `(own, others, weight)`: float32 tensors, shapes `(positions, 1)`, `(positions, num_negatives)`, `(positions,)`.
        A negative that is a position's own target, an accidental hit, has -1e9. `weight` is that of each position.
    """
    query, target = by_time(ops.cast(query, "float32")) / temperature, by_time(target)  # P D, P
    own = ops.sum(query * item_tower.candidates(target), axis=-1, keepdims=True)  # P 1
    others = ops.matmul(query, ops.transpose(item_tower.candidates(negatives)))  # P K
    if seen_weight != 1:
        others += log_weight(seen_weight) * ops.cast(times_seen(inputs, negatives), "float32")
    is_hit = ops.equal(ops.expand_dims(target, 1), negatives)
    return own, ops.where(is_hit, LEFT_OUT, others), by_time(position_weight(inputs, sample_weight))


@keras.saving.register_keras_serializable("tfrec")
class SampledSoftmax(RankingLoss):
    """Cross-entropy against a few uniform negatives, drawn once a step and shared by all positions.

    One matrix product for all positions. A negative equal to a position's own target is an accidental hit and gets no
    probability. Each negative stands for `num_items / num_negatives` items, so its logit is raised by the log of that (the
    logQ correction): with many negatives the loss tends to the full softmax.
    Source: Jean et al. 2015, "On Using Very Large Target Vocabulary", section 3. Differs from the source: uniform sampling
    with replacement, one draw for the whole batch.

    >>> loss = SampledSoftmax(num_negatives=256)  # for model.compile("adam", loss)

    Args:
        num_negatives: int > 0. Default: 1,024.
        temperature: float > 0, logits are divided by it. Default: 1.
        seed: int, seed of the draws. Default: 0.
        seen_weight: float in [0, 1], multiplies the odds of items in the history; 0 leaves them out. Default: 1.
    """

    def __init__(
        self, num_negatives: int = 1024, temperature: float = 1.0, seed: int = 0, seen_weight: float = 1.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.seed = seed
        self.seen_weight = seen_weight
        self.seed_generator = keras.random.SeedGenerator(seed)

    def draw(self, num_items):
        """New negatives: int32 item indexes, shape `(num_negatives,)`."""
        return uniform_items(self.num_negatives, num_items, self.seed_generator)

    def _logits(self, query, target, inputs, item_tower, sample_weight, negatives):
        negatives = self.draw(item_tower.num_items) if negatives is None else negatives
        scale = (self.temperature, self.seen_weight)
        return sampled_logits(query, target, inputs, item_tower, negatives, *scale, sample_weight)

    def __call__(self, query, target, inputs, item_tower, sample_weight=None, negatives=None):
        own, others, weight = self._logits(query, target, inputs, item_tower, sample_weight, negatives)
        others += math.log(item_tower.num_items / self.num_negatives)
        loss = ops.logsumexp(ops.concatenate([own, others], axis=-1), axis=-1) - own[:, 0]
        return ops.sum(loss * weight), ops.sum(weight)

    def get_config(self):
        own = {"num_negatives": self.num_negatives, "temperature": self.temperature}
        return super().get_config() | own | {"seed": self.seed, "seen_weight": self.seen_weight}


@keras.saving.register_keras_serializable("tfrec")
class GBCE(SampledSoftmax):
    """Generalised binary cross-entropy against a few uniform negatives, drawn once a step and shared by all positions.

    `-(beta log sigmoid(own) + sum over negatives of log(1 - sigmoid(other)))`, logits lowered by `log(num_items)`. With few
    negatives plain binary cross-entropy is overconfident; `beta` takes that back, in full at `calibration` 1, not at all at 0.
    Source: Petrov & Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling". Differs from the source: the negatives are shared by the positions of a batch, and logits are lowered, which
    leaves every ranking as it is: training begins at the probability of an item drawn at random instead of 1/2 (as in Lin et
    al. 2017, "Focal Loss for Dense Object Detection", section 3.3). From 1/2 all queries first learn to reject every item, and
    take long to differ again.

    >>> loss = GBCE(num_negatives=256, calibration=0.75)  # for model.compile("adam", loss)

    Args:
        num_negatives: int > 0. Default: 256.
        calibration: float in [0, 1], the paper's `t`. Default: 0.75.
        temperature: float > 0, logits are divided by it. Default: 1.
        seed: int, seed of the draws. Default: 0.
        seen_weight: float in [0, 1], multiplies the odds of items in the history; 0 leaves them out. Default: 1.
    """

    def __init__(
        self,
        num_negatives: int = 256,
        calibration: float = 0.75,
        temperature: float = 1.0,
        seed: int = 0,
        seen_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(num_negatives, temperature, seed, seen_weight, **kwargs)
        self.calibration = calibration

    def beta(self, num_items: int) -> float:
        """The power of the target's probability."""
        rate = min(1.0, self.num_negatives / max(1, num_items - 1))
        return rate * (self.calibration * (1 - 1 / rate) + 1 / rate)

    def __call__(self, query, target, inputs, item_tower, sample_weight=None, negatives=None):
        own, others, weight = self._logits(query, target, inputs, item_tower, sample_weight, negatives)
        prior = math.log(item_tower.num_items)
        loss = self.beta(item_tower.num_items) * ops.softplus(prior - own[:, 0])
        loss += ops.sum(ops.softplus(others - prior), axis=-1)
        return ops.sum(loss * weight), ops.sum(weight)

    def get_config(self):
        return super().get_config() | {"calibration": self.calibration}
