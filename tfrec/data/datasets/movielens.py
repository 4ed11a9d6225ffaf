"""MovieLens (Harper & Konstan 2015): ratings as events, with titles and genres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tfrec.data.datasets.download import Source, find

PUBLISHER = "https://files.grouplens.org/datasets/movielens"
ML_100K = Source(
    f"{PUBLISHER}/ml-100k.zip",
    "0e33842e24a9c977be4e0107933c0723",
    ["ml-100k/u.data", "ml-100k/u.item", "ml-100k/u.genre"],
)
ML_1M = Source(f"{PUBLISHER}/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", ["ml-1m/ratings.dat", "ml-1m/movies.dat"])
MIN_RATINGS = 5
"""ML-1M in the recommender literature (the SASRec file) leaves out movies with fewer ratings."""


def _lines(path: Path, separator: str) -> list[list[str]]:
    """The fields of a latin-1 file, line by line."""
    return [line.split(separator) for line in path.read_text(encoding="latin-1").splitlines() if line]


def _items(rows: list[tuple[str, str, list[str]]]) -> pa.Table:
    item_ids, titles, genres = zip(*rows, strict=True)
    return pa.table({"item_id": item_ids, "title": titles, "genres": pa.array(genres, pa.list_(pa.string()))})


def movielens_100k() -> dict[str, pa.Table]:
    """MovieLens 100K: 100,000 ratings of 1,682 films by 943 users. Tables `events` and `items`."""
    folder = find("ml-100k", [["u.data", "u.item", "u.genre"]], ML_100K)
    users, items, _, times = zip(*_lines(folder / "u.data", "\t"), strict=True)
    genres = [fields[0] for fields in _lines(folder / "u.genre", "|")]
    properties = [
        (fields[0], fields[1], [g for g, has in zip(genres, fields[5:], strict=True) if has == "1"])
        for fields in _lines(folder / "u.item", "|")
    ]
    return {"events": pa.table({"user": users, "item": items, "time": times}), "items": _items(properties)}


def movielens_1m() -> dict[str, pa.Table]:
    """MovieLens 1M as SASRec uses it: 999,611 ratings of 3,416 films (those with at least 5) by 6,040 users.

    The prepared copy under `$TFREC_DATA_DIR` is sequence text without times; a download from the publisher has them. Both
    have the item ids of `movies.dat`. Tables `events` and `items`.
    """
    prepared, published = ["sequences.txt", "sas_to_original_items.txt", "movies.dat"], ["ratings.dat", "movies.dat"]
    folder = find("ml-1m", [prepared, published], ML_1M)
    if (folder / "sequences.txt").is_file():
        original = dict(_lines(folder / "sas_to_original_items.txt", " "))
        histories = _lines(folder / "sequences.txt", " ")
        numbers = np.repeat(np.arange(1, len(histories) + 1), [len(history) for history in histories])
        events = {
            "user": pa.array(numbers).cast(pa.string()),
            "item": [original[i] for history in histories for i in history],
            "time": pa.nulls(len(numbers), pa.string()),
        }
    else:
        users, items, _, times = zip(*_lines(folder / "ratings.dat", "::"), strict=True)
        _names, index, counts = np.unique(items, return_inverse=True, return_counts=True)
        is_kept = counts[index] >= MIN_RATINGS
        events = {
            name: np.asarray(column)[is_kept] for name, column in (("user", users), ("item", items), ("time", times))
        }
    properties = [(fields[0], fields[1], fields[2].split("|")) for fields in _lines(folder / "movies.dat", "::")]
    return {"events": pa.table(events), "items": _items(properties)}
