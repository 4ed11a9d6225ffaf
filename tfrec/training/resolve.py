"""The settings that a config leaves open, filled in from the size of the data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfrec.data.splits import Split
from tfrec.training.config import Config

FULL_SOFTMAX_ITEMS = 15_000
"""The largest catalogue that is trained with the full softmax by default."""
DENSE_TABLE_ITEMS = 50_000
"""The largest catalogue whose whole item table takes part in each update by default."""
COUNTED_ITEMS = 500_000
"""The largest catalogue whose item table starts from co-occurrence by default: that takes minutes there."""
SMALL_DATA, LARGE_DATA = 400_000, 10_000_000
"""Training events below and above which size and dropout differ."""
SPARSE_DATA = 100
"""Training events for each item of the catalogue below which dropout is as high as for few events."""


def resolve(config: Config, split: Split) -> Config:
    """Fill in every field of a config that is `None`, from the size of the training part.

    Few events want a small tower and much dropout. Many events want a larger tower and, where each item has many of them, less
    dropout. A batch is small enough for about 500 steps an epoch. The number of epochs makes `steps`, which are fewer for the
    large tower, because each takes longer. `docs/quality.md` has the measurements.

    >>> from tfrec.data.prepared import PreparedData
    >>> from tfrec.data.splits import LeaveLastOut
    >>> split = LeaveLastOut(PreparedData.from_histories([["a", "b", "c", "a"]] * 8))
    >>> config = resolve(Config(epochs=5), split)
    >>> config.width, config.loss, config.epochs
    (64, 'full_softmax', 5)

    Args:
        config: `Config`, as the user wrote it.
        split: `Split`, the data to train on.
    Returns:
        `Config` without open fields; resolving it again changes nothing.
    Raises:
        ValueError: `item_features` is `"all"` and the data has no item features.
    """
    data = split.data
    if config.item_features == "all" and not data.features.get("items"):
        raise ValueError("`item_features` is `all`, and the data has no item features: prepare it with `--items FILE`.")
    each = (split.train_ends - data.offsets[:-1] - 1).clip(0)
    events = max(1, int(each.sum() if config.windows else each.clip(0, config.max_length).sum()))
    is_small = events < SMALL_DATA
    is_sparse = events < SPARSE_DATA * data.num_items
    is_large, is_huge = data.num_items > FULL_SOFTMAX_ITEMS, data.num_items > DENSE_TABLE_ITEMS
    has_features = config.item_features != "none" and bool(data.features.get("items"))
    width = config.width or (64 if is_small else 128)
    steps = config.steps or (11_500 if is_small else 8_500)
    batch_positions = config.batch_positions or min(4096, max(512, 2 ** round(math.log2(events / 500))))
    loss = config.loss or ("tfrs_retrieval" if is_huge else "sampled_softmax" if is_large else "full_softmax")
    automatic: dict[str, Any] = {
        "width": width,
        "num_blocks": 2 if is_small else 3,
        "num_heads": next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0),
        "dropout_rate": 0.5 if is_small or is_sparse else 0.3 if events < LARGE_DATA else 0.1,
        "batch_positions": batch_positions,
        "seen_weight": 1.0 if config.repeats == "allow" else 0.1 if is_small or is_sparse else 0.0,
        "item_init": "cooccurrence" if data.num_items <= COUNTED_ITEMS and events < LARGE_DATA else "normal",
        "temperature": 0.05 if config.similarity == "cosine" else 1.0,
        "epochs": min(60, max(12, round(steps * batch_positions / events))),
        "loss": loss,
        "jit_compile": True,
        "lazy_table": is_huge and loss != "full_softmax",
        "id_dropout_rate": 0.1 if has_features else 0.0,
    }
    automatic = {k: v for k, v in automatic.items() if getattr(config, k) is None}
    return dataclasses.replace(config, item_features="all" if has_features else "none", **automatic)
