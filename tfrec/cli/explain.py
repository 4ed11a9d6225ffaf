"""`tfrec explain`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfrec.cli.serve import (
    Ca,
    Certificate,
    Context,
    Event,
    History,
    Key,
    Metadata,
    ModelName,
    RequestTime,
    Timestamps,
    Titles,
    client_of,
    ids_of,
    query_of,
    security_of,
)
from tfrec.cli.tables import find_titles, print_explanation

if TYPE_CHECKING:
    from tfrec.training.results import Attention, Explanation


def explain(
    source: Annotated[
        str,
        typer.Argument(
            help="Run folder, export folder, or model server as `host:port`, `grpcs://host:port`, `http://host:port` or "
            "`https://host:port`. Only a run has the attention weights and the parts of id and content."
        ),
    ],
    history: History,
    item: Annotated[str, typer.Option(help="Ids of the items whose scores are explained, with commas.")],
    timestamps: Timestamps = "",
    request_time: RequestTime = None,
    event: Event = None,
    context: Context = None,
    titles: Titles = None,
    model_name: ModelName = "default",
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    metadata: Metadata = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why an item has its score: how far each item of the history moved it, by leaving it out."""
    from tfrec.training.settings import CONFIG

    ids, items, asked = ids_of(history), ids_of(item), query_of(timestamps, request_time, event, context)
    if (Path(source) / CONFIG).is_file():
        explanation, attention = _ask_run(source, ids, items, asked)
    else:
        with client_of(source, model_name, **security_of(ca, certificate, key, metadata)) as client:
            explanation, attention = _ask_client(client, ids, items, asked), None
    if as_json:
        print(json.dumps(_rows(explanation, attention), ensure_ascii=False))
    else:
        print_explanation(explanation, attention, find_titles(titles or Path(source)))


def _ask_run(
    folder: str, ids: list[str], items: list[str], asked: dict[str, Any]
) -> tuple[Explanation, Attention | None]:
    from tfrec.training.run import Run

    run = Run.open(folder)
    now = int(time.time()) if asked["timestamps"] else 0
    asked = asked | {"request_time": now if asked["request_time"] is None else asked["request_time"]}
    attention = run.attention(ids, **asked) if run.model.sequence_tower.has_attention else None
    return run.explain(ids, items, **asked), attention


def _ask_client(client: Any, ids: list[str], items: list[str], asked: dict[str, Any]) -> Explanation:
    import numpy as np

    from tfrec.training.results import Explanation, cosines

    contributions = client.explain(ids, items, **asked)
    scores = np.array(client.score(ids, items, **asked), np.float32)
    vectors = client.embed_items([*items, *ids])
    similarities = cosines(vectors[: len(items)], vectors[len(items) :])
    return Explanation(np.array(items, str), scores, np.array(ids, str), contributions, similarities)


def _rows(explanation: Explanation, attention: Attention | None) -> list[dict[str, Any]]:
    """The explanation of each item as a program reads it. Null stands for what is no number."""
    number = lambda value: float(value) if abs(value) < float("inf") else None  # noqa: E731
    read = {} if attention is None else attention.of_newest()
    rows = []
    for i, item_id in enumerate(explanation.item_ids):
        row: dict[str, Any] = {"item_id": str(item_id), "score": number(explanation.scores[i])}
        for name in ("id_score", "content_score"):
            if (values := getattr(explanation, name)) is not None:
                row[name] = number(values[i])
        row["history"] = [
            {
                "position": place + 1,
                "item_id": str(own),
                "contribution": float(explanation.contributions[i, place]),
                "similarity": float(explanation.similarities[i, place]),
            }
            | ({"attention": [w.tolist() for w in read[place]]} if place in read else {})
            for place, own in enumerate(explanation.history)
        ]
        rows.append(row)
    return rows
