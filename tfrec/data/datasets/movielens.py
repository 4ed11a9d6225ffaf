"""MovieLens (Harper & Konstan 2015): ratings as events, films with title, year and genres, users."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from tfrec.data.datasets.download import Source, find

PUBLISHER = "https://files.grouplens.org/datasets/movielens"
ML_100K = Source(
    f"{PUBLISHER}/ml-100k.zip",
    "0e33842e24a9c977be4e0107933c0723",
    ["ml-100k/u.data", "ml-100k/u.item", "ml-100k/u.genre", "ml-100k/u.user"],
)
ML_1M = Source(f"{PUBLISHER}/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", ["ml-1m/ratings.dat", "ml-1m/movies.dat"])
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
MIN_RATINGS = 5
"""ML-1M in the recommender literature (the SASRec file) leaves out movies with fewer ratings."""


def _lines(path: Path, separator: str) -> list[list[str]]:
    """The fields of a latin-1 file, line by line."""
    return [line.split(separator) for line in path.read_text(encoding="latin-1").splitlines() if line]


def _items(item_ids: list[str], titles: list[str], genres: list[list[str]]) -> dict[str, pa.Array]:
    """Columns of films; the year is that at the end of the title."""
    years = [re.findall(r"\((\d{4})\)", title) for title in titles]
    return {
        "item_id": pa.array(item_ids),
        "title": pa.array(titles),
        "year": pa.array([int(found[-1]) if found else None for found in years], pa.int16()),
        "genres": pa.array(genres, pa.list_(pa.string())),
    }


def _day(text: str) -> datetime.date | None:
    """A day such as 01-Jan-1995; `strptime` would read the months of the machine's language."""
    if not text:
        return None
    day, month, year = text.split("-")
    return datetime.date(int(year), MONTHS.index(month) // 3 + 1, int(day))


def movielens_100k() -> dict[str, pa.Table]:
    """MovieLens 100K: 100,000 ratings of 1,682 films by 943 users.

    Tables `events`, `items`, and `users` where the folder has `u.user`.
    """
    folder = find("ml-100k", [["u.data", "u.item", "u.genre"]], ML_100K)
    users, items, ratings, times = zip(*_lines(folder / "u.data", "\t"), strict=True)
    genres = [fields[0] for fields in _lines(folder / "u.genre", "|")]
    films = _lines(folder / "u.item", "|")
    own_genres = [[g for g, has in zip(genres, fields[5:], strict=True) if has == "1"] for fields in films]
    properties = _items([fields[0] for fields in films], [fields[1] for fields in films], own_genres)
    properties["released"] = pa.array([_day(fields[2]) for fields in films], pa.date32())
    rating = pa.array(ratings).cast(pa.float32())
    tables = {
        "events": pa.table({"user": users, "item": items, "time": times, "rating": rating}),
        "items": pa.table(properties),
    }
    if (folder / "u.user").is_file():
        ids, ages, genders, occupations, _zips = zip(*_lines(folder / "u.user", "|"), strict=True)
        of_users = {
            "user_id": ids,
            "age": pa.array(ages).cast(pa.int16()),
            "gender": genders,
            "occupation": occupations,
        }
        tables["users"] = pa.table(of_users)
    return tables


def movielens_1m() -> dict[str, pa.Table]:
    """MovieLens 1M as SASRec uses it: 999,611 ratings of 3,416 films (those with at least 5) by 6,040 users.

    The prepared copy under `$TFREC_DATA_DIR` is sequence text without times; a download from the publisher has them, and ratings.
    Both have the item ids of `movies.dat`. Tables `events` and `items`.
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
        users, items, ratings, times = zip(*_lines(folder / "ratings.dat", "::"), strict=True)
        _names, index, counts = np.unique(items, return_inverse=True, return_counts=True)
        is_kept = counts[index] >= MIN_RATINGS
        given = {"user": users, "item": items, "time": times, "rating": np.asarray(ratings, np.float32)}
        events = {name: np.asarray(column)[is_kept] for name, column in given.items()}
    films = _lines(folder / "movies.dat", "::")
    item_ids, titles, genres = ([fields[n] for fields in films] for n in range(3))
    return {"events": pa.table(events), "items": pa.table(_items(item_ids, titles, [own.split("|") for own in genres]))}
