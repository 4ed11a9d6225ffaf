"""The questions to a run in Python: ids, times and columns as a user writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrec.data.vocabulary import Vocabulary
from tfrec.index.inputs import RequestEncoder


def read_request(
    vocabulary: Vocabulary,
    encoder: RequestEncoder,
    history: Sequence[str] | Sequence[Sequence[str]],
    timestamps: Sequence | None,
    request_time: Any,
    events: Mapping[str, Sequence] | None,
    context: Mapping[str, Any] | None,
) -> tuple[bool, list[np.ndarray], dict[str, Any]]:
    """Encode one history or many; see `Run.recommend` for the arguments.

    Returns:
        `(is_one, histories, others)`: whether it was one history, item indexes of each, further arguments of `Answers.recommend`.
    Raises:
        ValueError: a history has another number of times than of items.
    """
    is_one = isinstance(history, str) or all(isinstance(one, str | int | float | np.number) for one in history)
    histories: Sequence[Any] = [history] if is_one else history
    known = [vocabulary.encode(check_ids(one)) for one in histories]
    times = None if timestamps is None else [np.asarray(t, np.int64) for t in ([timestamps] if is_one else timestamps)]
    for one, of_items in zip(times or (), known, strict=False):
        if len(one) != len(of_items):
            raise ValueError(
                f"`timestamps` has a time for each item of a history: {len(of_items)}. Received: {len(one)}."
            )
    of_events = events or {}
    if is_one and isinstance(of_events, Mapping):
        of_events = {name: [values] for name, values in of_events.items()}
    features = encoder.of_columns([len(one) for one in known], of_events, context or {})
    asked = np.broadcast_to(np.asarray(request_time, np.int64), len(known))
    return is_one, known, {"timestamps": times, "request_times": asked, "features": features}


def read_history(*arguments) -> tuple[np.ndarray, dict[str, Any]]:
    """Encode one history; for the arguments and the result, see `read_request`.

    Raises:
        ValueError: there are several.
    """
    is_one, known, given = read_request(*arguments)
    if not is_one:
        raise ValueError(
            f"One history is explained at a time, a list of item ids such as ['50', '181']. Received {len(known)} histories."
        )
    return known[0], given


def check_ids(ids: Sequence[str]) -> Sequence[str]:
    """Item ids, or an error for the first that is not text."""
    if isinstance(ids, str):
        raise TypeError(f"A history is a list of item ids, such as ['50', '181']. Received the text {ids!r}.")
    for item_id in ids:
        if not isinstance(item_id, str):
            raise TypeError(f"Ids are text, such as '50'. Received: {item_id!r} ({type(item_id).__name__}).")
    return ids
