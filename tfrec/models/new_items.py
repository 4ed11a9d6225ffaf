"""Models with other items: new ones by what they are, and item towers as plain tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.item_tower import ItemTower
from tfrec.models.two_tower import TwoTower

BLOCK = 1 << 16
"""Items whose vectors are computed at a time."""


def content_vectors(tower: ItemTower, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors of items without a row in the table: float32 `(rows, width)`, in the form that histories read.

    Args:
        tower: `ItemTower` with content.
        features: encoded features by name, a row for each item.
    """
    number = len(next(iter(features.values())))
    parts = [
        np.asarray(
            tower.refine(np.zeros((len(rows), tower.width), np.float32), {n: f[rows] for n, f in features.items()})
        )
        for rows in np.array_split(np.arange(number), -(-number // BLOCK) or 1)
    ]
    return np.concatenate(parts).astype(np.float32)


def vectors_of(tower: ItemTower) -> np.ndarray:
    """The vectors that histories read of every item index, padding and unknown first: float32 `(2 + num_items, width)`."""
    index = np.arange(FIRST_ITEM_INDEX + tower.num_items, dtype=np.int32)
    parts = np.array_split(index, -(-len(index) // BLOCK))
    return np.concatenate([np.asarray(tower(part)).astype(np.float32) for part in parts])


def with_table(model: TwoTower, table: np.ndarray) -> TwoTower:
    """A model whose item tower is a table of these vectors alone, with the same sequence tower.

    Args:
        model: `TwoTower` with an `ItemTower`.
        table: float32 array `(2 + num_items, width)`, as `vectors_of` gives it.
    """
    tower = model.item_tower
    plain = ItemTower(
        len(table) - FIRST_ITEM_INDEX,
        tower.width,
        normalize=tower.normalize,
        init_stddev=0.0,
        dtype=tower.dtype_policy,
        name=tower.name,
    )
    new = TwoTower(plain, type(model.sequence_tower).from_config(model.sequence_tower.get_config()), name=model.name)
    new.build()
    plain.table.assign(table)
    new.sequence_tower.set_weights(model.sequence_tower.get_weights())
    return new
