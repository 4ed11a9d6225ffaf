"""Models with other items: new ones by what they are, and item towers as plain tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tfrec.data.features import Feature
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.item_tower import ItemTower
from tfrec.models.towers import AbstractItemTower
from tfrec.models.two_tower import TwoTower

BLOCK = 1 << 16
"""Items whose vectors are computed at a time."""


def content_features(tower: AbstractItemTower, features: Sequence[Feature]) -> list[Feature]:
    """The features that embed a new item; none where the content of the tower reads others than these.

    Args:
        tower: the item tower, of any class.
        features: the item features of the data.
    """
    if not isinstance(tower, ItemTower) or tower.content is None:
        return []
    found = [feature for feature in features if feature.name in tower.features]
    return found if len(found) == len(tower.features) else []


def content_vectors(tower: ItemTower, features: Mapping[str, np.ndarray], row: np.ndarray | float = 0.0) -> np.ndarray:
    """The vectors of items that the table lacks: float32 `(rows, width)`, in the form that histories read.

    Args:
        tower: `ItemTower` with content.
        features: encoded features by name, a row for each item.
        row: float32 array `(width,)`, in place of their rows of the table, see `new_item_row`. Default: 0.
    """
    number = len(next(iter(features.values())))
    parts = [
        np.asarray(tower.of_content({name: values[first : first + BLOCK] for name, values in features.items()}, row))
        for first in range(0, max(number, 1), BLOCK)
    ]
    return np.concatenate(parts).astype(np.float32)


def new_item_row(tower: ItemTower, queries: np.ndarray, boost: float) -> np.ndarray:
    """A row in place of those of new items, which raises their scores by `boost` on average: float32 `(width,)`.

    A known item's row is fitted to its events, and nothing is to a new item's: the scores of new items are lower, the better the
    rows of others. The row points to the mean query.

    Args:
        tower: `ItemTower` with content.
        queries: float32 array `(number, width)`, typical queries. Without one the row is 0.
        boost: float, in the unit of the scores.
    """
    mean = queries.mean(axis=0) if len(queries) else np.zeros(tower.width, np.float32)
    step = boost * mean / max(float(mean @ mean), 1e-12)
    if tower.normalize:  # a cosine does not depend on the norm that a row stands beside
        some = np.linspace(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + tower.num_items - 1, 1000).astype(np.int32)
        content = np.asarray(tower.of_content(tower.features_of(some)), np.float32)
        step = step * np.linalg.norm(content, axis=1).mean()
    return step.astype(np.float32)


def vectors_of(tower: ItemTower) -> np.ndarray:
    """The vectors that histories read, of padding, of unknown items and of the catalogue: float32 `(2 + num_items, width)`."""
    table = ops.convert_to_tensor(tower.table)
    features = {name: ops.convert_to_tensor(weight) for name, weight in tower.features.items()}
    vectors = np.empty(table.shape, np.float32)
    for first in range(0, len(vectors), BLOCK):  # slices, which cost half of what a look-up of each item does
        here = slice(first, first + BLOCK)
        vectors[here] = tower.refine(table[here], {name: values[here] for name, values in features.items()})
    return vectors


def as_table(model: TwoTower) -> TwoTower:
    """The same model with an item tower that is a table, where the vectors of its items take more than a look into one."""
    tower = model.item_tower
    if not isinstance(tower, ItemTower) or (tower.content is None and not tower.mlp):
        return model
    return with_table(model, vectors_of(tower))


def with_table(model: TwoTower, table: np.ndarray) -> TwoTower:
    """A model of the same sequence tower, whose item tower is a table alone.

    Args:
        model: `TwoTower` with an `ItemTower`.
        table: float32 array `(2 + num_items, width)`, as `vectors_of` gives it.
    """
    config: dict[str, Any] = model.get_config()
    plain = {
        "num_items": len(table) - FIRST_ITEM_INDEX,
        "mlp_dims": [],
        "init_stddev": 0.0,
        "content": None,
        "features": None,
    }
    config["item_tower"]["config"] |= plain
    config["item_tower"].pop("build_config", None)
    new = type(model).from_config(config)
    new.build()
    new.item_tower.table.assign(table)
    new.sequence_tower.set_weights(model.sequence_tower.get_weights())
    if model.task_head is not None:
        new.task_head.set_weights(model.task_head.get_weights())
    return new
