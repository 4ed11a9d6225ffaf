"""`tfrec prepare`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tfrec.cli.tables import out, print_figures


def prepare(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Log files, folders, globs or s3:// addresses; or one of: movielens-100k, movielens-1m, amazon-beauty, "
            "synthetic, synthetic-groceries."
        ),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, tsv, parquet, jsonl or sequences; told from the ending when left out.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Column of user ids; guessed when left out.")] = None,
    item: Annotated[str | None, typer.Option(help="Column of item ids; guessed when left out.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of times: numbers, timestamps or ISO 8601; guessed when left out.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names, with commas, for the columns of a CSV or TSV file without a header line.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="What stands between the fields of CSV and TSV, such as :: or \\t; told from the first line."
        ),
    ] = None,
    quote: Annotated[str, typer.Option(help="Character around fields that hold delimiters, or none.")] = '"',
    escape: Annotated[
        str | None,
        typer.Option(
            help="Character before a delimiter or quote that is part of a field: a backslash for MySQL, Spark."
        ),
    ] = None,
    null_values: Annotated[
        str | None,
        typer.Option(
            help="Texts that mean `missing`, with commas. Default: NULL, \\N, None, nan, NA, N/A and their like."
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of text files, such as latin-1; UTF-8 or marked UTF-16 when left out.")
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(help="Format of times that are neither numbers nor ISO 8601, such as '%m/%d/%Y %I:%M:%S %p'."),
    ] = None,
    tie_break: Annotated[str | None, typer.Option(help="Column that orders events of equal times.")] = None,
    duplicates: Annotated[
        str, typer.Option(help="What becomes of a repeated user, item and time: drop, keep or refuse.")
    ] = "drop",
    first_column: Annotated[
        str | None, typer.Option(help="`user` when each line of sequence text starts with the user id.")
    ] = None,
    items: Annotated[str | None, typer.Option(help="File of item properties: item id, title, anything else.")] = None,
    items_format: Annotated[
        str | None, typer.Option(help="Format of the item file; told from its ending when left out.")
    ] = None,
    items_columns: Annotated[
        str | None, typer.Option(help="Names, with commas, for the columns of an item file without a header line.")
    ] = None,
    items_delimiter: Annotated[
        str | None, typer.Option(help="What stands between the fields of the item file, where not as in the log.")
    ] = None,
    items_quote: Annotated[
        str | None, typer.Option(help="Quotes of the item file, where not as in the log; none: no quotes.")
    ] = None,
    item_feature: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=KIND of a column of items, may be repeated: category, multi (multi:| with the separator), number, date, "
            "vector, text, or none to leave it out. NAME alone takes it; its kind is told from its values, as that of others."
        ),
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder (package sentence-transformers) that makes vectors of text.")
    ] = None,
    event_feature: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME=KIND of a column of the log that is read of each event of a history, may be repeated: category or "
            "number; told from the values when left out."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME=KIND, with commas, of columns of the log that are read of the event to be found, as of a request; "
            "may be repeated."
        ),
    ] = None,
    users_format: Annotated[
        str | None, typer.Option(help="Format of the user file; told from its ending when left out.")
    ] = None,
    users_columns: Annotated[
        str | None, typer.Option(help="Names, with commas, for the columns of a user file without a header line.")
    ] = None,
    users_delimiter: Annotated[
        str | None, typer.Option(help="What stands between the fields of the user file, where not as in the log.")
    ] = None,
    user_feature: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=KIND of a column of --users, may be repeated: category, number, or none to leave it out."
        ),
    ] = None,
    max_refused: Annotated[float, typer.Option(help="Share of refused rows above which nothing is written.")] = 0.01,
    min_user_events: Annotated[int, typer.Option(help="Drop users with fewer events.")] = 1,
    min_item_events: Annotated[int, typer.Option(help="Drop items with fewer events.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder where it exists.")] = False,
    users: Annotated[
        str | None,
        typer.Option(help="File of user properties: user id, anything else. Of synthetic: the number of users, 2000."),
    ] = None,
    catalogue: Annotated[int, typer.Option(help="synthetic: number of items.")] = 500,
    events_per_user: Annotated[
        int | None, typer.Option(help="synthetic: events of each user; 30 when left out, of groceries 60.")
    ] = None,
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
    from tfrec.data import datasets
    from tfrec.data.kinds import describe_feature
    from tfrec.data.preparation import prepare as prepare_log
    from tfrec.data.prepared import REFUSED, PreparedData

    if describe is not None:
        print_figures(PreparedData.open(describe).describe(), as_json)
        return
    if not source or out_ is None:
        raise typer.BadParameter("Pass a log (or the name of a data set) and --out FOLDER, or --describe FOLDER.")
    options: dict[str, Any] = {
        "duplicates": duplicates,
        "max_refused": max_refused,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "overwrite": overwrite,
        "item_features": dict(map(_feature, item_feature or [])),
        "text_encoder": text_encoder,
        "event_features": dict(map(_feature, event_feature or [])),
        "context": dict(map(_feature, [one for text in context or () for one in _list(text)])),
        "user_features": dict(map(_feature, user_feature or [])),
    }
    if len(source) == 1 and source[0] in datasets.NAMES:
        made: dict[str, Any] = (
            {
                "num_users": _number(users),
                "num_items": catalogue,
                "predictability": predictability,
                "seed": seed,
            }
            if source[0] in datasets.GENERATED
            else {}
        )
        options |= {} if made else {"users": users}
        made |= {"events_per_user": events_per_user} if made and events_per_user is not None else {}
        manifest = datasets.prepare_dataset(source[0], out_, prepare_options=options, **made).manifest
    else:
        told: dict[str, Any] = {
            "user": user,
            "item": item,
            "time": time,
            "items": items,
            "users": users,
            "format": format,
        }
        options |= told | {"columns": _list(columns), "first_column": first_column, "time_format": time_format}
        options |= {"delimiter": _tab(delimiter), "escape": escape, "tie_break": tie_break, "encoding": encoding}
        options |= {"quote": _quote(quote)}
        if null_values is not None:
            options["null_values"] = _list(null_values)
        of_items = {"format": items_format, "columns": _list(items_columns), "delimiter": _tab(items_delimiter)}
        options["items_options"] = {name: value for name, value in of_items.items() if value}
        of_users = {"format": users_format, "columns": _list(users_columns), "delimiter": _tab(users_delimiter)}
        options["users_options"] = {name: value for name, value in of_users.items() if value}
        if items_quote is not None:
            options["items_options"]["quote"] = _quote(items_quote)
        manifest = prepare_log(source, out_, **options).manifest
    if as_json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for note in manifest["notes"]:
        out.print(f"  {note}", highlight=False, markup=False)
    for whose in ("item", "event", "user"):
        for name, entry in manifest.get(f"{whose}_features", {}).items():
            line = f"  {whose} column {name!r}: {describe_feature(entry)}"
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"Wrote {out_}: {manifest['num_users']:,} users, {manifest['num_items']:,} items, {manifest['num_events']:,} events.",
        markup=False,
    )
    if manifest["num_refused"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["refused"].items())
        out.print(
            f"Refused {manifest['num_refused']:,} of {manifest['num_rows']:,} rows ({reasons}): see {out_ / REFUSED}",
            markup=False,
        )
    if manifest["num_duplicates"]:
        out.print(
            f"Dropped {manifest['num_duplicates']:,} duplicates: same user, item and time (--duplicates keep keeps them)."
        )
    if manifest["num_filtered_events"]:
        out.print(f"Left out {manifest['num_filtered_events']:,} events of rare users and items.")


def _list(names: str | None) -> list[str]:
    """Names with commas between them, quoted as in CSV."""
    return next(csv.reader([names]), []) if names else []


def _number(users: str | None) -> int:
    """The number of users of a generated log."""
    if users is not None and not users.isdecimal():
        raise typer.BadParameter(
            f"A generated log has no user file: --users is the number of its users. Received: {users}."
        )
    return int(users or 2000)


def _feature(text: str) -> tuple[str, str]:
    """The name and the kind in `NAME=KIND`; a name may hold `=`, and so may a separator.

    >>> _feature("genres=multi:|"), _feature("a=b"), _feature("sku")
    (('genres', 'multi:|'), ('a', 'b'), ('sku', 'auto'))
    """
    from tfrec.data.kinds import KINDS, NONE, TOLD

    kinds = "|".join((*KINDS, NONE, TOLD))
    found = re.fullmatch(rf"(.+?)=((?:{kinds})(?::.*)?)", text) or re.fullmatch("(.+)=(.*)", text)
    return (found[1], found[2]) if found else (text, TOLD)


def _quote(character: str) -> str | None:
    return None if character == "none" else character


def _tab(delimiter: str | None) -> str | None:
    return delimiter and delimiter.replace("\\t", "\t")
