"""The command line: parse, call one function, print."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from rich.console import Console
from rich.table import Table

from tfrec.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From an interaction log to a sequential recommender: prepare, train, evaluate, export, serve, lite.",
)
index_app = typer.Typer(no_args_is_help=True, help="Work on the index of an export.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.add_typer(index_app, name="index")
app.add_typer(bench_app, name="bench")
out = Console()
PRESET_HELP = "A well-known design: default, large, sasrec, gsasrec, esasrec, hstu or narm; --set changes what it sets."
INDEX_HELP = (
    "Kind of index: `exact` or `partitioned` (approximate), of stock ops; or `scann` (needs a server with ScaNN's ops, such "
    "as `tfrec serve`)."
)
ITEMS_HELP = (
    "File of new items: item_id, and similar_to (ids of items like it, between bars) or vector; other columns as in the "
    "item file."
)


def main() -> None:
    """Run the command line. What a user can mend is one sentence on standard error and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("tfrec", "tfrec_serving"):
            raise
        fail(str(error))


def fail(message: str) -> None:
    """End with an error message."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]error:[/] {message.replace('[', chr(92) + '[')}"
    )
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in (None, "prepare") and "--help" not in sys.argv:
        _quiet_tensorflow()


def _quiet_tensorflow() -> None:
    """Keep TensorFlow's remarks (XLA compiled a cluster, a cost was not predicted) off the terminal, errors not.

    They come through absl's C++ log, which reads no environment variable and has no Python call.
    """
    import tensorflow as tf

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"))
        library._ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE(2)  # absl::SetMinLogLevel(kError)


@app.command()
def prepare(
    source: Annotated[
        list[str] | None,
        typer.Argument(help="Log files, or one of: movielens-100k, movielens-1m, amazon-beauty, synthetic."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, tsv, parquet, jsonl or sequences; told from the ending when left out.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Column of user ids; guessed when left out.")] = None,
    item: Annotated[str | None, typer.Option(help="Column of item ids; guessed when left out.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of times: seconds, milliseconds or ISO 8601; guessed when left out.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names, with commas, for the columns of a CSV or TSV file without a header line.")
    ] = None,
    first_column: Annotated[
        str | None, typer.Option(help="`user` when each line of sequence text starts with the user id.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="File of item properties: item id, title, anything else.")] = None,
    max_refused: Annotated[float, typer.Option(help="Share of refused rows above which nothing is written.")] = 0.01,
    min_user_events: Annotated[int, typer.Option(help="Drop users with fewer events.")] = 1,
    min_item_events: Annotated[int, typer.Option(help="Drop items with fewer events.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder where it exists.")] = False,
    users: Annotated[int, typer.Option(help="synthetic: number of users.")] = 2000,
    catalogue: Annotated[int, typer.Option(help="synthetic: number of items.")] = 500,
    events_per_user: Annotated[int, typer.Option(help="synthetic: events of each user.")] = 30,
    predictability: Annotated[
        float, typer.Option(help="synthetic: how much of the next item follows from the history.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="synthetic: seed.")] = 0,
    describe: Annotated[
        Path | None, typer.Option(help="Print the figures of a prepared folder, and do nothing else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read and check an interaction log; write prepared data."""
    from tfrec import datasets
    from tfrec.interactions import REFUSED, Log
    from tfrec.interactions import prepare as prepare_log
    from tfrec.prepared import PreparedData

    if describe is not None:
        _print_figures(PreparedData.open(describe).describe(), as_json)
        return
    if not source or out_ is None:
        raise typer.BadParameter("Pass a log (or the name of a data set) and --out FOLDER, or --describe FOLDER.")
    options: dict[str, Any] = {
        "max_refused": max_refused,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "overwrite": overwrite,
    }
    if len(source) == 1 and source[0] in datasets.NAMES:
        made = (
            {
                "num_users": users,
                "num_items": catalogue,
                "events_per_user": events_per_user,
                "predictability": predictability,
                "seed": seed,
            }
            if source[0] == "synthetic"
            else {}
        )
        report = datasets.prepare_dataset(source[0], out_, prepare_options=options, **made)
    else:
        names = next(csv.reader([columns])) if columns else []
        report = prepare_log(Log(source, format, user, item, time, names, first_column, items), out_, **options)
    manifest = report.manifest
    if as_json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for note in report.notes:
        out.print(f"  {note}", highlight=False)
    out.print(
        f"Wrote {out_}: {manifest['num_users']:,} users, {manifest['num_items']:,} items, {manifest['num_events']:,} events."
    )
    if manifest["num_refused"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["refused"].items())
        out.print(
            f"Refused {manifest['num_refused']:,} of {manifest['num_rows']:,} rows ({reasons}): see {out_ / REFUSED}"
        )
    if manifest["num_filtered_events"]:
        out.print(f"Left out {manifest['num_filtered_events']:,} events of rare users and items.")


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(help="Prepared folder (not needed with --resume).")] = None,
    out_: Annotated[Path, typer.Option("--out", help="Run folder.")] = ...,  # type: ignore[assignment]
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "default",
    epochs: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: any field of the config; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run folder where it exists.")] = False,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="Compute in bfloat16.")] = False,
    final: Annotated[
        Path | None, typer.Option("--final", help="Refit this run on all events, for the epochs its validation chose.")
    ] = None,
) -> None:
    """Train a model; keep the weights with the best validation NDCG@10."""
    from tfrec import training

    if (resume or final) and (epochs or settings or mixed_precision or preset != "default"):
        raise typer.BadParameter(
            "--resume and --final go on with the config of a run; leave out --preset, --epochs, --set and --mixed-precision."
        )
    if data is None and not (resume or final):
        raise typer.BadParameter("Pass a prepared folder, --resume or --final RUN.")
    if final:
        config = training.final_config(training.Run.open(final))
        config = dataclasses.replace(config, data=data) if data else config
        done = training.train(config, out_, overwrite=overwrite).metrics
        out.print(f"Wrote {out_}: trained on all events, {done['epochs']} epochs, {done['seconds']:.0f} s.")
        return
    values = training.preset(preset) | training.parse_settings(settings or [])
    values |= {"epochs": epochs} if epochs is not None else {}
    values |= {"precision": "bfloat16"} if mixed_precision else {}
    config = training.Config.from_dict({"data": data or ""} | values)
    run = training.train(config, out_, resume=resume, overwrite=overwrite)
    best = run.metrics
    out.print(
        f"Wrote {out_}: best epoch {best['best_epoch']} of {best['epochs']}, validation NDCG@10 "
        f"{best['validation']['ndcg@10']:.4f}, HR@10 {best['validation']['hr@10']:.4f}, {best['seconds']:.0f} s."
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder; or prepared folder, with --baselines-only.")],
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    baselines_only: Annotated[
        bool, typer.Option("--baselines-only", help="The baselines on a prepared folder.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file; `-` prints them.")
    ] = None,
) -> None:
    """Rank the whole catalogue for every user; print the model beside popularity, bigram and item-KNN."""
    from tfrec.evaluation import evaluate as evaluate_data
    from tfrec.prepared import PreparedData

    if baselines_only:
        result = evaluate_data(PreparedData.open(run), split)
    else:
        from tfrec.training import Run

        trained = Run.open(run)
        if trained.config.final_epochs:
            raise ValueError(
                f"`{run}` was trained on all events, the targets too: there is nothing left to evaluate it on."
            )
        result = evaluate_data(trained.data(), split, trained.model)
    if json_file == Path("-"):
        print(json.dumps(result, indent=2))
        return
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print_metrics(result)


