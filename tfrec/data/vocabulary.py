"""Item ids (strings) and item indexes (integers), and the two indexes that are not items."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAD_INDEX = 0
"""The index of padding, which fills up a row."""
OOV_INDEX = 1
"""The index of an id that the vocabulary lacks (out of vocabulary)."""
FIRST_ITEM_INDEX = 2
"""The index of the first real item: an item is known where `item_index >= FIRST_ITEM_INDEX`."""


def id_text(value: Any) -> str | None:
    """An id, a time or a value of a filter as text: a whole float is the whole number, NaN and infinity are missing.

    >>> id_text(123.0), id_text("0123"), id_text(float("nan"))
    ('123', '0123', None)

    Raises:
        ValueError: it is neither text nor a number.
    """
    if value is None or value != value or (isinstance(value, float | np.floating) and np.isinf(value)):
        return None
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"neither text nor a number: {value!r}")
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) < 2.0**63:
        return str(int(value))
    if isinstance(value, str | int | float | np.number):
        text = str(value)
        if isinstance(value, str) and not value.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError("broken Unicode escape") from None
        return text
    raise ValueError(f"neither text nor a number: {str(value)[:40]}")


class Vocabulary:
    """The catalogue in index order: item `i` of `item_ids` has item index `i + FIRST_ITEM_INDEX`.

    Args:
        item_ids: sequence of distinct, non-empty strings.
    Raises:
        ValueError: an id is empty or occurs twice (the message names it).

    >>> vocabulary = Vocabulary(["espresso", "latte"])
    >>> vocabulary.encode(["latte", "mocha", ""])
    array([3, 1, 0], dtype=int32)
    >>> vocabulary.decode([2, 0])
    ['espresso', '']
    """

    FILE_NAME = "vocabulary.json"

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = list(item_ids)
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids, FIRST_ITEM_INDEX)}
        if "" in self._index:
            raise ValueError('`item_ids` must not hold the empty string: "" means padding.')
        if len(self._index) != len(self.item_ids):
            seen: set[str] = set()
            twice = next(i for i in self.item_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise ValueError(f"`item_ids` must be distinct. Received twice: {twice!r}.")

    def __len__(self) -> int:
        """The number of items; padding and unknown are not items."""
        return len(self.item_ids)

    def encode(self, item_ids: Iterable[str]) -> np.ndarray:
        """Ids to int32 indexes: `""` to `PAD_INDEX`, an id not in the catalogue to `OOV_INDEX`."""
        return np.array([self._index.get(i, OOV_INDEX) if i else PAD_INDEX for i in item_ids], dtype=np.int32)

    def decode(self, item_indexes: Iterable[int]) -> list[str]:
        """Indexes to ids; padding and unknown become `""`."""
        return [self.item_ids[i - FIRST_ITEM_INDEX] if i >= FIRST_ITEM_INDEX else "" for i in item_indexes]

    def save(self, folder: str | os.PathLike) -> None:
        """Write `vocabulary.json`: plain JSON, so that an app or a service in any language reads it."""
        content = {
            "pad_index": PAD_INDEX,
            "oov_index": OOV_INDEX,
            "first_item_index": FIRST_ITEM_INDEX,
            "item_ids": self.item_ids,
        }
        Path(folder, self.FILE_NAME).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Vocabulary:
        """Read the vocabulary that `save` wrote into `folder`."""
        path = Path(folder, cls.FILE_NAME)
        if not path.is_file():
            raise ValueError(
                f"`{folder}` has no {cls.FILE_NAME}, so its items have no ids: copy or make the folder whole."
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["item_ids"])
