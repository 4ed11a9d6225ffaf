"""From a config to a compiled model and its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.encoding import encode_table
from tfrec.data.features import Feature
from tfrec.data.splits import Split
from tfrec.data.task_columns import task_feature
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.features import FeatureEmbedding
from tfrec.models.cooccurrence import cooccurrence_vectors
from tfrec.models.item_tower import ItemTower
from tfrec.models.losses import GBCE, FullSoftmax, SampledSoftmax
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tasks import TaskHead
from tfrec.models.two_tower import TwoTower
from tfrec.training.config import Config

MAX_COUNTED_EVENTS = 5_000_000
"""Events that the start of the item table is counted from, at most: their pairs take about 600 MB."""


def build_model(
    config: Config,
    num_items: int,
    features: Mapping[str, Sequence[Feature]] | None = None,
    item_features: Mapping[str, np.ndarray] | None = None,
) -> TwoTower:
    """Build the model that a resolved config describes, with fresh weights.

    >>> build_model(Config(width=8, num_blocks=1, num_heads=1, dropout_rate=0.0), num_items=5).item_tower.width
    8

    Args:
        config: `Config` without open fields.
        num_items: int > 0, size of the catalogue.
        features: lists of `Feature` by whose they are, as `PreparedData.features`. Default: none.
            Those of events, context and users are read by the sequence tower.
        item_features: encoded `features["items"]` by name, see `encode_table`. Default: items are embedded by their ids alone.
    Raises:
        ValueError: the config leaves the size or the dropout of the model open.
    """
    policy = keras.dtype_policies.DTypePolicy(
        "float32" if config.precision == "float32" else f"mixed_{config.precision}"
    )
    if config.width is None or config.num_blocks is None or config.num_heads is None or config.dropout_rate is None:
        raise ValueError(
            "The config leaves the model's size or dropout open: fill it in with `resolve(config, LeaveLastOut(data))`."
        )
    own: dict[str, Any] = {"normalize": config.similarity == "cosine", "dtype": policy}
    content: dict[str, Any] = {}
    features = features or {}
    if item_features:
        specs = {feature.name: feature.spec for feature in features["items"]}
        embedding = FeatureEmbedding(specs, config.width, config.content_dims, dtype=policy)
        content = {"content": embedding, "features": item_features, "id_dropout_rate": config.id_dropout_rate}
    items = ItemTower(
        num_items, config.width, config.mlp_dims, init_stddev=config.init_stddev, name="item_tower", **content, **own
    )
    of_request = [*features.get("context", []), *features.get("users", [])]
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
        event_features={feature.name: feature.spec for feature in features.get("events", [])},
        context_features={feature.name: feature.spec for feature in of_request},
        feature_dropout_rate=config.feature_dropout_rate,
        name="sequence_tower",
        **own,
    )
    head = None
    if config.task is not None:
        column = next((feature for feature in features.get("events", []) if feature.name == config.task), None)
        if column is None:
            raise ValueError(f"`features` have no column {config.task!r} of events, which `task` names.")
        head = TaskHead(column.name, **column.spec, loss_weight=config.task_weight, dropout_rate=config.dropout_rate)
    model = TwoTower(items, sequence, head, name="two_tower")
    model.build()
    return model


def build_batches(config: Config, split: Split, model: TwoTower) -> PackedBatches:
    """The batches that a model is fitted on, in the form that its sequence tower reads.

    Raises:
        ValueError: the data has no times and the model reads them, no column that it predicts, or no pair of events to learn from.
    """
    tower = model.sequence_tower
    if tower.reads_times and not split.data.timestamp.any():
        raise ValueError("The model reads times (`time_bias`, `calendar`), and the data has none.")
    assert config.batch_positions is not None
    head = model.task_head
    if head is not None:
        task_feature(split.data, head.column, head.kind)
    batches = PackedBatches.for_training(
        split,
        max_length=tower.max_length,
        batch_positions=config.batch_positions,
        seed=config.seed,
        windows=config.windows,
        crop_rate=config.crop_rate,
        reorder_rate=config.reorder_rate,
        has_times=tower.reads_times,
        has_features=tower.reads_features,
        weights=config.weights,
        task=None if head is None else head.column,
        is_packed=tower.supports_packing,
    )
    if not len(batches):
        raise ValueError("The data has no user with 4 events: no pair of items is left to learn from.")
    return batches


def build_loss(config: Config, split: Split) -> Callable:
    """The loss that a resolved config names."""
    assert config.temperature is not None
    assert config.seen_weight is not None
    name, temperature, seen_weight = config.loss, config.temperature, config.seen_weight
    if name == "full_softmax":
        return FullSoftmax(temperature, config.label_smoothing, seen_weight)
    if name == "sampled_softmax":
        return SampledSoftmax(config.num_negatives, temperature, config.seed, seen_weight)
    if name == "gbce":
        return GBCE(config.num_negatives, config.calibration, temperature, config.seed, seen_weight)
    from tfrec.models.tfrs_task import TfrsRetrieval

    return TfrsRetrieval(split.train_counts(), config.num_negatives, temperature, config.seed, seen_weight)


def build_schedule(config: Config, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate: a linear rise in `warmup_epochs`, then a cosine to `final_rate`, over epochs of `steps` each."""
    assert config.epochs is not None
    warmup = min(config.warmup_epochs, config.epochs - 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        steps * (config.epochs - warmup),
        alpha=config.final_rate,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=steps * warmup,
    )


