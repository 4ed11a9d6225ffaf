"""A generated log whose best possible hit rate is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.splits import MIN_EVENTS

START = 1_600_000_000
"""Seconds since 1970 of the first event."""


def as_text(prefix: str, numbers: np.ndarray) -> pa.Array:
    """`prefix` before each number."""
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def log_table(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> pa.Table:
    """The table `events` of numbered users and items, ints of one shape `(events,)`."""
    return pa.table({"user": as_text("user-", users), "item": as_text("item-", items), "time": as_text("", times)})


def synthetic_log(
    num_users: int = 2000,
    num_items: int = 500,
    events_per_user: int = 30,
    num_interests: int = 20,
    predictability: float = 0.9,
    seed: int = 0,
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Draw a log from a chain of latent interests.

    Every item belongs to one interest. An event continues the interest of two events before: with probability
    `predictability` its item is of the interest that follows that one (cyclically), otherwise of any interest. Within an
    interest items are drawn by Zipf's law, over the whole draw without those the user has had. So the last item alone (a
    bigram) tells little, two items back tell much, and the best ranking of the unseen items is by their true probability.

    Args:
        num_users, num_items: ints > 0.
        events_per_user: int >= 3; fewer than the items.
        num_interests: int > 0; divides `num_items`.
        predictability: float in [0, 1]: 0 is noise.
        seed: int.
    Returns:
        `(tables, about)`: the table `events` (`user`, `item`, `time`) and `items` (`item_id`, `title`, `genres`); and what
        the manifest tells: the arguments, and under `bayes_optimal` the expected `hr@10` and `ndcg@10`, on the test
        targets, of the best ranking there is. The expectation over the target is exact, the mean is over the first users
        (all of them, or as many as 100 million scores allow).
    Raises:
        ValueError: the sizes do not fit together.
    """
    if num_items % num_interests or not MIN_EVENTS <= events_per_user < num_items:
        raise ValueError(
            "`num_interests` must divide `num_items`, and `events_per_user` must be from 3 to below `num_items`. "
            f"Received: num_items={num_items}, num_interests={num_interests}, "
            f"events_per_user={events_per_user}."
        )
    rng = np.random.default_rng(seed)
    per_interest = num_items // num_interests
    zipf = 1 / np.arange(1, per_interest + 1)
    zipf /= zipf.sum()
    # item of interest c and popularity rank r; shuffled, so that an item's number tells nothing
    item_of = rng.permutation(num_items).reshape(num_interests, per_interest)
    interest_of = np.empty(num_items, np.int64)
    interest_of[item_of] = np.arange(num_interests)[:, None]

    history = np.full((num_users, events_per_user), -1)
    for step in range(events_per_user):
        todo = np.arange(num_users)
        while len(todo):
            anything = rng.integers(num_interests, size=len(todo))
            expected = (interest_of[history[todo, step - 2]] + 1) % num_interests
            follows = (rng.random(len(todo)) < predictability) & (step >= 2)
            drawn = item_of[np.where(follows, expected, anything), rng.choice(per_interest, len(todo), p=zipf)]
            is_new = (history[todo, :step] != drawn[:, None]).all(axis=1)
            history[todo[is_new], step] = drawn[is_new]
            todo = todo[~is_new]

    num_counted = min(num_users, 100_000_000 // num_items)
    share = np.empty((num_interests, num_items))  # probability of each item, given the interest two events back
    for interest in range(num_interests):
        by_interest = np.full(num_interests, (1 - predictability) / num_interests)
        by_interest[(interest + 1) % num_interests] += predictability
        share[interest, item_of] = by_interest[:, None] * zipf
    top = np.empty((num_counted, 10))
    for user in range(num_counted):
        probability = share[interest_of[history[user, -3]]].copy()
        probability[history[user, :-1]] = 0
        top[user] = -np.sort(-probability)[:10] / probability.sum() if num_items >= 10 else np.nan
    about = {
        "synthetic": {
            "num_users": num_users,
            "num_items": num_items,
            "events_per_user": events_per_user,
            "num_interests": num_interests,
            "predictability": predictability,
            "seed": seed,
        },
        "bayes_optimal": {
            "hr@10": float(top.sum(axis=1).mean()),
            "ndcg@10": float((top / np.log2(np.arange(2, 12))).sum(axis=1).mean()),
        },
    }
    users = np.repeat(np.arange(num_users), events_per_user)
    times = START + users % 1000 + np.tile(np.arange(events_per_user), num_users) * 3600
    events = log_table(users, history.ravel(), times)
    items = np.arange(num_items)
    rank_of = np.empty(num_items, np.int64)
    rank_of[item_of] = np.arange(per_interest)
    titles = [f"Interest {interest_of[i]}, number {rank_of[i] + 1}" for i in items]
    genres = pa.array([[f"interest {interest_of[i]}"] for i in items], pa.list_(pa.string()))
    properties = {"item_id": as_text("item-", items), "title": titles, "genres": genres}
    return {"events": events, "items": pa.table(properties)}, about
