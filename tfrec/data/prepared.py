"""Prepared data: every user's history as flat arrays, in memory or memory-mapped from the folder that `tfrec prepare` writes.

manifest.json     format, tfrec's version, counts, refused rows by reason, what was guessed
vocabulary.json   item ids in index order
users.parquet     `user_id` and the properties of the user, in row order
items.parquet     `item_id`, `num_events` and the properties of the item (title, genres, ...), in index order
item_index.npy    int32 [events]: the users' histories, one after the other, oldest event first
timestamp.npy     int64 [events]: since 1970, in the `time_resolution` of the manifest; 0 where the log has no times
offsets.npy       int64 [users + 1]: user u owns events offsets[u] : offsets[u + 1]
event_0.npy       int32 or float32 [events]: the first of the `event_columns` of the manifest, event_1.npy the second, and so on
refused.csv       file, line and reason of each refused row
features.json     what was learned of columns that a model may read, where there are any, and the tables of text features.npz

Format 2. Format 1 had no `time_resolution`: its times are seconds. Until tfrec 0.1 the manifest called the format
`schema_version`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tfrec.data.arrays import bincount, pieces
from tfrec.data.features import Feature, load_features, save_features
from tfrec.data.kinds import describe_feature
from tfrec.data.times import RESOLUTIONS
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.files import scratch
from tfrec.formats import check_format
from tfrec.version import __version__

FORMAT = 2
MANIFEST, USERS, ITEMS, REFUSED = "manifest.json", "users.parquet", "items.parquet", "refused.csv"
ARRAYS = ("item_index", "timestamp", "offsets")
NO_ROWS = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())]).empty_table()
HASH_BYTES = 1 << 24
"""Bytes of an array that are read and hashed at a time."""


@dataclass(frozen=True)
class PreparedData:
    """Every user's history as flat arrays.

    >>> data = PreparedData.from_histories([["a", "b", "a"], ["b"]])
    >>> data.num_users, data.num_items, data.num_events
    (2, 2, 4)
    >>> data.vocabulary.decode(data.history(0))
    ['a', 'b', 'a']

    Attributes:
        vocabulary: `Vocabulary`, the catalogue.
        item_index: int32 array, shape `(num_events,)`; user by user, oldest first.
        timestamp: int64 array, shape `(num_events,)`; since 1970, in `1 / ticks_per_second` seconds; 0 = unknown.
        offsets: int64 array, shape `(num_users + 1,)`.
        manifest: dict, content of `manifest.json`; `{}` for data that no log was prepared for.
        items: PyArrow table, the properties of the items in index order: `item_id`, `num_events`, perhaps `title` and others.
            Default: those two.
        users: PyArrow table, `user_id` and perhaps other columns in row order. Default: the row numbers as text.
        refused: PyArrow table, `file`, `line` and `reason` of each refused row. Default: no row.
        features: dict, lists of `Feature` by whose they are: `"items"` and `"users"` those of the columns of `items` and `users`;
            `"events"` those of the `event_columns` that are read at the positions of a history, `"context"` of the event that is to
            be found. Default: none.
        event_columns: dict, by name arrays of shape `(num_events,)`: int32 for a category (0 = missing, 1 = unknown, else a value
            of the feature), float32 for a number (NaN = missing). Default: none.
        folder: Path where it lies. Default: None, in memory.
    """

    vocabulary: Vocabulary
    item_index: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray
    manifest: dict[str, Any] = field(default_factory=dict)
    items: pa.Table = None
    users: pa.Table = field(default=None, repr=False)
    refused: pa.Table = field(default_factory=lambda: NO_ROWS, repr=False)
    features: dict[str, list[Feature]] = field(default_factory=dict, repr=False)
    event_columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.items is None:
            columns = {"item_id": pa.array(self.vocabulary.item_ids, pa.string()), "num_events": self.item_counts}
            object.__setattr__(self, "items", pa.table(columns))
        if self.users is None:
            names = pa.array(np.arange(self.num_users)).cast(pa.string())
            object.__setattr__(self, "users", pa.table({"user_id": names}))

    @classmethod
    def open(cls, folder: str | os.PathLike) -> PreparedData:
        """Memory-map a prepared folder.

        Raises:
            ValueError: the folder is not prepared data; the message says what to run.
            NewerFormatError: a newer tfrec wrote it.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"`{folder}` is not prepared data: it has no {MANIFEST}. "
                f"Make it with `tfrec prepare SOURCE --out {folder}`."
            )
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        check_format(folder, {"format_version": manifest.get("schema_version", 1)} | manifest, FORMAT)
        refused = NO_ROWS
        if (folder / REFUSED).is_file() and manifest.get("num_refused"):
            kinds = pa.csv.ConvertOptions(column_types=NO_ROWS.schema)
            lines = pa.csv.ParseOptions(newlines_in_values=True)
            refused = pa.csv.read_csv(folder / REFUSED, convert_options=kinds, parse_options=lines)
        return cls(
            Vocabulary.load(folder),
            **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS},
            manifest=manifest,
            items=pa.parquet.read_table(folder / ITEMS),
            users=pa.parquet.read_table(folder / USERS),
            refused=refused,
            features=load_features(folder),
            event_columns={
                name: np.load(folder / f"event_{number}.npy", mmap_mode="r")
                for number, name in enumerate(manifest.get("event_columns", ()))
            },
            folder=folder,
        )

    @classmethod
    def from_histories(cls, histories: Sequence[Sequence[str]]) -> PreparedData:
        """Data in memory from lists of item ids, oldest first; items are indexed in order of first appearance."""
        vocabulary = Vocabulary(list(dict.fromkeys(item for history in histories for item in history)))
        offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
        item_index = vocabulary.encode(item for history in histories for item in history)
        return cls(vocabulary, item_index, np.zeros(len(item_index), np.int64), offsets)

    def save(self, folder: str | os.PathLike) -> PreparedData:
        """Write a prepared folder, whole or not at all; return the data memory-mapped from it.

        Raises:
            FileExistsError: `folder` exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"`{folder}` exists. Choose another folder.")
        aside = scratch(folder)
        aside.mkdir(parents=True)
        try:
            for name in ARRAYS:
                np.save(aside / f"{name}.npy", getattr(self, name))
            for number, values in enumerate(self.event_columns.values()):
                np.save(aside / f"event_{number}.npy", values)
            self.write_tables(aside)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return PreparedData.open(folder)

    def write_tables(self, folder: Path) -> None:
        """Write the files of a prepared folder beside its arrays."""
        self.vocabulary.save(folder)
        pa.parquet.write_table(self.users, folder / USERS)
        pa.parquet.write_table(self.items, folder / ITEMS)
        pa.csv.write_csv(self.refused, folder / REFUSED)
        if any(self.features.values()):
            save_features(folder, self.features)
        manifest = {"format_version": FORMAT, "tfrec_version": __version__} | self.manifest
        manifest |= {"event_columns": list(self.event_columns)} if self.event_columns else {}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.vocabulary)

    @property
    def num_events(self) -> int:
        return len(self.item_index)

    @property
    def ticks_per_second(self) -> int:
        """The resolution of `timestamp`, which is that of the log: 1, 1,000, 1,000,000 or 1,000,000,000."""
        return RESOLUTIONS[self.manifest.get("time_resolution", "s")]

    def seconds(self, event) -> np.ndarray:
        """int64: the second of some events, `event` being anything that indexes an array."""
        times = self.timestamp[event]
        return times if self.ticks_per_second == 1 else times // self.ticks_per_second

    @cached_property
    def user_columns(self) -> dict[str, np.ndarray]:
        """The properties of users that a model reads, encoded: by name arrays of shape `(num_users,)`, see `event_columns`.

        Raises:
            ValueError: a property is neither a category nor a number.
        """
        features = self.features.get("users", [])
        for feature in features:
            if feature.kind not in ("category", "number"):
                raise ValueError(
                    f"Column {feature.name!r} of users is {feature.kind}: a property of users is category or number."
                )
        if not features:
            return {}
        from tfrec.data.encoding import encode_table  # takes TensorFlow, which data alone does not

        return encode_table(features, self.users)[0]

    def model_inputs(self, users: np.ndarray) -> dict[str, Any]:
        """The columns that a model reads, as `events`, `context` and `users` of `PackedBatches`.

        Args:
            users: int array, the user of each history.
        """
        columns = {
            use: {feature.name: self.event_columns[feature.name] for feature in self.features.get(use, [])}
            for use in ("events", "context")
        }
        return columns | {"users": {name: values[users] for name, values in self.user_columns.items()}}

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
        return bincount(self.item_index, self.num_items + FIRST_ITEM_INDEX)[FIRST_ITEM_INDEX:]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of item ids, events with times and columns, and the borders of users: equal for the same log, wherever it lies."""
        found = hashlib.sha256()
        found.update("\0".join(self.vocabulary.item_ids).encode())
        if self.ticks_per_second > 1:
            found.update(f"{self.ticks_per_second}".encode())
        arrays: list[tuple[str, Any, Any]] = [
            (name, getattr(self, name), dtype)
            for name, dtype in zip(ARRAYS, (np.int32, np.int64, np.int64), strict=True)
        ]
        for name, values, dtype in [*arrays, *((n, v, v.dtype) for n, v in self.event_columns.items())]:
            found.update(f"{name} {len(values)}".encode())
            step = HASH_BYTES // values.itemsize
            for first in range(0, len(values), step):
                found.update(np.ascontiguousarray(values[first : first + step], dtype).tobytes())
        return found.hexdigest()[:32]

    @cached_property
    def length_quantiles(self) -> dict[str, int]:
        """`min`, `25%`, `50%`, `75%`, `95%` and `max` of the number of events of a user."""
        quantiles = np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 0.95, 1]) if self.num_users else np.zeros(6)
        return {n: int(q) for n, q in zip(["min", "25%", "50%", "75%", "95%", "max"], quantiles, strict=True)}

    def describe(self) -> dict[str, Any]:
        """Users, items, events, length quantiles, time span, sparsity, item features: the figures of `tfrec prepare --describe`."""
        first, last, num_tied = self._times()
        features = {
            f"{whose} features": {n: describe_feature(e) for n, e in self.manifest.get(f"{whose}_features", {}).items()}
            for whose in ("item", "event", "user")
        }

        def day(ticks: int) -> str:
            return f"{datetime.datetime.fromtimestamp(ticks // self.ticks_per_second, datetime.UTC):%Y-%m-%d %H:%M:%S}"

        return {
            "users": self.num_users,
            "items": self.num_items,
            "events": self.num_events,
            "events per user": self.length_quantiles | {"mean": round(float(self.lengths.mean()), 2)},
            "time span (UTC)": [day(first), day(last)] if last else None,
            "resolution of times": self.manifest.get("time_resolution", "s") if last else None,
            "events with the time of another of their user": round(num_tied / self.num_events, 6) if last else None,
            "sparsity": round(1 - self.num_events / (self.num_users * self.num_items), 6),
        } | {name: of_columns for name, of_columns in features.items() if of_columns}

    def _times(self) -> tuple[int, int, int]:
        """The first and the last known time, and how many events share user and time with another one; zeros without times."""
        first, last, num_tied = np.iinfo(np.int64).max, 0, 0
        for part in pieces(self.num_events):
            known = self.timestamp[part][self.timestamp[part] != 0]
            if len(known):
                first, last = min(first, int(known.min())), max(last, int(known.max()))
            begin, end = max(part.start - 1, 0), min(part.stop + 1, self.num_events)
            times, user = self.timestamp[begin:end], np.searchsorted(self.offsets, np.arange(begin, end), "right")
            is_same = (times[1:] == times[:-1]) & (user[1:] == user[:-1])
            is_tied = np.append(is_same, False) | np.insert(is_same, 0, False)
            num_tied += int(is_tied[part.start - begin : part.stop - begin].sum())
        return first if last else 0, last, num_tied
