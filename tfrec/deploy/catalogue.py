"""A trained run with another catalogue: items added or removed, without training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tfrec.data.encoding import encode_table
from tfrec.data.items import read_items
from tfrec.data.prepared import PreparedData
from tfrec.data.rows import is_list
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.evaluation.ranking import embed_histories
from tfrec.files import write_whole
from tfrec.index.filters import values_of
from tfrec.models.item_tower import ItemTower
from tfrec.models.new_items import as_table, content_features, content_vectors, new_item_row, vectors_of, with_table
from tfrec.training.run import Run

VECTOR, SIMILAR = "vector", "similar_to"


def change_catalogue(run: Run, added: pa.Table | None = None, removed: Sequence[str] = ()) -> Run:
    """Add items to a run and remove others, in memory; the model reads and recommends the new items.

    A removed item is unknown from then on, also in histories. An added item gets a given vector, the mean vector of items like it,
    or, by a model that was trained with item features, the vector of what it is.

    >>> changed = change_catalogue(run, removed=["item-7"])  # doctest: +SKIP

    Args:
        run: the trained run, whose item tower is an `ItemTower`.
        added: PyArrow table, a row for each new item: `item_id`, and perhaps `similar_to` (ids, as a list or between bars) or
            `vector` (a list of `width` numbers, whose direction alone counts for cosines), unless a feature of the model has that
            name; other columns as in `items.parquet`, the features among them. Default: none.
        removed: item ids. Default: none.
    Returns:
        A new `Run`, whose item tower is a table; the given one stays as it is.
    Raises:
        ValueError: an id is new and old at once, unknown, or twice; an added item has no vector; or the run has an item tower of
            another class. The message names it.
    """
    ids, tower = run.vocabulary.item_ids, run.model.item_tower
    if not isinstance(tower, ItemTower):
        raise ValueError(
            f"Items can be added to an `ItemTower` or removed from it, and this run has a {type(tower).__name__}: train again."
        )
    known = {item_id: number for number, item_id in enumerate(ids)}
    if unknown := [i for i in removed if i not in known]:
        others = f", nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise ValueError(f"There is no item {unknown[0]!r} to remove{others}.")
    table = vectors_of(tower)
    features = content_features(tower, run.features.get("items", []))
    hints = {VECTOR, SIMILAR} - {feature.name for feature in features}
    rows: list[dict[str, Any]] = []
    if added is not None:
        rows = added.select([name for name in added.column_names if name in {"item_id", *hints}]).to_pylist()
    new = np.zeros((len(rows), table.shape[1]), np.float32)
    if added is not None and features:
        row_of_new = row_of_new_items(run, embed_histories(run.model, run.sample_split(), "validation"))
        new = content_vectors(tower, encode_table(features, added)[0], row_of_new)
    # Candidates are L2-normalised, but histories read the raw rows: a new row gets the median norm.
    length = np.sqrt(np.median(np.einsum("nd,nd->n", table, table)[FIRST_ITEM_INDEX:])) if tower.normalize else None
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row["item_id"] in known or row["item_id"] in seen:
            raise ValueError(
                f"Item {row['item_id']!r} is in the catalogue already, or twice among the new items. Leave it out of these."
            )
        seen.add(row["item_id"])
        if (vector := _vector(row, known, table, length, has_content=bool(features))) is not None:
            new[number] = vector
    gone = set(removed)
    kept = [number for number, item_id in enumerate(ids) if item_id not in gone]
    if not kept and not rows:
        raise ValueError("No item would be left in the catalogue.")
    items = run.items.take(pa.array(kept, pa.int64()))
    if added is not None:
        new_rows = added.drop_columns([name for name in hints if name in added.column_names])
        if "num_events" not in new_rows.column_names:
            new_rows = new_rows.append_column("num_events", pa.array([0] * len(rows), items["num_events"].type))
        items = with_rows(items, new_rows)
    vocabulary = Vocabulary(items["item_id"].to_pylist())
    special = table[:FIRST_ITEM_INDEX]
    model = with_table(run.model, np.concatenate([special, table[FIRST_ITEM_INDEX:][kept], new]))
    sample = _with_catalogue(run.sample, kept, vocabulary)
    return dataclasses.replace(run, model=model, vocabulary=vocabulary, items=items, sample=sample)


def row_of_new_items(run: Run, queries: np.ndarray) -> np.ndarray:
    """`new_item_row` by the queries of validation and the config of a run."""
    boost = 0.0 if run.config is None else run.config.new_item_boost
    return new_item_row(run.model.item_tower, queries, boost)


def with_rows(items: pa.Table, new: pa.Table) -> pa.Table:
    """A table of items and rows of new ones, in the types that it has; numbers in the wider type of both.

    >>> with_rows(pa.table({"price": [2], "size": [1.0]}), pa.table({"price": [2.5], "size": ["3"]})).to_pydict()
    {'price': [2.0, 2.5], 'size': [1.0, 3.0]}

    Raises:
        ValueError: a column of the new rows cannot take the type.
    """
    is_number = lambda type_: pa.types.is_integer(type_) or pa.types.is_floating(type_)  # noqa: E731
    for number, field in enumerate(new.schema):
        wanted = items.schema.field(field.name).type if field.name in items.column_names else field.type
        if field.type != wanted and not pa.types.is_null(wanted) and not (is_number(field.type) and is_number(wanted)):
            new = new.set_column(number, field.name, _as_type(new[field.name], wanted, field.name))
    return pa.concat_tables([items, new], promote_options="permissive")


def _as_type(column: pa.ChunkedArray, type_: pa.DataType, name: str) -> pa.ChunkedArray:
    """A column of new items in the type that the catalogue has; lists of text between bars, and the other way round."""
    try:
        if is_list(column.type) and pa.types.is_string(type_):
            return pa.chunked_array(
                [[None if value is None else "|".join(values_of(value)) for value in column.to_pylist()]], type_
            )
        if is_list(type_) and not is_list(column.type):
            values = [None if value is None else values_of(value) for value in column.to_pylist()]
            return pa.chunked_array([pa.array(values, pa.list_(pa.string())).cast(type_)])
        return column.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"Column `{name}` of the new items holds {column.type}, and that of the catalogue {type_}: {why}."
        ) from None


def _with_catalogue(sample: PreparedData, kept: Sequence[int], vocabulary: Vocabulary) -> PreparedData:
    """A run's sample without the events of removed items. Item numbers `kept` come first in `vocabulary`."""
    new_index = np.zeros(FIRST_ITEM_INDEX + sample.num_items, np.int32)
    new_index[FIRST_ITEM_INDEX + np.array(kept, int)] = np.arange(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + len(kept))
    item_index = new_index[sample.item_index]
    stays = item_index > 0
    offsets = np.insert(np.cumsum(stays), 0, 0)[sample.offsets]
    columns = {name: values[stays] for name, values in sample.event_columns.items()}
    arrays = {"item_index": item_index[stays], "timestamp": sample.timestamp[stays], "offsets": offsets}
    own = {"users": sample.users, "features": sample.features, "event_columns": columns}
    return PreparedData(vocabulary, **arrays, **own)


