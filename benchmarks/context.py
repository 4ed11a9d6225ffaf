"""How much of a request's context and of event types a model uses, on logs whose best hit rate is known.

    python benchmarks/context.py [--users 2000] [--epochs 12] [--rate 0.1]

An item is a pair: one of 20 groups, which follow each other in every history, and one of 20 variants. In the first log the
device of the request is the variant, in the second the type of the event before. Who knows it can always be right; who does not
finds the variant among 10 of 20 items half of the time. A model that reads it is also asked without it, as by a client that leaves
it out.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

import tfrec

NUM_GROUPS = NUM_VARIANTS = 20
EVENTS_PER_USER = 30


def make_log(num_users: int, is_of_request: bool) -> pa.Table:
    """Events with a column `kind`: the device of the request, or the type of the event, which decides the next item."""
    rng = np.random.default_rng(0)
    kind = rng.integers(NUM_VARIANTS, size=(num_users, EVENTS_PER_USER))
    group = (rng.integers(NUM_GROUPS, size=(num_users, 1)) + np.arange(EVENTS_PER_USER)) % NUM_GROUPS
    variant = kind if is_of_request else np.roll(kind, 1, axis=1)
    user = np.repeat(np.arange(num_users), EVENTS_PER_USER)
    time = 1_700_000_000 + np.tile(np.arange(EVENTS_PER_USER), num_users)
    item = (group * NUM_VARIANTS + variant).ravel()
    return pa.table({"user": user, "item": item, "time": time, "kind": kind.ravel().astype(str)})


def hit_rates(data: tfrec.PreparedData, config: tfrec.Config) -> list[str]:
    """HR@10 on the test targets, and the same where all values of the columns are missing."""
    run = tfrec.train(config, data)
    left_out = {name: np.zeros_like(values) for name, values in data.event_columns.items()}
    asked = (data, dataclasses.replace(data, event_columns=left_out))
    found = [tfrec.evaluate(one, "test", run.model, repeats="allow")["model"]["hr@10"] for one in asked]
    return [f"{rate:.4f}" for rate in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=tfrec.Config().feature_dropout_rate)
    given = parser.parse_args()
    size: dict[str, Any] = {"max_length": 10, "width": 64, "num_blocks": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = tfrec.Config(
        repeats="allow", epochs=given.epochs, learning_rate=5e-3, feature_dropout_rate=given.rate, **size
    )
    print("| the variant is | with it, HR@10 | left out of requests | never learned | possible with, without |")
    for name, is_of_request in (("the device of the request", True), ("the type of the event before", False)):
        log = make_log(given.users, is_of_request)
        options: dict[str, Any] = {"context": ["kind"]} if is_of_request else {"event_features": {"kind": "category"}}
        data = tfrec.prepare(log, user="user", item="item", time="time", **options)
        blind = dataclasses.replace(data, features={}, event_columns={})
        rates = [*hit_rates(data, config), hit_rates(blind, config)[0]]
        print(f"| {name} | {' | '.join(rates)} | 1, 0.5 |", flush=True)


if __name__ == "__main__":
    main()
