"""The sample of a run: the newest events of some users, in one file, with the columns that a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.raw_columns import raw_column
from tfrec.data.vocabulary import Vocabulary
from tfrec.files import write_whole

ARRAYS = ("item_index", "timestamp", "offsets")
EVENT, USER = "event ", "user "
"""Begin the names of arrays of columns of events and of users."""


def save_sample(path: Path, sample: PreparedData) -> None:
    """Write a sample, whole or not at all; see `LeaveLastOut.sample`."""
    arrays: dict[str, Any] = {name: getattr(sample, name) for name in ARRAYS}
    arrays |= {EVENT + name: values for name, values in sample.event_columns.items()}
    for feature in sample.features.get("users", []):
        values = raw_column(feature.name, feature.kind, sample.users[feature.name])
        arrays[USER + feature.name] = values.astype(str) if values.dtype == object else values
    write_whole(path, lambda aside: np.savez(aside, **arrays))


def load_sample(path: Path, vocabulary: Vocabulary, features: dict[str, list[Feature]]) -> PreparedData:
    """Read a sample; its users have their row numbers as ids.

    Args:
        path: Path, the file.
        vocabulary: `Vocabulary`, the catalogue.
        features: lists of `Feature` by whose they are, as of `PreparedData`.
    """
    with np.load(path, allow_pickle=False) as arrays:
        parts = {name: arrays[name] for name in ARRAYS}
        events, users = (
            {name.removeprefix(begin): arrays[name] for name in arrays.files if name.startswith(begin)}
            for begin in (EVENT, USER)
        )
    rows = pa.array(np.arange(len(parts["offsets"]) - 1)).cast(pa.string())
    table = pa.table({"user_id": rows, **users}) if users else None
    return PreparedData(vocabulary, **parts, users=table, features=features, event_columns=events)
