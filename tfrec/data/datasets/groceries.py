"""A generated log of customers who buy the same baskets again and again, whose best possible hit rate is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tfrec.data.datasets.synthetic import START, log_table

WEEK = 7 * 24 * 3600


def grocery_log(
    num_users: int = 2000,
    num_items: int = 500,
    events_per_user: int = 60,
    num_baskets: int = 5,
    basket_size: int = 3,
    predictability: float = 0.9,
    seed: int = 0,
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Draw a log of customers with a few baskets of their own, which come in turn, one a week.

    The baskets of a customer hold different items, drawn evenly from the catalogue. A visit buys one basket, in any order. With
    probability `1 - predictability` an event has an item of no basket of the customer instead. So neither popularity nor a bigram
    tells the next item. The customer's own history tells it where repeats may be recommended, and nothing does where not.

    Args:
        num_users: int > 0.
        num_items: int, more than a customer's baskets hold together.
        events_per_user: int, more than a customer's baskets hold together: the last event comes from a basket that came before.
        num_baskets, basket_size: ints > 0.
        predictability: float in [0, 1]: 0 is noise.
        seed: int.
    Returns:
        `(tables, about)`: the table `events` (`user`, `item`, `time`); and what the manifest tells: the arguments, and under
        `bayes_optimal` the expected `hr@10` and `ndcg@10`, on the test targets, of the best ranking of the whole catalogue, by one
        who knows the baskets. The expectation over the target is exact, the mean is over all users.
    Raises:
        ValueError: the sizes do not fit together.
    """
    num_own = num_baskets * basket_size
    if not 0 < num_own < min(num_items, events_per_user):
        raise ValueError(
            "`num_baskets * basket_size` must be above 0 and below `num_items` and `events_per_user`. "
            f"Received: num_baskets={num_baskets}, basket_size={basket_size}, num_items={num_items}, "
            f"events_per_user={events_per_user}."
        )
    rng = np.random.default_rng(seed)
    step = np.arange(events_per_user)
    visit = step // basket_size
    history = np.empty((num_users, events_per_user), np.int64)
    is_bought = rng.random(history.shape) < predictability  # an item of the basket
    for user in range(num_users):
        items = rng.permutation(num_items)
        baskets = items[:num_own].reshape(num_baskets, basket_size)
        impulse = rng.choice(items[num_own:], events_per_user)
        visits = [rng.permutation(baskets[number % num_baskets]) for number in range(visit[-1] + 1)]
        history[user] = np.where(is_bought[user], np.concatenate(visits)[:events_per_user], impulse)

    # the last event has one of the items that its visit has not bought yet, or any item of no basket
    left = basket_size - is_bought[:, :-1][:, visit[:-1] == visit[-1]].sum(axis=1, keepdims=True)
    rank, num_others = np.arange(1, 11), num_items - num_own
    own = np.where(rank <= left, predictability / left, 0)  # user, item
    others = np.full((num_users, min(10, num_others)), (1 - predictability) / num_others)
    top = -np.sort(-np.concatenate([own, others], axis=1))[:, :10]
    about = {
        "synthetic": {
            "num_users": num_users,
            "num_items": num_items,
            "events_per_user": events_per_user,
            "num_baskets": num_baskets,
            "basket_size": basket_size,
            "predictability": predictability,
            "seed": seed,
        },
        "bayes_optimal": {
            "hr@10": float(top.sum(axis=1).mean()),
            "ndcg@10": float((top / np.log2(rank + 1)).sum(axis=1).mean()),
        },
    }
    users = np.repeat(np.arange(num_users), events_per_user)
    times = START + users % 1000 + np.tile(visit * WEEK + step % basket_size * 60, num_users)
    return {"events": log_table(users, history.ravel(), times)}, about