def print_metrics(result: dict[str, Any]) -> None:
    """The table of `tfrec evaluate`."""
    rows = [name for name in ("model", "bigram", "item-knn", "popularity") if name in result]
    table = Table(
        title=f"{result['split']}: {result['num_users']:,} users, whole catalogue, seen items removed",
        title_justify="left",
    )
    table.add_column("")
    for metric in result[rows[0]]:
        table.add_column(metric.upper(), justify="right")
    for name in rows:
        table.add_row(
            name, *(f"{value:.4f}" for value in result[name].values()), style="bold" if name == "model" else ""
        )
    out.print(table)
    if result["num_short_users"]:
        out.print(f"{result['num_short_users']:,} users with fewer than 3 events are not evaluated.")
    if result["num_repeat_targets"]:
        out.print(
            f"{result['num_repeat_targets']:,} targets were in the user's history already: misses, whatever the model."
        )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="Export folder; the next version goes into it.")],
    index: Annotated[str, typer.Option(help=INDEX_HELP)] = "scann",
    k: Annotated[int, typer.Option("-k", help="How many items `serving_default` recommends.")] = 10,
    recall: Annotated[
        float, typer.Option(help="Share of the exact top k that an approximate index is to find.")
    ] = 0.99,
    storage: Annotated[
        str,
        typer.Option(help="How vectors are kept: `float32`, `bfloat16`, or for partitioned `int8` (codes besides)."),
    ] = "float32",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="Item column that `recommend_filtered` allows or denies values of; may be repeated."
        ),
    ] = None,
    add_items: Annotated[Path | None, typer.Option(help=ITEMS_HELP)] = None,
    remove_items: Annotated[Path | None, typer.Option(help="File with a column of item ids to leave out.")] = None,
) -> None:
    """Write one SavedModel: ids in, ids and scores out, the index inside."""
    from tfrec.catalogue import read_changes
    from tfrec.export import export as export_run

    added, removed = read_changes(add_items, remove_items)
    version = export_run(
        run,
        out_,
        index=index,
        k=k,
        storage=storage,
        recall=recall,
        filters=filters or [],
        add_items=added,
        remove_items=removed,
    )
    _print_export(version)


