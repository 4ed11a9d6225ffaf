"""Item ids, attribute values and numbers as users pass them, and the text that a request holds."""

from __future__ import annotations

import keyword
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Id = str | int | float | np.integer | np.floating
"""An id: text, or the number that is meant by the text of its digits."""
EXACT = 2**53
"""Beyond it, different integers are the same float."""


def id_text(value: Any, name: str = "An id") -> str:
    """The text of one id: `50`, `np.int64(50)` and `50.0` are `"50"`.

    Raises:
        TypeError: the id is neither text nor a number.
        ValueError: the id is a number that is not whole, or too large to be exact as a float.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, float | np.floating):
        raise TypeError(
            f"{name} is text, such as '50', or a whole number. Received: {reprlib.repr(value)} ({type(value).__name__})."
        )
    number = float(value)
    if not number.is_integer():  # NaN and infinity are none either
        raise ValueError(f"{name} that is a number must be whole. Received: {number!r}.")
    if abs(number) >= EXACT:
        raise ValueError(f"{name} this large is not exact as a float: pass it as text. Received: {number!r}.")
    return str(int(number))


def id_bytes(values: Iterable[Id], name: str) -> list[bytes]:
    """The ids of a list in UTF-8.

    Raises:
        TypeError, ValueError: `values` is no list of ids; the message starts with `name`.
    """
    if type(values) is not list:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable) or isinstance(values, Mapping):
            raise TypeError(
                f"`{name}` is a list of ids, such as ['50', '181']. Received: {reprlib.repr(values)} ({type(values).__name__})."
            )
        values = list(values)
    try:
        return list(map(str.encode, values))  # type: ignore[arg-type]
    except TypeError:
        return [id_text(value, f"An id in `{name}`").encode() for value in values]


def id_row(values: Iterable[Id], name: str) -> np.ndarray:
    """The ids of a list as an input of one row: object array of bytes, shape `(1, len(values))`."""
    encoded = id_bytes(values, name)
    row = np.empty((1, len(encoded)), object)
    row[0] = encoded
    return row


def filter_row(wanted: Mapping[str, Sequence[Id]] | None, name: str) -> np.ndarray:
    """`{"genres": ["Comedy"]}` in the form of a request: `genres=Comedy`, in one row.

    Raises:
        TypeError, ValueError: `wanted` is no dict of lists of values.
    """
    if not isinstance(wanted or {}, Mapping):
        raise TypeError(
            f"`{name}` is a dict of lists, such as {{'genres': ['Comedy']}}. Received: {reprlib.repr(wanted)}."
        )
    pairs = [
        id_text(attribute, "An attribute").encode() + b"=" + value
        for attribute, values in (wanted or {}).items()
        for value in id_bytes(values, f"{name}[{attribute!r}]")
    ]
    return id_row([], name) if not pairs else np.array([pairs], object)


def whole(value: Any, name: str) -> np.ndarray:
    """A whole number as an input of one row: int32, shape `(1,)`.

    Raises:
        TypeError, ValueError: it is no whole number, or none of 32 bits.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` is a whole number. Received: {reprlib.repr(value)} ({type(value).__name__}).")
    number = operator.index(value)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"`{name}` is a number of 32 bits. Received: {number}.")
    return np.array([number], np.int32)


def input_name(column: str) -> str:
    """The name of a column as an input or output of a served model; `tfrec.data.features` has the same rule.

    >>> [input_name(column) for column in ("event type", "größe", "2nd", "class")]
    ['event_type', 'gru00f6u00dfe', 'column_2nd', 'column_class']
    """
    name = "".join(c if c.isascii() and c.isalnum() else f"u{ord(c):04x}" if c.isalnum() else "_" for c in column)
    is_taken = not name[:1].isalpha() or keyword.iskeyword(name) or name == "self"
    return f"column_{name}" if is_taken else name


def feature_input(column: str, values: Sequence[Any], prefix: str = "") -> tuple[str, np.ndarray]:
    """The input of a column, and its values as text or float32, whatever they all are; None is missing, True is `true`.

    >>> feature_input("event type", ["view", None])
    ('event_type', array([b'view', b''], dtype=object))

    Raises:
        TypeError: a value is neither text nor a number, or they are not all of one kind.
    """
    name = prefix + input_name(column)
    values = [None if value is None or value != value else value for value in values]  # NaN is no value of text either
    values = [str(value).lower() if isinstance(value, bool | np.bool_) else value for value in values]
    known = [value for value in values if value is not None]
    if known and all(isinstance(v, int | float | np.number) for v in known):
        with np.errstate(over="ignore"):
            return name, np.array(values, np.float32)  # None becomes NaN
    if other := [value for value in known if not isinstance(value, str)]:
        raise TypeError(
            f"The values of {column!r} are text, or numbers, or None. Received: {reprlib.repr(other[0])} "
            f"({type(other[0]).__name__})."
        )
    row = np.empty(len(values), object)
    row[:] = [(value or "").encode() for value in values]
    return name, row


def text_array(values: Any) -> np.ndarray:
    """Ids of any shape as an object array of bytes; bytes stay as they are, and `[[]]` has shape (1, 0).

    Raises:
        TypeError, ValueError: a value is no id.
    """
    array = np.array(values, object)
    encode = np.frompyfunc(lambda v: v if isinstance(v, bytes) else id_text(v).encode(), 1, 1)
    return np.asarray(encode(array), object) if array.size else array
