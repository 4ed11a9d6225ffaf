"""What a report says, as plain values."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrec.data.encoding import encode_table
from tfrec.data.features import Feature, first_category
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import Requests, Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.judgement import Judgement
from tfrec.evaluation.slices import HISTORY, POPULARITY, tenths
from tfrec.training.run import Run

EXAMPLES = 10
"""Users whose recommendations are shown."""
SHOWN_HISTORY, SHOWN_LIST = 6, 5
"""Newest items of a history and first items of a list that are shown."""
MAPPED_ITEMS = 2000
"""Items of the map: the most popular."""
REASONS = 5
"""Kinds of refused rows that are shown."""


def trained_on(run: Run, data: PreparedData) -> dict[str, str]:
    """What was trained on what: a line each."""
    about = data.describe()
    facts = {
        "events": f"{data.num_events:,} of {data.num_users:,} users and {data.num_items:,} items",
        "events of a user": "{min:,} to {max:,}, half of them {25%:,} to {75%:,}".format(**data.length_quantiles),
        "time span (UTC)": " to ".join(about["time span (UTC)"]) if about["time span (UTC)"] else "not known",
        "rows of the log": rows_of_log(data.manifest),
        "item features": ", ".join(f"{f.name} ({f.kind})" for f in data.features.get("items", [])) or "none",
    }
    for whose, title in (("events", "columns of events"), ("context", "context"), ("users", "properties of users")):
        if features := data.features.get(whose):
            facts[title] = ", ".join(f.name for f in features)
    if run.metrics:
        facts["training"] = "{epochs} epochs in {seconds:,.0f} s, the best was {best_epoch}".format(**run.metrics)
    facts["parameters"] = f"{run.model.count_params():,}"
    return facts


def rows_of_log(manifest: Mapping[str, Any]) -> str:
    """How many rows were read, accepted, refused and dropped, with the most frequent reasons."""
    if "num_rows" not in manifest:
        return "not known"
    text = f"{manifest['num_rows']:,} read, {manifest.get('num_refused', 0):,} refused"
    reasons = manifest.get("refused", {})
    if reasons:
        most = sorted(reasons.items(), key=lambda item: -item[1])[:REASONS]
        text += " (" + ", ".join(f"{number:,} {reason}" for reason, number in most) + ")"
    if duplicates := manifest.get("num_duplicates"):
        text += f", {duplicates:,} duplicates dropped"
    return text


def slice_columns(data: PreparedData) -> list[str]:
    """What a report slices by: lengths, popularity, and the first category of the items and of the users."""
    columns = [HISTORY, POPULARITY]
    for whose in ("items", "users"):
        if category := first_category(data.features.get(whose, [])):
            columns.append(category.name)
    return columns


def shown_by_popularity(judged: Judgement) -> dict[str, np.ndarray]:
    """Of each contender's lists, and of the targets, the share of each tenth of the catalogue, most popular first."""
    tenth, k = tenths(judged.split), judged.cutoff
    lists = {"what users did": judged.split.targets(judged.part) - FIRST_ITEM_INDEX}
    lists |= {name: ranking.items[:, :k] for name, ranking in judged.rankings.items()}
    counts = {name: np.bincount(tenth[items[items >= 0]], minlength=10) for name, items in lists.items()}
    return {name: own / max(own.sum(), 1) for name, own in counts.items()}


def catalogue_map(run: Run) -> tuple[np.ndarray, list[str], float, str]:
    """The most popular items in the plane of the two largest principal components of their vectors.

    Returns:
        `(points, categories, share, column)`: float array `(items, 2)`; the first category of each, "" without one; how much of the
        variance the plane shows; the column of the categories, "" without one.
    """
    chosen = np.argsort(-np.asarray(run.items["num_events"]), kind="stable")[:MAPPED_ITEMS]
    vectors = np.asarray(run.model.item_tower.catalogue())[chosen]
    vectors = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(vectors, full_matrices=False)
    share = float((values[:2] ** 2).sum() / max((values**2).sum(), 1e-12))
    points = np.zeros((len(chosen), 2))  # one item, or vectors of one number, span no plane
    points[:, : min(2, len(values))] = left[:, :2] * values[:2]
    feature = first_category(run.features.get("items", []))
    if feature is None:
        return points, [""] * len(chosen), share, ""
    encoded = encode_table([feature], run.items)[0][feature.name].reshape(len(run.items), -1)[chosen, 0]
    values_of = ["", "", *feature.values]
    return points, [values_of[number] for number in encoded], share, feature.name