def _print_export(version: Path) -> None:
    from tfrec.export import MANIFEST

    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    needs = ", ".join(manifest["custom_ops"]) or "none beyond stock TensorFlow"
    out.print(
        f"Wrote {version}: {len(manifest['signatures'])} signatures, {manifest['index']['kind']} index over "
        f"{manifest['num_items']:,} items, recall@10 {manifest['index']['recall@10']:.4f}, ops needed: {needs}."
    )


@index_app.command()
def refresh(
    export: Annotated[Path, typer.Argument(help="Export folder; its newest version is refreshed.")],
    items: Annotated[Path | None, typer.Option(help=ITEMS_HELP)] = None,
    remove: Annotated[Path | None, typer.Option(help="File with a column of item ids to take out.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run it came from, where that has moved.")] = None,
) -> None:
    """Write the next version of an export, with items added or removed, without training."""
    from tfrec.catalogue import read_changes
    from tfrec.export import refresh as refresh_export

    if items is None and remove is None:
        raise typer.BadParameter("Pass --items FILE, --remove FILE or both.")
    added, removed = read_changes(items, remove)
    _print_export(refresh_export(export, add_items=added, remove_items=removed, run=run))


@app.command("export-embeddings")
def export_embeddings(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
) -> None:
    """Write the vectors of all items, for an outside vector store."""
    from tfrec.catalogue import export_embeddings as write

    out.print(f"Wrote {out_}: {write(run, out_):,} items.")


@app.command()
def check(
    export: Annotated[Path, typer.Argument(help="Export folder, or one of its versions.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an export needs, who can load it, and whether it answers."""
    from tfrec.check import check as check_export
    from tfrec.export import latest_version

    report = check_export(latest_version(export))
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"is_stock": report.is_stock}, indent=2, default=str))
        return
    stock = (
        "loads it"
        if report.is_stock
        else f"refuses it for {', '.join(report.foreign_ops)}: export with --index partitioned or exact"
    )
    rows = {
        "version": str(report.folder),
        "size": f"{report.size_bytes / 1e6:.1f} MB",
        "signatures": ", ".join(report.signatures),
        "stock TensorFlow Serving": stock,
        "tfrec serve": "loads it" + (f", with {', '.join(report.packages)}" if report.packages else ""),
        "LiteRT": "does not load string ids and hash tables: use `tfrec lite RUN`",
        "warm-up file": f"{report.warmup_requests} requests replayed" if report.warmup_requests else "none",
        "sample answer": ", ".join(report.answer) or "none",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)


