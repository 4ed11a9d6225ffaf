"""The rules of an answer in plain NumPy, written apart from `tfrec.index.answers`: what the served model must agree with."""

from __future__ import annotations

import numpy as np

from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX
from tfrec.evaluation.ranking import embed


def recommend(model, histories, k, item_counts, timestamps=None, request_times=None, repeats="exclude"):
    """The `k` best items, also seen ones if `repeats` is `"allow"`, after each history of item indexes.

    `(items, scores)`, padded with `PAD_INDEX` and -inf.
    """
    given = [np.asarray(history, np.int32) for history in histories]
    times = [np.zeros(len(h), np.int64) for h in given] if timestamps is None else timestamps
    requests = [0] * len(given) if request_times is None else request_times
    known = [h[h >= FIRST_ITEM_INDEX] for h in given]
    # an event more for each history, which stands for the request: its time is read, its item is not
    flat = np.concatenate([np.append(h, PAD_INDEX) for h in known])
    times = [
        np.append(np.asarray(t, np.int64)[h >= FIRST_ITEM_INDEX], np.int64(r))
        for h, t, r in zip(given, times, requests, strict=True)
    ]
    ends = np.cumsum([len(h) + 1 for h in known]) - 1
    queries = embed(model, flat, ends - [len(h) for h in known], ends, np.concatenate(times))
    scores = queries @ np.asarray(model.item_tower.catalogue()).T
    counts = np.asarray(item_counts, np.float64)
    for row, history in enumerate(known):
        if not len(history):
            scores[row] = counts / max(counts.sum(), 1)
        if repeats == "exclude":
            scores[row, history - FIRST_ITEM_INDEX] = -np.inf
    items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, items, axis=1)
    return np.where(scores > -np.inf, items + FIRST_ITEM_INDEX, PAD_INDEX).astype(np.int32), scores