def compile_model(
    config: Config,
    split: Split,
    *,
    model: TwoTower | None = None,
    loss: Callable | None = None,
    has_schedule: bool = True,
) -> tuple[TwoTower, PackedBatches]:
    """Build and compile a model and make its batches: the whole of `train` but the fitting.

    >>> from tfrec.data.prepared import PreparedData
    >>> from tfrec.data.splits import LeaveLastOut
    >>> from tfrec.training.resolve import resolve
    >>> split = LeaveLastOut(PreparedData.from_histories([["a", "b", "c", "a", "b"]] * 8))
    >>> config = resolve(Config(width=8, max_length=4), split)
    >>> model, batches = compile_model(config, split)
    >>> losses = model.fit(batches.dataset(), epochs=2, shuffle=False, verbose=0).history["loss"]

    Args:
        config: `Config` without open fields, as `resolve` returns it.
        split: `Split`, the data to train on.
        model: `TwoTower`, used in place of the one that the config describes. One that is compiled keeps its loss and its
            optimizer. Default: built from the config.
        loss: used in place of the one that the config names; see `TwoTower.compile`. Default: built from the config.
        has_schedule: bool, whether the learning rate follows the config's schedule; otherwise it is constant and a callback may
            set it. Default: True.
    Returns:
        `(model, batches)`: a compiled `TwoTower` and `PackedBatches`.
    Raises:
        ValueError: the config has open fields; model, loss and data do not fit together; or the data has no pair of events to
            learn from.
    """
    keras.utils.set_random_seed(config.seed)
    if model is None:
        if config.task is not None:
            task_feature(split.data, config.task)
        features = split.data.features
        encoded = encode_table(features["items"], split.data.items)[0] if config.item_features == "all" else None
        model = build_model(config, split.data.num_items, features, encoded)
        if config.item_init == "cooccurrence":
            _start_from_counts(model.item_tower, split)
    elif model.item_tower.num_items != split.data.num_items:
        raise ValueError(
            f"The model's item tower has {model.item_tower.num_items} items and the data {split.data.num_items}: make it with "
            f"`num_items=data.num_items`."
        )
    model.build()
    batches = build_batches(config, split, model)
    if model.compiled:
        if loss is not None:
            raise ValueError("The model is compiled already, with a loss of its own: leave out `loss`.")
        return model, batches
    rate = build_schedule(config, len(batches)) if has_schedule else config.learning_rate
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = build_loss(config, split) if loss is None else loss
    if config.lazy_table:
        from tfrec.models.lazy_table import LazyAdamW, LazyTableTrainer

        # the trainer compiles the part that XLA can
        model.compile(optimizer, loss, jit_compile=False, steps_per_execution=config.steps_per_execution)
        of_table = LazyAdamW(
            model.item_tower.table,
            rate if has_schedule else lambda step: model.optimizer.learning_rate,
            config.weight_decay,
        )
        model.table_trainer = LazyTableTrainer(model, of_table, bool(config.jit_compile))
        optimizer.build(model.table_trainer.dense)
    else:
        model.compile(optimizer, loss, jit_compile=config.jit_compile, steps_per_execution=config.steps_per_execution)
        optimizer.build(model.trainable_variables)
    return model, batches


def _start_from_counts(tower: ItemTower, split: Split) -> None:
    """Turn the rows of the item table to the directions of `cooccurrence_vectors`; rows of items without neighbours stay."""
    table = tower.table.numpy()
    vectors = cooccurrence_vectors(*split.train_part(MAX_COUNTED_EVENTS), tower.num_items, tower.width)
    known = vectors.any(axis=1)
    table[FIRST_ITEM_INDEX:][known] = vectors[known] * (tower.init_stddev * tower.width**0.5)
    tower.table.assign(table)
