"""Amazon reviews (McAuley et al. 2015), in the 5-core files of S3-Rec (Zhou et al. 2020)."""

from __future__ import annotations

import json
from itertools import chain

import pyarrow as pa

from tfrec.data.datasets.download import Source, find

BEAUTY = Source(
    "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data/Beauty.txt",
    "cb03635343187f36526ed4ba48102b53",
)


def beauty() -> dict[str, pa.Table]:
    """Amazon Beauty, 5-core: 198,502 reviews of 12,101 products by 22,363 users, in order.

    Times (whole days) and attributes come along where `$TFREC_DATA_DIR` has their files; the published file has neither.
    Tables `events` and perhaps `items`.
    """
    folder = find("amazon-beauty", [["Beauty.txt"]], BEAUTY)

    def lines(name: str) -> list[list[str]]:
        return [line.split() for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    histories = lines("Beauty.txt")
    users = [history[0] for history in histories for _ in history[1:]]
    items = list(chain.from_iterable(history[1:] for history in histories))
    times = pa.nulls(len(items), pa.string())
    if (folder / "Beauty_times.txt").is_file():
        times = pa.array(list(chain.from_iterable(row[1:] for row in lines("Beauty_times.txt"))))
    tables = {"events": pa.table({"user": users, "item": items, "time": times})}
    if (folder / "Beauty_item2attributes.json").is_file():
        attributes = json.loads((folder / "Beauty_item2attributes.json").read_text())
        tables["items"] = pa.table(
            {
                "item_id": list(attributes),
                "attributes": pa.array([[str(a) for a in own] for own in attributes.values()], pa.list_(pa.string())),
            }
        )
    return tables
