"""Prepared data: the folder that `tfrec prepare` writes and everything later reads, memory-mapped.

manifest.json     schema, counts, what was refused, tfrec version
vocabulary.json   item ids in index order
users.parquet     user_id, in row order
items.parquet     item_id, num_events and whatever is known of the item (title, genres, ...), in index order
item_index.npy    int32 [events]: the users' histories, one after the other, oldest event first
timestamp.npy     int64 [events]: seconds, 0 where the log has no times
offsets.npy       int64 [users + 1]: user u owns events offsets[u] : offsets[u + 1]
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary

MANIFEST = "manifest.json"
USERS = "users.parquet"
ITEMS = "items.parquet"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PreparedData:
    """Every user's history as flat arrays.

    Attributes:
        vocabulary: the catalogue.
        item_index: int32, shape `(num_events,)`; user by user, oldest first.
        timestamp: int64, shape `(num_events,)`; seconds since 1970, 0 = unknown.
        offsets: int64, shape `(num_users + 1,)`.
        manifest: what `manifest.json` holds.
        folder: where it lies, or None for data made in memory.
    """

    vocabulary: Vocabulary
    item_index: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray
    manifest: dict[str, Any]
    folder: Path | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike) -> PreparedData:
        """Memory-map a prepared folder.

        Raises:
            ValueError: the folder is not prepared data (the message says what to run), or was written by a newer tfrec.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"`{folder}` is not prepared data: it has no {MANIFEST}. "
                f"Make it with `tfrec prepare SOURCE --out {folder}`."
            )
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema_version"] > SCHEMA_VERSION:
            raise ValueError(
                f"`{folder}` was written by tfrec {manifest['tfrec_version']} with schema "
                f"{manifest['schema_version']}; this tfrec reads up to {SCHEMA_VERSION}. Upgrade tfrec."
            )
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("item_index", "timestamp", "offsets")
        }
        return cls(Vocabulary.load(folder), manifest=manifest, folder=folder, **arrays)

    @classmethod
    def from_histories(cls, histories: Sequence[Sequence[str]], **manifest: Any) -> PreparedData:
        """Data in memory from lists of item ids, oldest first; items are indexed in order of first appearance."""
        vocabulary = Vocabulary(list(dict.fromkeys(item for history in histories for item in history)))
        offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
        item_index = vocabulary.encode(item for history in histories for item in history)
        return cls(vocabulary, item_index, np.zeros(len(item_index), np.int64), offsets, manifest)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.vocabulary)

    @property
    def num_events(self) -> int:
        return len(self.item_index)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64, shape `(num_users,)`: the number of events of each user."""
        return np.diff(self.offsets)

    def history(self, user: int) -> np.ndarray:
        """int32: the item indexes of one user, oldest first."""
        return self.item_index[self.offsets[user] : self.offsets[user + 1]]

    @cached_property
    def item_counts(self) -> np.ndarray:
        """int64, shape `(num_items,)`: events of each item, in index order."""
        return np.bincount(self.item_index - FIRST_ITEM_INDEX, minlength=self.num_items)

    def item_columns(self) -> dict[str, list]:
        """The columns of `items.parquet`, by name: what is known of each item, in index order."""
        if self.folder is None:
            return {"item_id": self.vocabulary.item_ids}
        import pyarrow.parquet

        return pyarrow.parquet.read_table(self.folder / ITEMS).to_pydict()

    def describe(self) -> dict[str, Any]:
        """Users, items, events, length quantiles, time span, sparsity: what `tfrec prepare --describe` prints."""
        quantiles = np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 0.95, 1])
        times = self.timestamp[self.timestamp != 0]
        day = lambda seconds: f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S}"  # noqa: E731
        return {
            "users": self.num_users,
            "items": self.num_items,
            "events": self.num_events,
            "events per user": {
                name: int(q) for name, q in zip(["min", "25%", "50%", "75%", "95%", "max"], quantiles, strict=True)
            }
            | {"mean": round(float(self.lengths.mean()), 2)},
            "time span (UTC)": [day(int(times.min())), day(int(times.max()))] if len(times) else None,
            "sparsity": round(1 - self.num_events / (self.num_users * self.num_items), 6),
        }
