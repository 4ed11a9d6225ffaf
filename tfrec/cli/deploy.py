"""`tfrec export`, `lite`, `check`, `export-embeddings` and `index refresh`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tfrec.cli.tables import out, print_lite

INDEX_HELP = (
    "Kind of index: `exact` or `partitioned` (approximate), of stock ops; or `scann` (needs a server with ScaNN's ops, such "
    "as `tfrec serve`)."
)
REPEATS_HELP = "`exclude` never recommends items of the history, `allow` may; as the run was trained when left out."
ITEMS_HELP = (
    "File of new items: item_id and the other columns of the item file, which a model with item features knows them by; or "
    "similar_to (ids of items like it, between bars), or vector."
)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="Export folder; the next version goes into it.")],
    index: Annotated[str, typer.Option(help=INDEX_HELP)] = "scann",
    k: Annotated[int, typer.Option("-k", help="Number of items that `serving_default` recommends.")] = 10,
    recall: Annotated[float, typer.Option(help="Share of the exact top k that an approximate index must find.")] = 0.99,
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
    max_k: Annotated[int, typer.Option(help="Items that a request gets at most: a larger k is read as this.")] = 1000,
    repeats: Annotated[
        str | None, typer.Option(help=REPEATS_HELP + " With `allow`, the signature `recommend_new` leaves them out.")
    ] = None,
    add_items: Annotated[Path | None, typer.Option(help=ITEMS_HELP)] = None,
    remove_items: Annotated[Path | None, typer.Option(help="File with a column of item ids to leave out.")] = None,
) -> None:
    """Write one SavedModel: ids in, ids and scores out, the index inside."""
    from tfrec.deploy.catalogue import read_changes
    from tfrec.deploy.saved_model import export as export_run

    added, removed = read_changes(add_items, remove_items)
    version = export_run(
        run,
        out_,
        index=index,
        k=k,
        storage=storage,
        recall=recall,
        filters=filters or [],
        max_k=max_k,
        repeats=repeats,
        add_items=added,
        remove_items=removed,
    )
    _print_export(version)


def _print_export(version: Path) -> None:
    from tfrec.deploy.saved_model import MANIFEST

    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    needs = ", ".join(manifest["custom_ops"]) or "none beyond stock TensorFlow"
    out.print(
        f"Wrote {version}: {len(manifest['signatures'])} signatures, {manifest['index']['kind']} index over "
        f"{manifest['num_items']:,} items, recall@10 {manifest['index']['recall@10']:.4f}, ops needed: {needs}."
    )
    for name, number in manifest["unknown_values"].items():
        if number:
            out.print(
                f"  column {name!r} of the added items: {number:,} values that training has not seen", markup=False
            )


def _print_missing(version: Path, columns: list[str]) -> None:
    """Say which columns that new items are known by are not there."""
    from tfrec.data.kinds import meant
    from tfrec.deploy.saved_model import MANIFEST

    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    for feature in manifest.get("item_features", []):
        if feature["column"] not in columns:
            hint = meant(feature["column"], columns)
            out.print(
                f"  column {feature['column']!r} is not in the file of new items: they have no value.{hint}",
                markup=False,
            )


def refresh(
    export: Annotated[Path, typer.Argument(help="Export folder; its newest version is refreshed.")],
    items: Annotated[Path | None, typer.Option(help=ITEMS_HELP)] = None,
    remove: Annotated[Path | None, typer.Option(help="File with a column of item ids to take out.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that the export came from, where it has moved.")] = None,
) -> None:
    """Write the next version of an export, with items added or removed, without training."""
    from tfrec.deploy.catalogue import read_changes
    from tfrec.deploy.saved_model import latest_version
    from tfrec.deploy.saved_model import refresh as refresh_export

    if items is None and remove is None:
        raise typer.BadParameter("Pass --items FILE, --remove FILE or both.")
    added, removed = read_changes(items, remove)
    if added is not None:
        _print_missing(latest_version(export), added.column_names)
    _print_export(refresh_export(export, add_items=added, remove_items=removed, run=run))


def export_embeddings(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
) -> None:
    """Write the vectors of all items, for an outside vector store."""
    from tfrec.deploy.catalogue import export_embeddings as write

    out.print(f"Wrote {out_}: {write(run, out_):,} items.")


def check(
    export: Annotated[Path, typer.Argument(help="Export folder, or one of its versions.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an export needs, who can load it, and whether it answers."""
    from tfrec.deploy.check import check as check_export
    from tfrec.deploy.saved_model import latest_version

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
        "sample request": json.dumps({"signature_name": "recommend", "inputs": report.request}, ensure_ascii=False)
        if report.request
        else "none",
        "sample answer": ", ".join(report.answer) or "none",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)


def lite(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="File to write, such as model.tflite.")],
    k: Annotated[int, typer.Option("-k", help="Number of items that it recommends.")] = 10,
    index: Annotated[str, typer.Option(help="`exact`, or `partitioned` for a large catalogue.")] = "exact",
    repeats: Annotated[str | None, typer.Option(help=REPEATS_HELP)] = None,
) -> None:
    """Convert to LiteRT for phones and edge devices, and compare with Keras."""
    from tfrec.deploy.litert import to_litert

    print_lite(to_litert(run, out_, k=k, index=index, repeats=repeats))
