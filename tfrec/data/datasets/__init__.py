"""Named public data, found under `$TFREC_DATA_DIR`, in the cache, or downloaded by checksum; and generated logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from tfrec.data.datasets import amazon, movielens
from tfrec.data.datasets.groceries import grocery_log
from tfrec.data.datasets.synthetic import synthetic_log
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData

PUBLIC: Mapping[str, Callable[[], dict[str, pa.Table]]] = {
    "movielens-100k": movielens.movielens_100k,
    "movielens-1m": movielens.movielens_1m,
    "amazon-beauty": amazon.beauty,
}
GENERATED: Mapping[str, Callable[..., tuple[dict[str, pa.Table], dict[str, Any]]]] = {
    "synthetic": synthetic_log,
    "synthetic-groceries": grocery_log,
}
NAMES = (*PUBLIC, *GENERATED)


def prepare_dataset(
    name: str,
    out: str | os.PathLike | None = None,
    *,
    with_users: bool = False,
    prepare_options: Mapping[str, Any] | None = None,
    **synthetic_options: Any,
) -> PreparedData:
    """Prepare a named data set.

    >>> prepare_dataset("synthetic", num_users=20, num_items=40).num_events
    600

    Args:
        name: str, one of `NAMES`.
        out: the folder to write. Default: none, the data stays in memory.
        with_users: bool, also prepare the properties of users, where the data set has some; a model then reads them from each
            request. Default: False.
        prepare_options: further arguments of `prepare`. Default: none.
        synthetic_options: for `"synthetic"`, the arguments of `synthetic_log`; for `"synthetic-groceries"`, those of `grocery_log`.
    Raises:
        ValueError: there is no data set of that name.
        UnavailableError: it is not on this machine and cannot be downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"`{name}` is no named data set. There are: {', '.join(NAMES)}.")
    if name in GENERATED:
        tables, about = GENERATED[name](**synthetic_options)
    else:
        tables, about = PUBLIC[name](), {}
    roles: dict[str, Any] = {"user": "user", "item": "item", "time": "time", "items": tables.get("items")}
    roles |= {"users": tables.get("users")} if with_users else {}
    return prepare(tables["events"], out, about={"dataset": name, **about}, **roles, **(prepare_options or {}))
