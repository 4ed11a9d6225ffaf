"""Named public data, found under `$TFREC_DATA_DIR`, in the cache, or downloaded by checksum; and a generated log."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from tfrec.data.datasets import amazon, movielens
from tfrec.data.datasets.synthetic import synthetic_log
from tfrec.data.interactions import Report, prepare

PUBLIC: Mapping[str, Callable[[], dict[str, pa.Table]]] = {
    "movielens-100k": movielens.movielens_100k,
    "movielens-1m": movielens.movielens_1m,
    "amazon-beauty": amazon.beauty,
}
NAMES = (*PUBLIC, "synthetic")


def prepare_dataset(
    name: str, out: str | os.PathLike, *, prepare_options: Mapping[str, Any] | None = None, **synthetic_options: Any
) -> Report:
    """Write named data as prepared data.

    Args:
        name: one of `NAMES`.
        out: the folder to write.
        prepare_options: what `tfrec.prepare` takes.
        synthetic_options: for `"synthetic"`: what `synthetic_log` takes.
    Raises:
        ValueError: there is no such data.
        tfrec.data.datasets.download.UnavailableError: it is not on this machine and cannot be downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"`{name}` is no named data set. There are: {', '.join(NAMES)}.")
    if name == "synthetic":
        tables, about = synthetic_log(**synthetic_options)
    else:
        tables, about = PUBLIC[name](), {}
    return prepare(tables, out, about={"dataset": name, **about}, **(prepare_options or {}))
