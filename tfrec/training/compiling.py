"""From a config to a compiled model and its batches."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.cooccurrence import cooccurrence_vectors
from tfrec.models.item_tower import ItemTower
from tfrec.models.losses import GBCE, FullSoftmax, SampledSoftmax
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.two_tower import TwoTower
from tfrec.training.config import Config
from tfrec.training.resolve import suited


def build_model(config: Config, num_items: int) -> TwoTower:
    """The model that a `suited` config describes, built, with fresh weights."""
    policy = keras.dtype_policies.DTypePolicy(
        "float32" if config.precision == "float32" else f"mixed_{config.precision}"
    )
    if config.width is None or config.num_blocks is None or config.num_heads is None or config.dropout_rate is None:
        raise ValueError("The config leaves the model's size or dropout open: decide them with `suited(config, data)`.")
    own: dict[str, Any] = {"normalize": config.similarity == "cosine", "dtype": policy}
    items = ItemTower(
        num_items, config.width, config.mlp_dims, init_stddev=config.init_stddev, name="item_tower", **own
    )
    sequence = SequenceTower(
        config.max_length,
        config.num_blocks,
        config.num_heads,
        config.hidden_dim,
        config.dropout_rate,
        config.block,
        config.positions,
        config.attention_window,
        config.time_bias,
        config.calendar,
        config.attention_dropout_rate,
        config.mask_rate,
        name="sequence_tower",
        **own,
    )
    model = TwoTower(items, sequence, name="two_tower")
    model.build()
    return model


def compile_model(config: Config, data: PreparedData) -> tuple[TwoTower, PackedBatches]:
    """The model that a config describes, compiled, and the batches it is to be fitted on: all of `train` but the fitting.

    What the config leaves open is decided by `suited`.

    Raises:
        ValueError: the data has no pair of events to learn from, or no user to validate on.
    """
    split = LeaveLastOut(data, 0 if config.final_epochs else 2)
    if not len(split.users):
        raise ValueError(
            f"`{config.data}` has no user with 3 events: none to validate on. A sequential model needs histories."
        )
    config = suited(config, data)
    assert config.epochs is not None
    assert config.batch_positions is not None
    if config.reads_times and not data.timestamp.any():
        raise ValueError(f"`time_bias` and `calendar` need times, and `{config.data}` has none.")
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, data.num_items)
    if config.item_init == "cooccurrence":
        _start_from_counts(model.item_tower, split)
    batches = PackedBatches.for_training(
        split,
        max_length=config.max_length,
        batch_positions=config.batch_positions,
        seed=config.seed,
        windows=config.windows,
        crop_rate=config.crop_rate,
        reorder_rate=config.reorder_rate,
        has_times=config.reads_times,
    )
    steps = len(batches)
    if not steps:
        raise ValueError(f"`{config.data}` has no user with 4 events: no pair of items is left to learn from.")
    warmup = min(config.warmup_epochs, config.epochs - 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        steps * (config.epochs - warmup),
        alpha=config.final_rate,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=steps * warmup,
    )
    loss = _build_loss(config, split)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if config.lazy_table:
        if isinstance(loss, FullSoftmax):
            raise ValueError("`lazy_table` needs a sampled loss: the full softmax touches every row of the item table.")
        if config.precision == "float16":
            raise ValueError("`lazy_table` has no loss scaling, which float16 needs. Use --set precision=bfloat16.")
        from tfrec.models.lazy_table import LazyAdamW, LazyTableTrainer

        model.compile(optimizer, loss, jit_compile=False)  # the trainer compiles the part that XLA can
        of_table = LazyAdamW(model.item_tower.table, rate, config.weight_decay)
        model.table_trainer = LazyTableTrainer(model, of_table, config.jit_compile)
        optimizer.build(model.table_trainer.dense)
    else:
        model.compile(optimizer, loss, jit_compile=config.jit_compile)
        optimizer.build(model.trainable_variables)
    return model, batches


def _start_from_counts(tower: ItemTower, split: LeaveLastOut) -> None:
    """Turn the rows of the item table to where `cooccurrence_vectors` point; those of items without neighbours stay."""
    table = tower.table.numpy()
    vectors = cooccurrence_vectors(*split.train_part(), tower.num_items, tower.width)
    known = vectors.any(axis=1)
    table[FIRST_ITEM_INDEX:][known] = vectors[known] * (tower.init_stddev * tower.width**0.5)
    tower.table.assign(table)


def _build_loss(config: Config, split: LeaveLastOut):
    name, seen_weight = config.loss, config.seen_weight
    assert seen_weight is not None
    if name == "full_softmax":
        return FullSoftmax(config.temperature, config.label_smoothing, seen_weight)
    if name == "sampled_softmax":
        return SampledSoftmax(config.num_negatives, config.temperature, config.seed, seen_weight)
    if name == "gbce":
        return GBCE(config.num_negatives, config.calibration, config.temperature, config.seed, seen_weight)
    from tfrec.models.tfrs_task import TfrsRetrieval

    counts = np.bincount(split.train_part()[0] - FIRST_ITEM_INDEX, minlength=split.data.num_items)
    return TfrsRetrieval(counts, config.num_negatives, config.temperature, config.seed, seen_weight)
