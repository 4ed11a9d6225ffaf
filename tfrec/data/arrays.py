"""Flat arrays that may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

STEP = 1 << 22
"""Values that are worked on at a time."""


class ArrayWriter:
    """Writes an array piece by piece, to a `.npy` file of a folder, or to memory.

    >>> writer = ArrayWriter(None, "item_index", np.int32)
    >>> writer.append(np.array([1, 2]))
    >>> writer.append(np.array([3]))
    >>> writer.finish()
    array([1, 2, 3], dtype=int32)

    Args:
        folder: Path, or None for memory.
        name: str, the name of the file without `.npy`.
        dtype: the type of the values.
    """

    def __init__(self, folder: Path | None, name: str, dtype: type) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._path = None if folder is None else folder / f"{name}.npy"
        self._pieces: list[np.ndarray] = []
        self._file: BinaryIO | None = None
        if self._path is not None:
            self._aside = self._path.with_suffix(".partial")
            self._file = self._aside.open("wb")
            self._write_header(self._file)

    def _write_header(self, file: BinaryIO) -> None:
        # NumPy leaves room for the digits of the first axis, so that the header can be written again
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(file, header)

    def append(self, values: np.ndarray) -> None:
        """Add values at the end."""
        values = np.ascontiguousarray(values, self.dtype)
        self.length += len(values)
        if self._file is None:
            self._pieces.append(values)
        else:
            values.tofile(self._file)

    def finish(self) -> np.ndarray:
        """The array; memory-mapped, and open for changes, where it lies in a file."""
        if self._file is None or self._path is None:
            return np.concatenate([np.zeros(0, self.dtype), *self._pieces])
        self._file.seek(0)
        self._write_header(self._file)
        self._file.close()
        self._aside.replace(self._path)
        return np.load(self._path, mmap_mode="r+" if self.length else None)


def pieces(length: int) -> Iterator[slice]:
    """Slices that cover an array, `STEP` values at a time.

    >>> list(pieces(3))
    [slice(0, 4194304, None)]
    """
    return (slice(first, first + STEP) for first in range(0, length, STEP))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The whole numbers from `starts[i]` to below `starts[i] + lengths[i]`, range after range.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def bincount(values: np.ndarray, length: int) -> np.ndarray:
    """`np.bincount` without a copy of the whole array: int64, shape `(length,)`."""
    counts = np.zeros(length, np.int64)
    for piece in pieces(len(values)):
        counts += np.bincount(values[piece], minlength=length)
    return counts
