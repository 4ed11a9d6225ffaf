"""`tfrec serve`, `recommend`, `recommend-all` and `bench serve`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tfrec.cli.tables import find_titles, out, print_figures, print_recommendations

Ca = Annotated[
    Path | None, typer.Option(help="PEM file with the authorities of the server's certificate; turns on TLS.")
]
Certificate = Annotated[Path | None, typer.Option(help="PEM file with a client certificate.")]
Key = Annotated[Path | None, typer.Option(help="PEM file with the private key of --certificate.")]
Metadata = Annotated[
    list[str] | None, typer.Option(help="name=value to send along, such as 'authorization=Bearer TOKEN'.")
]
History = Annotated[
    str, typer.Option(help="Item ids, oldest first, with commas (CSV quotes around an id that has one).")
]
Timestamps = Annotated[str, typer.Option(help="Seconds since 1970 of each item, for a model that reads times.")]
RequestTime = Annotated[int | None, typer.Option(help="Second of the request, for such a model; now by default.")]
Event = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUES of a column of the log, one for each item, such as event_type=view,view,buy; may be repeated. "
        "Nothing between two commas is unknown. Numbers are numbers, and text between double quotes."
    ),
]
Context = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE of the request or of the user, such as device=phone; may be repeated."),
]
Titles = Annotated[
    Path | None,
    typer.Option(help="Export, run or prepared folder with the titles; an export and a run bring their own."),
]
ModelName = Annotated[str, typer.Option(help="Name of the model on the server.")]


def serve(
    export: Annotated[Path, typer.Argument(help="Export folder; its newest version is served.")],
    port: Annotated[int, typer.Option(help="Port of gRPC.")] = 8500,
    rest_port: Annotated[int | None, typer.Option(help="Port of REST; left out by default.")] = None,
    model_name: Annotated[str, typer.Option(help="Name of the model in requests.")] = "default",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve an export as TensorFlow Serving does: gRPC and REST."""
    from tfrec_serving.server import serve as serve_models

    serve_models(export, port, host, rest_api_port=rest_port, model_name=model_name)


def bench_serve(
    export: Annotated[Path, typer.Argument(help="Export folder: its items make the histories.")],
    address: Annotated[
        str | None,
        typer.Option(
            help="`host:port` or `grpcs://host:port` of a server that holds it; without it one is started here."
        ),
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, help="Closed-loop mode: clients that each send one request after the other.")
    ] = 8,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, help="Open-loop mode: send this many requests per second, whatever the server's pace."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    history_length: Annotated[int, typer.Option(min=0, help="Items in each history.")] = 50,
    k: Annotated[int, typer.Option("-k", min=1, help="Recommendations asked for.")] = 10,
    batching: Annotated[bool, typer.Option(help="The server started here answers requests together.")] = False,
    model_name: Annotated[str, typer.Option(help="Name of the model on the server at --address.")] = "default",
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    metadata: Metadata = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a model server: rate, percentiles, errors, and the share of the time that is spent in the model."""
    import pyarrow.parquet

    from tfrec.data.prepared import ITEMS
    from tfrec.deploy.saved_model import latest_version
    from tfrec_serving.load import load_test, recommend_requests, server_process

    items = pyarrow.parquet.read_table(latest_version(export) / "assets.extra" / ITEMS)["item_id"].to_pylist()
    requests = recommend_requests(items, history_length, k, model_name)
    load = {"clients": clients, "seconds": seconds, "rate": rate}
    own: dict[str, Any] = {}
    if address is None:
        flags = ["--enable_batching"] if batching else []
        with server_process(export, *flags, f"--model_name={model_name}") as server:
            report, in_model = server.measure(requests, **load)  # type: ignore[arg-type]
        if len(report.milliseconds):
            own = {"ms_in_model": in_model, "share_in_model": in_model / float(report.milliseconds.mean())}
    else:
        report = load_test(address, requests, **load, **security_of(ca, certificate, key, metadata))  # type: ignore[arg-type]
    percentiles = {f"p{share:g}_ms": report.percentile(share) for share in (50, 90, 99, 100)}
    print_figures({"answers_per_second": report.rate} | percentiles | own | {"errors": report.errors}, as_json)


def recommend(
    source: Annotated[
        str,
        typer.Argument(
            help="Model server as `host:port`, `grpcs://host:port`, `http://host:port` or `https://host:port`, "
            "or an export folder."
        ),
    ],
    history: History,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    exclude: Annotated[str, typer.Option(help="Item ids not to recommend.")] = "",
    timestamps: Timestamps = "",
    request_time: RequestTime = None,
    event: Event = None,
    context: Context = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="attribute=value: items that have it, where the export has a filter.")
    ] = None,
    deny: Annotated[list[str] | None, typer.Option(help="attribute=value: items that do not have it.")] = None,
    titles: Titles = None,
    model_name: ModelName = "default",
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    metadata: Metadata = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items after a history."""
    ids = ids_of(history)
    asked = query_of(timestamps, request_time, event, context)
    asked |= {"allow": _wanted(allow or []), "deny": _wanted(deny or [])}
    with client_of(source, model_name, **security_of(ca, certificate, key, metadata)) as client:
        answer = client.recommend(ids, k, ids_of(exclude), **asked)
    if as_json:
        print(json.dumps([item._asdict() for item in answer], ensure_ascii=False))
        return
    names = find_titles(titles or Path(source))
    if names:
        out.print("After: " + "; ".join(names.get(i, i) for i in ids[-5:]), highlight=False)
    print_recommendations(answer, names)


