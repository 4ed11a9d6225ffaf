"""What a config leaves open, decided from the size of the data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.training.config import Config

FULL_SOFTMAX_ITEMS, DENSE_TABLE_ITEMS = 15_000, 50_000
"""The largest catalogues that are trained with the full softmax, and with all of the item table in each update, unless told
otherwise."""
COUNTED_ITEMS = 500_000
"""The largest catalogue whose item table starts from co-occurrence unless told otherwise: that takes minutes there."""
SMALL_DATA, LARGE_DATA = 400_000, 10_000_000
"""Training events below and above which `suited` chooses another size and dropout."""
SPARSE_DATA = 100
"""Training events for each item of the catalogue below which `suited` drops as much as for few events."""


def suited(config: Config, data: PreparedData) -> Config:
    """The config with everything that it leaves open decided from the size of the data.

    Few events want a small tower and much dropout, many a larger one and, where they are many for each item, less. Batches are
    small enough for about 500 steps an epoch, and epochs are as many as make `steps`: fewer of the large tower, whose each
    takes longer: `docs/quality.md` has the measurements.
    """
    split = LeaveLastOut(data)
    each = (split.train_ends - data.offsets[:-1] - 1).clip(0)
    events = max(1, int(each.sum() if config.windows else each.clip(0, config.max_length).sum()))
    is_small = events < SMALL_DATA
    is_sparse = events < SPARSE_DATA * data.num_items
    is_large, is_huge = data.num_items > FULL_SOFTMAX_ITEMS, data.num_items > DENSE_TABLE_ITEMS
    width = config.width or (64 if is_small else 128)
    steps = config.steps or (11_500 if is_small else 8_500)
    batch_positions = config.batch_positions or min(4096, max(512, 2 ** round(math.log2(events / 500))))
    automatic: dict[str, Any] = {
        "width": width,
        "num_blocks": 2 if is_small else 3,
        "num_heads": next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0),
        "dropout_rate": 0.5 if is_small or is_sparse else 0.3 if events < LARGE_DATA else 0.1,
        "batch_positions": batch_positions,
        "seen_weight": 0.1 if is_small or is_sparse else 0.0,
        "item_init": "cooccurrence" if data.num_items <= COUNTED_ITEMS and events < LARGE_DATA else "normal",
        "epochs": min(60, max(12, round(steps * batch_positions / events))),
        "loss": "tfrs_retrieval" if is_huge else "sampled_softmax" if is_large else "full_softmax",
    }
    config = dataclasses.replace(config, **{k: v for k, v in automatic.items() if getattr(config, k) is None})
    if config.lazy_table is None:
        config = dataclasses.replace(config, lazy_table=is_huge and config.loss != "full_softmax")
    return config
