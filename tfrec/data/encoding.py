"""Raw columns to encoded ones, in TensorFlow: the same in Python and in a served model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrec.data.features import Feature, input_name
from tfrec.data.raw_columns import raw_column
from tfrec.data.text import embed_text
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, OOV_INDEX, PAD_INDEX

ROWS = 1 << 16
"""Rows of a table that are encoded at a time."""


class FeatureEncoder(tf.Module):
    """Encodes raw columns; see `tfrec.data.features` for the form of each kind.

    >>> encoder = FeatureEncoder([Feature("genre", "category", values=("drama", "comedy"))])
    >>> encoder({"genre": tf.constant(["comedy", "", "opera"])})["genre"].numpy()
    array([3, 0, 1], dtype=int32)

    Args:
        features: `Feature`s.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__(name="features")
        self.features = list(features)
        self._values, self._tables = {}, {}
        self._keys = {}
        for number, feature in enumerate(self.features):
            key = self._keys[feature.name] = str(number)  # names of columns may be no names of variables
            if feature.kind in ("category", "multi"):
                keys = tf.constant(["", *feature.values])
                numbers = tf.constant(
                    [PAD_INDEX, *range(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + len(feature.values))], tf.int32
                )
                known = tf.lookup.KeyValueTensorInitializer(keys, numbers)
                self._values[key] = tf.lookup.StaticHashTable(known, OOV_INDEX)
            elif feature.kind == "text":
                self._tables[key] = tf.Variable(feature.table, trainable=False, name=f"text_{key}")

    def __call__(self, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Encode raw columns by name."""
        return {feature.name: self.encode(feature.name, raw[feature.name]) for feature in self.features}

    def encode(self, name: str, raw: Any) -> tf.Tensor:
        """Encode one raw column."""
        key = self._keys[name]
        if key in self._values:
            return self._values[key].lookup(raw)
        return embed_text(raw, self._tables[key].value()) if key in self._tables else raw

    def signature(self) -> list[tf.TensorSpec]:
        """The raw columns as named inputs of a served model."""
        return [input_spec(feature) for feature in self.features]

    def handles(self) -> list[Any]:
        """The resources that no garbage collection frees."""
        return [table.resource_handle for table in self._values.values()]


def input_spec(feature: Feature, *shape: int | None) -> tf.TensorSpec:
    """The raw column of a feature as a named input; `shape` is that of its rows, `(None,)` by default.
    Its name is that of `input_name`.
    """
    rows = shape or (None,)
    inner = {"multi": (None,), "vector": (feature.width,)}.get(feature.kind, ())
    dtype = tf.string if feature.kind in ("category", "multi", "text") else tf.float32
    return tf.TensorSpec((*rows, *inner), dtype, input_name(feature.name))


def encode_table(features: Sequence[Feature], table: pa.Table) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Encode the columns of a table.

    >>> encode_table([Feature("genre", "category", values=("drama",))], pa.table({"genre": ["drama", "opera", None]}))
    ({'genre': array([2, 1, 0], dtype=int32)}, {'genre': 1})

    Args:
        features: `Feature`s; a column that the table lacks is missing in every row.
        table: PyArrow table.
    Returns:
        `(encoded, num_unknown)`: arrays with a row for each of the table's, and of each category the number of unknown values.
    """
    encoder = FeatureEncoder(features)
    raw = {}
    for feature in features:
        if feature.name in table.column_names:
            options: dict[str, Any] = {
                "separator": feature.separator,
                "width": feature.width,
                "encoder": feature.encoder,
            }
            raw[feature.name] = raw_column(feature.name, feature.kind, table[feature.name], **options)
        else:
            spec = input_spec(feature, len(table))
            shape = [1 if size is None else size for size in spec.shape]
            missing = "" if spec.dtype == tf.string else float("nan") if feature.kind in ("number", "date") else 0.0
            raw[feature.name] = np.full(shape, missing, object if spec.dtype == tf.string else np.float32)
    parts: dict[str, list[np.ndarray]] = {feature.name: [] for feature in features}
    for first in range(0, max(len(table), 1), ROWS):
        here = {name: tf.constant(values[first : first + ROWS]) for name, values in raw.items()}
        for name, values in encoder(here).items():
            parts[name].append(values.numpy())
    encoded = {name: np.concatenate(values) for name, values in parts.items()}
    unknown = {f.name: int((encoded[f.name] == OOV_INDEX).sum()) for f in features if f.kind in ("category", "multi")}
    return encoded, unknown