def recommend_all(
    source: Annotated[Path, typer.Argument(help="Export folder, or run folder, which is ranked exactly.")],
    data: Annotated[Path, typer.Option(help="Prepared folder with the users and their histories.")],
    out_: Annotated[
        Path, typer.Option("--out", help="File to write, .parquet or .csv: user_id, rank, item_id, score.")
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="How many for each user.")] = 10,
    users: Annotated[
        Path | None, typer.Option(help="Users to answer: a .txt file with an id on each line, or a table with user_id.")
    ] = None,
    exclude: Annotated[
        str,
        typer.Option(
            help="Item ids not to recommend, with commas; or a file with item_id, and with user_id for one user alone."
        ),
    ] = "",
    repeats: Annotated[
        str | None,
        typer.Option(
            help="`exclude` leaves out the items of each history, `allow` does not; as the model does when left out."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="attribute=value: items that have it; of an export, where it has such a filter. May be repeated."
        ),
    ] = None,
    deny: Annotated[list[str] | None, typer.Option(help="attribute=value: items that do not have it.")] = None,
    request_time: Annotated[
        int | None, typer.Option(help="Second of the requests, for a model that reads times; now by default.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of all requests, such as device=phone; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file where it exists.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again, where the same call was ended before its end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to all users of prepared data, into one file; a call that was ended before its end goes on."""
    from tfrec.deploy.bulk import recommend_all as recommend_to_all

    report = recommend_to_all(
        source,
        data,
        out_,
        k=k,
        users=users,
        exclude=exclude if os.path.isfile(exclude) else ids_of(exclude),
        repeats=repeats,
        allow=_wanted(allow or []),
        deny=_wanted(deny or []),
        request_time=request_time,
        context=_context(context),
        overwrite=overwrite,
        restart=restart,
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"path": str(report.path)}))
        return
    out.print(f"Wrote {report.path}: {report.num_rows:,} rows for {report.num_users:,} users, at most {k} each.")
    if report.num_resumed:
        out.print(f"  an earlier call had answered {report.num_resumed:,} of them (--restart begins again)")
    if report.num_unknown_users:
        out.print(f"  left out: {report.num_unknown_users:,} users that the data does not have")
    if report.num_unknown_items:
        out.print(f"  histories are read without {report.num_unknown_items:,} items that the model does not know")


def ids_of(text: str) -> list[str]:
    """The ids of a list with commas."""
    return next(csv.reader([text], skipinitialspace=True), [])


def _context(given: list[str] | None) -> dict[str, Any]:
    """The values of `--context` by name."""
    return {name: value for name, (value,) in (_feature(text, "--context") for text in given or [])}


def query_of(
    timestamps: str, request_time: int | None, event: list[str] | None, context: list[str] | None
) -> dict[str, Any]:
    """What a request says beside the history, as arguments of a client or a run."""
    return {
        "timestamps": [int(t) for t in timestamps.split(",")] if timestamps else None,
        "request_time": request_time,
        "events": dict(_feature(text, "--event") for text in event or []),
        "context": _context(context),
    }


@contextlib.contextmanager
def client_of(source: str, model_name: str, **security: Any) -> Iterator[Any]:
    """A client of the server at an address, or of one that is started here for an export."""
    from tfrec_serving import Client
    from tfrec_serving.server import Server

    if Path(source).is_dir():
        with (
            Server(source, 0, model_name=model_name) as server,
            Client(f"127.0.0.1:{server.port}", model_name) as client,
        ):
            yield client
    elif ":" in source:
        with Client(source, model_name, **security) as client:
            yield client
    else:
        raise ValueError(f"`{source}` is neither host:port nor a folder.")


def security_of(
    ca: Path | None, certificate: Path | None, key: Path | None, metadata: list[str] | None
) -> dict[str, Any]:
    """The options of a connection as arguments of `Client`."""
    pairs = [pair.partition("=") for pair in metadata or []]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(
            "--metadata takes name=value, such as 'authorization=Bearer TOKEN'."
        )  # a value may be a secret
    return {"ca": ca, "certificate": certificate, "key": key, "metadata": {name: value for name, _, value in pairs}}


def _wanted(pairs: list[str]) -> dict[str, list[str]]:
    """`["genres=Comedy", "genres=Drama"]` to `{"genres": ["Comedy", "Drama"]}`."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--allow and --deny take attribute=value. Received: {pair!r}.")
        wanted.setdefault(name, []).append(value)
    return wanted


def _feature(text: str, option: str) -> tuple[str, list[Any]]:
    """The name and the values of `NAME=VALUES`; of `--context` there is one.

    >>> _feature("price=1.5,,2", "--event"), _feature('age="18"', "--context")
    (('price', [1.5, None, 2.0]), ('age', ['18']))
    """
    name, equals, given = text.partition("=")
    values = next(csv.reader([given]), [])
    if not equals or (option == "--context" and len(values) != 1):
        wanted = "NAME=VALUE" if option == "--context" else "NAME=VALUES, with commas"
        raise ValueError(f"{option} takes {wanted}. Received: {text!r}.")
    try:
        numbers = [float(value) if value else None for value in values]
    except ValueError:
        return name, [value or None for value in values]
    return name, [value or None for value in values] if '"' in given else numbers