def _vector(
    row: dict[str, Any], known: dict[str, int], table: np.ndarray, length: float | None, has_content: bool
) -> np.ndarray | None:
    """The vector that a new item's row gives, scaled to `length`, where there is one; None where content tells it."""
    name, width = repr(row["item_id"]), table.shape[1]
    if row.get(VECTOR) is not None:
        vector = np.asarray(row[VECTOR], np.float32)
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise ValueError(
                f"New item {name}: `{VECTOR}` must be {width} finite numbers. Received: {row[VECTOR]!r:.80}."
            )
        return vector if length is None else vector * (length / max(float(np.linalg.norm(vector)), 1e-12))
    alike = values_of(row.get(SIMILAR))
    if not alike:
        if has_content:
            return None
        raise ValueError(
            f"New item {name} has neither `{VECTOR}` nor `{SIMILAR}` (ids of items like it), and the model was trained without "
            f"item features."
        )
    if missing := [i for i in alike if i not in known]:
        raise ValueError(f"New item {name}: `{SIMILAR}` names {missing[0]!r}, which is not in the catalogue.")
    return table[[FIRST_ITEM_INDEX + known[i] for i in alike]].mean(axis=0)


def read_changes(add: str | os.PathLike | None, remove: str | os.PathLike | None) -> tuple[pa.Table | None, list[str]]:
    """Read the items to add and to remove from files (CSV, TSV, Parquet or JSON Lines), for `change_catalogue`."""
    removed = [] if remove is None else read_items(remove)["item_id"].to_pylist()
    return None if add is None else read_items(add), removed


def export_embeddings(run: Run | str | os.PathLike, out: str | os.PathLike) -> int:
    """Write the vectors of all items for an outside vector store: `item_id`, `vector` and the properties of each.

    The score of an item is the dot product of its vector with that of `embed_history`.

    >>> export_embeddings("run", "items.parquet")  # doctest: +SKIP
    1682

    Args:
        run: a run or its folder.
        out: the Parquet file to write.
    Returns:
        int, the number of items.
    Raises:
        ValueError: `out` does not end in .parquet.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    if out.suffix != ".parquet":
        raise ValueError(f"`{out}` must end in .parquet.")
    vectors = np.asarray(as_table(run.model).item_tower.catalogue())
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    others = run.items.drop_columns([VECTOR]) if VECTOR in run.items.column_names else run.items
    table = others.add_column(1, VECTOR, flat)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: pyarrow.parquet.write_table(table, path))
    return len(vectors)