@app.command()
def serve(
    export: Annotated[Path, typer.Argument(help="Export folder; its newest version is served.")],
    port: Annotated[int, typer.Option(help="Port of gRPC.")] = 8500,
    rest_port: Annotated[int | None, typer.Option(help="Port of REST; left out by default.")] = None,
    model_name: Annotated[str, typer.Option(help="How requests call the model.")] = "default",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve an export as TensorFlow Serving does: gRPC and REST."""
    from tfrec_serving.server import serve as serve_models

    serve_models(export, port, host, rest_api_port=rest_port, model_name=model_name)


@bench_app.command("serve")
def bench_serve(
    export: Annotated[Path, typer.Argument(help="Export folder: its items make the histories.")],
    address: Annotated[
        str | None, typer.Option(help="`host:port` of a server that holds it; without it one is started here.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="How many ask at a time, each one request after the other.")] = 8,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Instead: requests a second, answered or not.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    history_length: Annotated[int, typer.Option(min=0, help="Items in each history.")] = 50,
    k: Annotated[int, typer.Option("-k", min=1, help="Recommendations asked for.")] = 10,
    batching: Annotated[bool, typer.Option(help="The server started here answers requests together.")] = False,
    model_name: Annotated[str, typer.Option(help="How the server at --address calls the model.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a model server: rate, percentiles, errors, and the share of the time that is spent in the model."""
    import pyarrow.parquet

    from tfrec.export import latest_version
    from tfrec.prepared import ITEMS
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
        report = load_test(address, requests, **load)  # type: ignore[arg-type]
    percentiles = {f"p{share:g}_ms": report.percentile(share) for share in (50, 90, 99, 100)}
    _print_figures({"answers_per_second": report.rate} | percentiles | own | {"errors": report.errors}, as_json)


@app.command()
def recommend(
    source: Annotated[str, typer.Argument(help="`host:port` of a model server, or an export folder.")],
    history: Annotated[
        str, typer.Option(help="Item ids, oldest first, with commas (CSV quotes around an id that has one).")
    ],
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    exclude: Annotated[str, typer.Option(help="Item ids not to recommend.")] = "",
    timestamps: Annotated[
        str, typer.Option(help="When each item was, in seconds since 1970, for a model that reads times.")
    ] = "",
    request_time: Annotated[
        int | None, typer.Option(help="When this is asked, for such a model; now by default.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="attribute=value: items that have it, where the export has a filter.")
    ] = None,
    deny: Annotated[list[str] | None, typer.Option(help="attribute=value: items that do not have it.")] = None,
    titles: Annotated[
        Path | None, typer.Option(help="Export, run or prepared folder with the titles; an export brings its own.")
    ] = None,
    model_name: Annotated[str, typer.Option(help="How the server calls the model.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items after a history."""
    from tfrec_serving import Client
    from tfrec_serving.server import Server

    ids, excluded = (next(csv.reader([text], skipinitialspace=True), []) for text in (history, exclude))
    folder = Path(source)
    times = [int(t) for t in timestamps.split(",")] if timestamps else None
    asked = {"allow": _wanted(allow or []), "deny": _wanted(deny or [])}
    if folder.is_dir():
        with (
            Server(folder, 0, model_name=model_name) as server,
            Client(f"127.0.0.1:{server.port}", model_name) as client,
        ):
            answer = client.recommend(ids, k, excluded, times, request_time, **asked)
    elif ":" in source:
        with Client(source, model_name) as client:
            answer = client.recommend(ids, k, excluded, times, request_time, **asked)
    else:
        raise ValueError(f"`{source}` is neither host:port nor an export folder.")
    if as_json:
        print(json.dumps([item._asdict() for item in answer], ensure_ascii=False))
        return
    names = find_titles(titles or (folder if folder.is_dir() else None))
    if names:
        out.print("After: " + "; ".join(names.get(i, i) for i in ids[-5:]), highlight=False)
    print_recommendations(answer, names)


def _wanted(pairs: list[str]) -> dict[str, list[str]]:
    """`["genres=Comedy", "genres=Drama"]` to `{"genres": ["Comedy", "Drama"]}`."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--allow and --deny take attribute=value. Received: {pair!r}.")
        wanted.setdefault(name, []).append(value)
    return wanted


def find_titles(folder: Path | None) -> dict[str, str]:
    """Titles by item id, from the `items.parquet` of an export, a run or a prepared folder; empty where there are none."""
    import pyarrow.parquet

    from tfrec.prepared import ITEMS

    places = (
        []
        if folder is None
        else [folder / ITEMS, *sorted(folder.glob(f"*/assets.extra/{ITEMS}")), folder / "assets.extra" / ITEMS]
    )
    for place in places[::-1]:
        if place.is_file():
            columns = pyarrow.parquet.read_table(place).to_pydict()
            return {i: t for i, t in zip(columns["item_id"], columns.get("title", []), strict=False) if t}
    return {}


def print_recommendations(answer: list, names: dict[str, str]) -> None:
    """A table of recommendations, with titles when known."""
    table = Table()
    for column in ["", "item_id", *(["title"] if names else [])]:
        table.add_column(column)
    table.add_column("score", justify="right")
    for rank, (item_id, score) in enumerate(answer, 1):
        table.add_row(str(rank), item_id, *([names.get(item_id, "")] if names else []), f"{score:.4f}")
    out.print(table)


@app.command()
def lite(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="File to write, such as model.tflite.")],
    k: Annotated[int, typer.Option("-k", help="How many items it recommends.")] = 10,
    index: Annotated[str, typer.Option(help="`exact`, or `partitioned` for a large catalogue.")] = "exact",
) -> None:
    """Convert to LiteRT for phones and edge devices, and compare with Keras."""
    from tfrec.lite import to_litert

    print_lite(to_litert(run, out_, k=k, index=index))


def print_lite(report) -> None:
    """What `tfrec lite` says."""
    out.print(
        f"Wrote {report.path}: {report.size_bytes / 1e6:.2f} MB, vocabulary.json beside it. Against Keras, over "
        f"{report.num_histories} histories: largest score difference {report.max_difference:.1e}, same items for "
        f"{report.same_items:.0%}."
    )


@app.command()
def demo(
    out_: Annotated[Path, typer.Option("--out", help="Folder for everything it writes.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Train at most this many.")] = None,
) -> None:
    """Walk the whole path on MovieLens 100K: data, training, evaluation, export, gRPC query, LiteRT."""
    from tfrec.demo import run_demo

    run_demo(out_, epochs)


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {v:,}" for key, v in value.items()) or "none"
        elif isinstance(value, list):
            value = " to ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, float):
            value = f"{value:,.4g}"
        table.add_row(name, "not known" if value is None else str(value))
    out.print(table)


if __name__ == "__main__":
    main()
