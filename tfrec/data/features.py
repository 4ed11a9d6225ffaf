"""Features: columns of items, users and events as the numbers that a model reads, with what was learned from the data.

A feature reads a raw column and gives encoded values:

kind       raw column                                  encoded
category   string (...)                                int32 (...): `PAD_INDEX` missing, `OOV_INDEX` unknown, else a known value
multi      string (..., values), "" = none             int32 (..., values), the same numbers
number     float32 (...), NaN = missing                the same
date       float32 (...), days since 1970, NaN         the same
vector     float32 (..., width), zeros = missing       the same
text       string (...), "" = missing                  float32 (..., width), see `tfrec.data.text`

`raw_column` makes a raw column of one of a file, `FeatureEncoder` encodes it, in Python and in a served model alike, and
`FeatureEmbedding` reads what is encoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import keyword
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.raw_columns import plain_array, raw_column, value_lists, values_of
from tfrec.data.text import fit_text

FEATURES, TABLES = "features.json", "features.npz"
MAX_VALUES = 10_000
"""Values of a category that get a number of their own: the most frequent. The others are unknown."""
SMALL, MIN_ROWS = 32, 2
"""Of a category of more than `SMALL` values, each needs `MIN_ROWS` rows to get a number."""
SKEWED = 3.0
"""Skewness above which a number that is never negative is read on a log scale."""


@dataclass(frozen=True)
class Feature:
    """One column and how it becomes numbers.

    >>> genre = Feature("genre", "category", values=("drama", "comedy"))
    >>> genre.spec
    {'kind': 'category', 'num_values': 2}

    Attributes:
        name: str, the column.
        kind: str, `category`, `multi`, `number`, `date`, `vector` or `text`.
        values: tuple of str, for categories the known values in the order of their numbers.
        separator: str, for `multi` columns of text, what stands between the values.
        mean, stddev: float, of a number; on a log scale with `is_log`.
        is_log: bool, whether a number is read as `sign(x) log(1 + |x|)`.
        width: int, of a vector, or of what a text becomes.
        encoder: str, of a `vector` that is made of text, the name of the installed sentence encoder.
        table: float32 array `(buckets, width)`, of `text`: see `tfrec.data.text`; None for the others.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    separator: str = ""
    mean: float = 0.0
    stddev: float = 1.0
    is_log: bool = False
    width: int = 0
    encoder: str = ""
    table: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def spec(self) -> dict[str, Any]:
        """What `FeatureEmbedding` needs to know: plain values."""
        if self.kind in ("category", "multi"):
            return {"kind": self.kind, "num_values": len(self.values)}
        if self.kind in ("number", "date"):
            return {"kind": "number", "mean": self.mean, "stddev": self.stddev, "is_log": self.is_log}
        return {"kind": "vector", "width": self.width}

    def to_dict(self) -> dict[str, Any]:
        """The fields but `table`, as plain values; those at their default are left out."""
        fields = {f.name: f.default for f in dataclasses.fields(self) if f.name != "table"}
        own = {name: getattr(self, name) for name, default in fields.items() if getattr(self, name) != default}
        return own | {"values": list(self.values)} if self.values else own

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], table: np.ndarray | None = None) -> Feature:
        """The feature of `to_dict`."""
        return cls(**{**fields, "values": tuple(fields.get("values", ())), "table": table})


def first_category(features: Iterable[Feature]) -> Feature | None:
    """The first feature of categories, one or several a row; None where there is none."""
    return next((feature for feature in features if feature.kind in ("category", "multi")), None)


def input_name(column: str) -> str:
    """The name of a column as an input or output of a served model; `tfrec_serving.ids` has the same rule.

    TensorFlow takes no other names: ASCII letters, digits and underscores, a letter first, no word of Python. What is no such
    character is an underscore, a letter of another alphabet its code.

    >>> [input_name(column) for column in ("event type", "größe", "2nd", "class")]
    ['event_type', 'gru00f6u00dfe', 'column_2nd', 'column_class']
    """
    name = "".join(c if c.isascii() and c.isalnum() else f"u{ord(c):04x}" if c.isalnum() else "_" for c in column)
    is_taken = not name[:1].isalpha() or keyword.iskeyword(name) or name == "self"
    return f"column_{name}" if is_taken else name


def twin_input(columns: Iterable[str]) -> tuple[str, str] | None:
    """The first two columns whose inputs TensorFlow does not tell apart, which ignores case; None where there are none.

    >>> twin_input(["Device", "shop", "device"])
    ('Device', 'device')
    """
    seen: dict[str, str] = {}
    for column in columns:
        if (name := input_name(column).lower()) in seen:
            return seen[name], column
        seen[name] = column
    return None