def examples(run: Run, judged: Judgement, shown: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Users drawn at random: their newest items, their targets, and what the contenders called `shown` recommend to them."""
    split, part = judged.split, judged.part
    asked, names = split.requests(part), titles(run)
    known = np.flatnonzero(asked.ends > asked.starts)
    rows = np.random.default_rng(seed).permutation(known)[:EXAMPLES]
    found = []
    for row in rows:
        history = split.data.item_index[asked.starts[row] : asked.ends[row]] - FIRST_ITEM_INDEX
        targets = split.targets(part)[asked.offsets[row] : asked.offsets[row + 1]] - FIRST_ITEM_INDEX
        lists = {
            name: [(names[i], int(i) in targets) for i in judged.rankings[name].items[row, :SHOWN_LIST] if i >= 0]
            for name in shown
        }
        first = judged.rankings[shown[0]].items[row, 0]
        found.append(
            {
                "length": len(history),
                "history": [names[i] for i in history[-SHOWN_HISTORY:]],
                "targets": [names[i] for i in targets],
                "lists": lists,
                "why": names[_cause(run, split, asked, int(row), int(first))] if first >= 0 else "",
            }
        )
    return found


def titles(run: Run) -> list[str]:
    """What items are called, in index order: the title, where there is one, else the id."""
    ids = run.items["item_id"].to_pylist()
    if "title" not in run.items.column_names:
        return ids
    return [title or item_id for title, item_id in zip(run.items["title"].to_pylist(), ids, strict=True)]


def commands(run: Run, name: str, against: Sequence[str | os.PathLike]) -> list[str]:
    """What to call in a shell to train and report a run that is called `name`."""
    report = ["tfrec", "report", name, *(part for other in against for part in ("--against", str(other)))]
    if run.config is None or run.settings.own:
        return [f"# {name} has a model or a loss of its own, which was fitted in Python", shlex.join(report)]
    train = ["tfrec", "train", "DATA", "--out", name]
    for field, value in run.config.to_dict().items():
        if value is not None:
            is_plain = isinstance(value, str) and value[:1].isalpha()  # a share such as "0.1" would be read as a number
            train += ["--set", f"{field}={value if is_plain else json.dumps(value)}"]
    return [shlex.join(train), shlex.join(report)]


def _cause(run: Run, split: Split, asked: Requests, row: int, item: int) -> int:
    """The item of a history that moved the score of an item most, both numbered from 0."""
    data = split.data
    start, end, user = (int(values[row]) for values in (asked.starts, asked.ends, asked.users))
    history = data.vocabulary.decode(data.item_index[start:end])
    given: dict[str, Any] = {}
    if run.model.sequence_tower.reads_times:
        given = {"timestamps": data.seconds(slice(start, end)), "request_time": int(data.seconds(end))}
    known = data.features
    of_events = {f.name: _raw(f, data.event_columns[f.name][start:end]) for f in known.get("events", [])}
    context = {f.name: _raw(f, data.event_columns[f.name][end : end + 1])[0] for f in known.get("context", [])}
    of_user = {f.name: data.users[f.name][user].as_py() for f in known.get("users", [])}
    context |= {name: value for name, value in of_user.items() if value is not None}
    item_id = run.vocabulary.item_ids[item]
    found = run.explain(history, [item_id], events=of_events, context=context, **given)
    return int(data.item_index[start + int(found.contributions[0].argmax())]) - FIRST_ITEM_INDEX


def _raw(feature: Feature, values: np.ndarray) -> list[Any]:
    """Encoded values of a category or a number as a request has them."""
    return [("", "", *feature.values)[value] for value in values] if feature.kind == "category" else values.tolist()
