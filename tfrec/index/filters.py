"""Filters of a served model: a request lets items through by their attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrec.data.vocabulary import id_text

DENSE_VALUES = 8
"""Up to so many values of an item, a table with a column for each is quicker than values one after the other."""
NO_VALUE = 0
"""The code of no value, and of a value that no item has."""


def values_of(value: Any) -> list[str]:
    """The values of an item's attribute: the members of a list, or the parts of a text between bars.

    >>> values_of("Action|Comedy"), values_of(["Drama"]), values_of(True), values_of(1999), values_of(None)
    (['Action', 'Comedy'], ['Drama'], ['true'], ['1999'], [])
    """
    if isinstance(value, list | tuple | np.ndarray):
        return [text for text in map(_text, value) if text is not None]
    return [v for v in (_text(value) or "").split("|") if v]


def _text(value: Any) -> str | None:
    """A value as a request writes it: 1999.0 of a column of floats is `1999`."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return id_text(value) if isinstance(value, str | int | float | np.number) or value is None else str(value)


def wanted_of(wanted: Mapping[str, Any]) -> list[str]:
    """The values that a request names, as the served model reads them.

    >>> wanted_of({"genres": ["Comedy", "Drama"], "year": 1999.0})
    ['genres=Comedy', 'genres=Drama', 'year=1999']
    """
    lists = {name: v if isinstance(v, list | tuple | set | np.ndarray) else [v] for name, v in wanted.items()}
    return [f"{name}={_text(value)}" for name, values in lists.items() for value in values]


class ItemFilter(tf.Module):
    """Lets items through by the values of their attributes.

    A request names values as `attribute=value`. An item passes if it has an allowed value of each attribute that the request
    names, and none of the denied values. A value that no item has lets nothing through.

    Args:
        attributes: dict, the values of the items by the name of the attribute, of any kind that `values_of` knows.
    Raises:
        ValueError: no item has a value of an attribute.
    """

    def __init__(self, attributes: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(name="filter")
        values = {name: [values_of(v) for v in column] for name, column in attributes.items()}
        known = [f"{name}={v}" for name, rows in values.items() for v in sorted({v for row in rows for v in row})]
        for name, rows in values.items():
            if not any(rows):
                raise ValueError(f"No item has a value of `{name}`: there is nothing to filter by.")
        number = {value: code for code, value in enumerate(known, NO_VALUE + 1)}
        self.names = list(attributes)
        self._num_codes = NO_VALUE + 1 + len(known)
        self._values = [
            _Values([[number[f"{name}={v}"] for v in dict.fromkeys(row)] for row in rows], name)
            for name, rows in values.items()
        ]
        codes = tf.range(self._num_codes, dtype=tf.int32)
        self._codes = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(["", *known]), codes), NO_VALUE
        )

    def allows(self, items, allow, deny):
        """Tell the items that pass: bool tensor, shape `(R, C)`.

        Time and memory follow the number of values that the items have, and that the request names; not their product.

        Args:
            items: int32 `(R or 1, C)`.
            allow, deny: string `(R, A)`: `attribute=value`, or `""` for nothing.
        """
        number = tf.shape(allow)[0]
        items = tf.broadcast_to(items, (number, tf.shape(items)[1]))
        first = tf.range(number) * self._num_codes
        tables = self._table(allow, first), self._table(deny, first)
        is_named = tf.zeros_like(allow, tf.bool)  # whether an attribute of ours is meant
        lets_through = tf.ones((), tf.bool)
        for name, values in zip(self.names, self._values, strict=True):
            is_mine = tf.strings.regex_full_match(allow, f"{re.escape(name)}=(?s:.*)")
            is_named = tf.logical_or(is_named, is_mine)
            is_open = ~tf.reduce_any(is_mine, axis=1, keepdims=True)
            has_allowed, has_denied = values.have_one_of(tables, items, first)
            lets_through &= tf.logical_and(tf.logical_or(is_open, has_allowed), ~has_denied)
        is_sound = tf.reduce_all(tf.logical_or(is_named, tf.equal(allow, "")), axis=1, keepdims=True)
        return tf.logical_and(lets_through, is_sound)

    def _table(self, wanted, first):
        """How often a request names each code, which begin at `first`, `(R,)`: int32 `(R * codes,)`."""
        codes = self._codes.lookup(wanted)  # R A
        is_known = tf.cast(codes > NO_VALUE, tf.int32)
        return tf.math.unsorted_segment_sum(is_known, first[:, tf.newaxis] + codes, tf.size(first) * self._num_codes)


class _Values(tf.Module):
    """The codes that each item has of one attribute.

    Args:
        codes: a list of codes for each item.
        name: str, the attribute.
    """

    def __init__(self, codes: Sequence[Sequence[int]], name: str) -> None:
        super().__init__(name="values")
        lengths = np.array([len(own) for own in codes])
        self._is_dense = bool(lengths.max() <= DENSE_VALUES)
        if self._is_dense:
            table = np.full((len(codes), lengths.max()), NO_VALUE, np.int32)
            for row, own in zip(table, codes, strict=True):
                row[: len(own)] = own
            self._table = tf.Variable(table, trainable=False, name=name)
        else:
            flat = [code for own in codes for code in own]
            self._flat = tf.Variable(flat, dtype=tf.int32, trainable=False, name=name)
            ends = np.insert(np.cumsum(lengths), 0, 0).astype(np.int32)
            self._ends = tf.Variable(ends, trainable=False, name=f"{name}_ends")

    def have_one_of(self, tables, items, first):
        """For each table of `ItemFilter._table`, whether each item, `(R, C)`, has one of its codes: bool `(R, C)`.

        `first`, `(R,)`, is where the codes of a request begin in a table.
        """
        if self._is_dense:
            codes = tf.gather(self._table.value(), items) + first[:, tf.newaxis, tf.newaxis]  # R C W
            return [tf.reduce_max(tf.gather(table, codes), axis=2) > 0 for table in tables]
        flat, ends = tf.reshape(items, (-1,)), self._ends.value()
        own = tf.ragged.range(tf.gather(ends, flat), tf.gather(ends, flat + 1))  # R * C, places of the item's codes
        row = tf.repeat(first, tf.shape(items)[1])
        codes = tf.gather(self._flat.value(), own.values) + tf.gather(row, own.value_rowids())
        number = [tf.concat([[0], tf.cumsum(tf.gather(table, codes))], axis=0) for table in tables]  # named, so far
        found = [tf.gather(n, own.row_splits[1:]) > tf.gather(n, own.row_splits[:-1]) for n in number]
        return [tf.reshape(has_some, tf.shape(items)) for has_some in found]


def build_filter(names: Sequence[str], items: pa.Table) -> ItemFilter | None:
    """The filter by some columns of the properties of items; None for no column.

    Raises:
        ValueError: the items have no such column, or a name has an equals sign.
    """
    for name in names:
        if name not in items.column_names:
            raise ValueError(
                f"The items have no attribute `{name}` to filter by. There are: {', '.join(items.column_names)}."
            )
        if "=" in name:
            raise ValueError(
                f"`{name}` has an equals sign, which ends the name of an attribute in a request: rename it."
            )
    return ItemFilter({name: items[name].to_pylist() for name in names}) if names else None