def fit_feature(name: str, kind: str, column: pa.ChunkedArray, separator: str = "", encoder: str = "") -> Feature:
    """Learn what a feature needs to know from its column.

    >>> fit_feature("genres", "multi", pa.chunked_array([["a|b", "b", None]]), separator="|").values
    ('b', 'a')

    Args:
        name: str, of the column.
        kind, separator, encoder: see `Feature`.
        column: PyArrow column, as a file has it; see `raw_column`.
    Raises:
        ValueError: the column holds no values of this kind; the message says which row.
    """
    feature = Feature(name, kind, separator=separator, encoder=encoder)
    if kind in ("category", "multi"):
        array = plain_array(column)
        values = values_of(name, array) if kind == "category" else value_lists(name, array, separator)[0]
        return dataclasses.replace(feature, values=tuple(_frequent(values, is_multi=kind == "multi")))
    if encoder:  # its width is known from one row
        return dataclasses.replace(feature, width=raw_column(name, kind, column[:1], encoder=encoder).shape[1])
    raw = raw_column(name, kind, column)
    if kind in ("number", "date"):
        return fit_number(feature, raw[~np.isnan(raw)].astype(np.float64))
    if kind == "vector":
        return dataclasses.replace(feature, width=raw.shape[1])
    table = fit_text(raw)
    return dataclasses.replace(feature, width=table.shape[1], table=table)


def fit_number(feature: Feature, known: np.ndarray, counts: np.ndarray | None = None) -> Feature:
    """A `number` or `date` with the mean, the deviation and the scale of its values.

    >>> fit_number(Feature("price", "number"), np.array([1.0, 4.0]), np.array([2, 1])).mean
    2.0

    Args:
        feature: `Feature`.
        known: float64 array, the values.
        counts: int array, how many rows have each of them. Default: one.
    """
    if not len(known):
        return feature

    def moments(values: np.ndarray) -> tuple[float, float]:
        mean = np.average(values, weights=counts)
        return float(mean), float(np.average((values - mean) ** 2, weights=counts) ** 0.5)

    mean, spread = moments(known)
    skewness = np.average((known - mean) ** 3, weights=counts) / spread**3 if spread else 0.0
    is_log = bool(feature.kind == "number" and skewness > SKEWED and known.min() >= 0)
    mean, spread = moments(np.log1p(known)) if is_log else (mean, spread)
    return dataclasses.replace(feature, mean=mean, stddev=spread or 1.0, is_log=is_log)


def fit_again(feature: Feature, table: pa.Table) -> Feature:
    """The same feature, learned from the column of another table."""
    return fit_feature(
        feature.name, feature.kind, table[feature.name], separator=feature.separator, encoder=feature.encoder
    )


def save_features(folder: str | os.PathLike, features: Mapping[str, Sequence[Feature]]) -> None:
    """Write features, by whose they are (`items`, `events`, `context`, `users`), to a folder."""
    folder = Path(folder)
    tables = {f"{owner}.{f.name}": f.table for owner, own in features.items() for f in own if f.table is not None}
    text = json.dumps({owner: [f.to_dict() for f in own] for owner, own in features.items()}, ensure_ascii=False)
    (folder / FEATURES).write_text(text, encoding="utf-8")
    if tables:
        np.savez(folder / TABLES, **tables)  # type: ignore[arg-type]


def load_features(folder: str | os.PathLike) -> dict[str, list[Feature]]:
    """The features of `save_features`; empty where a folder has none."""
    folder = Path(folder)
    if not (folder / FEATURES).is_file():
        return {}
    known = json.loads((folder / FEATURES).read_text(encoding="utf-8"))
    with np.load(folder / TABLES) if (folder / TABLES).is_file() else contextlib.nullcontext({}) as tables:
        return {
            owner: [Feature.from_dict(f, tables.get(f"{owner}.{f['name']}")) for f in own]
            for owner, own in known.items()
        }


def least_rows(num_values: int) -> int:
    """The rows of a value that it takes to get a number, in a category of so many values."""
    return 1 if num_values <= SMALL else MIN_ROWS


def _frequent(values: pa.Array, is_multi: bool) -> list[str]:
    """The distinct values that get a number, the most frequent first, then by text."""
    counts = pa.Table.from_struct_array(values.drop_null().value_counts())
    counts = counts.filter(pc.greater_equal(counts["counts"], 1 if is_multi else least_rows(len(counts))))
    order = pc.sort_indices(counts, [("counts", "descending"), ("values", "ascending")])
    return counts["values"].take(order[:MAX_VALUES]).to_pylist()
