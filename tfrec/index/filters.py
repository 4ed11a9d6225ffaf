"""Filters of a served model: a request lets items through by their attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

PAD, UNKNOWN = 0, -1
"""Codes of no value, and of a value that no item has."""


def values_of(value: Any) -> list[str]:
    """The values of an item's attribute: the members of a list, or the parts of a text between bars.

    >>> values_of("Action|Comedy"), values_of(["Drama"]), values_of(True), values_of(1999), values_of(None)
    (['Action', 'Comedy'], ['Drama'], ['true'], ['1999'], [])
    """
    if value is None:
        return []
    if isinstance(value, bool | np.bool_):
        return [str(value).lower()]
    if isinstance(value, list | tuple | np.ndarray):
        return [str(v) for v in value if v is not None]
    return [v for v in str(value).split("|") if v]


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
        number = {value: code for code, value in enumerate(known, PAD + 1)}
        self.names = list(attributes)
        self._values = []  # N W, for each attribute
        for name, rows in values.items():
            codes = np.full((len(rows), max(map(len, rows))), PAD, np.int32)
            for row, of_item in zip(codes, rows, strict=True):
                row[: len(of_item)] = [number[f"{name}={v}"] for v in of_item]
            self._values.append(tf.Variable(codes, trainable=False, name=name))
        codes = tf.range(PAD, len(known) + 1, dtype=tf.int32)
        self._codes = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(["", *known]), codes), UNKNOWN
        )

    def allows(self, items, allow, deny):
        """Tell the items that pass: bool tensor, shape `(R, C)`.

        Args:
            items: int32 `(R or 1, C)`.
            allow, deny: string `(R, A)`: `attribute=value`, or `""` for nothing.
        """
        allowed, denied = (self._codes.lookup(wanted)[:, tf.newaxis, tf.newaxis] for wanted in (allow, deny))  # R 1 1 A
        is_named = tf.zeros_like(allow, tf.bool)  # whether an attribute of ours is meant
        lets_through = tf.ones((), tf.bool)
        for name, values in zip(self.names, self._values, strict=True):
            of_item = tf.gather(values.value(), items)[..., tf.newaxis]  # R C W 1
            has_one_of = lambda codes: tf.reduce_any(tf.logical_and(of_item == codes, codes > PAD), axis=(2, 3))  # noqa: B023, E731
            is_mine = tf.strings.regex_full_match(allow, f"{re.escape(name)}=(?s:.*)")
            is_named = tf.logical_or(is_named, is_mine)
            is_open = ~tf.reduce_any(is_mine, axis=1, keepdims=True)
            lets_through &= tf.logical_and(tf.logical_or(is_open, has_one_of(allowed)), ~has_one_of(denied))
        is_sound = tf.reduce_all(tf.logical_or(is_named, tf.equal(allow, "")), axis=1, keepdims=True)
        return tf.logical_and(lets_through, is_sound)


def build_filter(names: Sequence[str], items: Mapping[str, Sequence[Any]]) -> ItemFilter | None:
    """The filter by some columns of `items.parquet`; None for no column.

    Raises:
        ValueError: the items have no such column, or a name has an equals sign.
    """
    for name in names:
        if name not in items:
            raise ValueError(f"The items have no attribute `{name}` to filter by. There are: {', '.join(items)}.")
        if "=" in name:
            raise ValueError(
                f"`{name}` has an equals sign, which ends the name of an attribute in a request: rename it."
            )
    return ItemFilter({name: items[name] for name in names}) if names else None
