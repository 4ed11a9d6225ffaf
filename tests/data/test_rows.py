"""Logs as they lie: nothing is lost, the same id is the same id, times keep their resolution."""

import csv
import gzip
import io
import json
import time
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import histories, write

from tfrec.data.items import read_items
from tfrec.data.preparation import prepare
from tfrec.data.readers import Reading, read_table
from tfrec.data.rows import as_text


def log_of(tmp_path, kind: str, rows: list[dict], name: str = "log"):
    """A file of rows in one of the formats; None is an empty field, null, or no key at all."""
    path = tmp_path / f"{name}.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows), "utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


KINDS = ("csv", "tsv", "jsonl", "json", "parquet")

# --- rows that vanish --------------------------------------------------------------------------------------------------


def many(rows: int, broken: int, text: str) -> str:
    lines = [f"u{n % 50},i{n % 90},{1_500_000_000 + n}" for n in range(rows)]
    lines[broken] = text
    return "user,item,time\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('u7,"open,5', r"the quote that opens on line 150002 is not closed. Where quotes are .* pass --quote none"),
        ('u7,"open"x,5', "on line 150002, text follows the quote that closes a field"),
    ],
)
def test_an_open_quote_refuses_the_file_with_its_line(tmp_path, text, message):
    log = write(tmp_path / "log.csv", many(300_000, 150_000, text))
    with pytest.raises(ValueError, match=message):
        prepare(log, tmp_path / "out", max_refused=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv"]
    data = prepare(log, quote=None)
    assert data.num_events == 300_000
    assert [i for i in data.vocabulary.item_ids if '"' in i] == [text.split(",")[1]]


def test_an_open_quote_that_a_later_one_closes_is_found(tmp_path):
    """The worst case: read as the standard has it, the quotes would swallow the rows between them."""
    log = write(tmp_path / "log.csv", 'user,item,time\nu,"open,5\nu,b,6\nv,"c",7\nv,d,8\n')
    with pytest.raises(ValueError, match="on line 4, text follows the quote that closes"):
        prepare(log)


def test_quotes_as_the_standard_has_them(tmp_path):
    rows = [
        ("u", 'a "quoted" id'),
        ("u", "two\nlines"),
        ("u", "a,comma"),
        ("u", ""),
        ("u", '"'),
        ("u", "\r\n"),
        ("v", '5" disk'),
    ]
    content = io.StringIO()
    csv.writer(content).writerows([("user", "item"), *rows])
    text = content.getvalue() + 'v,6" disk,\r\n'.replace(",\r", "\r")  # a quote within a field that none opened
    data = prepare(write(tmp_path / "log.csv", text), max_refused=0.3)
    assert histories(data) == {"u": ['a "quoted" id', "two\nlines", "a,comma", '"'], "v": ['5" disk', '6" disk']}
    assert data.refused.to_pylist() == [
        {"file": str(tmp_path / "log.csv"), "line": line, "reason": "missing item id"} for line in (6, 8)
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_a_row(tmp_path, ending):
    lines = ["user,item", "u,a", "", "u", 'v,"b\n\nc"', "v,d,e"]
    data = prepare(write(tmp_path / "log.csv", "\ufeff" + ending.join(lines)), max_refused=0.5)
    assert histories(data) == {"u": ["a"], "v": ["b\n\nc"]}
    assert [row["line"] for row in data.refused.to_pylist()] == [4, 8]


def test_a_field_of_any_size_is_read(tmp_path):
    wide = "x" * 200_000
    data = prepare(
        write(tmp_path / "log.csv", f'user,item,text\nu,a,{wide}\nu,b,"{wide}"\nu,{wide},\nu,c\n'), max_refused=0.3
    )
    assert histories(data) == {"u": ["a", "b", wide]}
    assert data.refused["line"].to_pylist() == [5]
    with pytest.raises(ValueError, match="the first line cannot be read: field larger than"):
        prepare(write(tmp_path / "wide.csv", f"user,item,{wide}\nu,a,b\n"))


def test_rows_that_cross_blocks_are_read_once(tmp_path, monkeypatch):
    from tfrec.data import delimited

    rows = [(f"u{n % 7}", f'i"{n % 11}\n{"é" * (n % 5)}' if n % 3 else f"p{n}", 10**9 + n) for n in range(500)]
    content = io.StringIO()
    csv.writer(content).writerows([("user", "item", "time"), *rows])
    log = write(tmp_path / "log.csv", content.getvalue())
    expected = prepare(log)
    assert expected.num_events == 500
    for size in (37, 64, 1000):
        monkeypatch.setattr(delimited, "BLOCK_BYTES", size)
        assert prepare(log).fingerprint == expected.fingerprint
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 500)
    with pytest.raises(ValueError, match="the quote that opens on line 2 is not closed"):
        prepare(write(tmp_path / "open.csv", 'user,item\nu,"a\n' + "u,b\n" * 1000))


def test_a_million_refused_rows_take_seconds(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\n" + "u,a\n" * 10 + ",a\n" * 500_000 + "u\n" * 500_000)
    began = time.perf_counter()
    with pytest.raises(ValueError, match="1000000 of 1000010 rows were refused"):
        prepare(log)
    data = prepare(log, max_refused=1)
    assert data.manifest["refused"] == {"missing user id": 500_000, "too few columns": 500_000}
    assert data.refused["line"][-1].as_py() == 1_000_011
    assert time.perf_counter() - began < 30


# --- order, resolution, duplicates -------------------------------------------------------------------------------------

MILLISECONDS = [1_700_000_000_900, 1_700_000_000_500, 1_700_000_000_100, 1_700_000_000_700]
EXPECTED = ["a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("times", "resolution"),
    [
        (MILLISECONDS, "ms"),
        ([m / 1000 for m in MILLISECONDS], "ms"),
        ([m * 1000 + 1 for m in MILLISECONDS], "us"),
        ([m * 1_000_000 + 1 for m in MILLISECONDS], "ns"),
        ([f"2023-11-14T22:13:20.{m % 1000}" for m in MILLISECONDS], "ms"),
        ([f"2023-11-14 22:13:20.{m % 1000}001+00:00" for m in MILLISECONDS], "us"),
        ([f"2023-11-15T00:13:20.{m % 1000}000007+02:00" for m in MILLISECONDS], "ns"),
        ([9, 5, 1, 7], "s"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_order_within_a_second_is_kept(tmp_path, times, resolution, kind):
    rows = [{"user": "u", "item": i, "time": t} for i, t in zip("cbaa", times, strict=True)]
    data = prepare(log_of(tmp_path, kind, rows))
    assert histories(data) == {"u": EXPECTED}
    assert data.manifest["time_resolution"] == resolution
    assert data.manifest["num_rows"] == data.num_events == 4
    if resolution != "s":
        assert set(data.seconds(slice(None)).tolist()) == {1_700_000_000}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_any_unit(tmp_path, unit):
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    stamps = pa.array([1_700_000_000 * ticks + n for n in (9, 5, 1, 7)], pa.timestamp(unit, tz="Asia/Tokyo"))
    table = pa.table({"user": ["u"] * 4, "item": list("cbaa"), "time": stamps})
    pq.write_table(table, tmp_path / "log.parquet")
    for log in (table, tmp_path / "log.parquet"):
        data = prepare(log)
        assert histories(data) == {"u": EXPECTED}
        assert data.manifest["time_resolution"] == unit
        assert data.timestamp.tolist() == [1_700_000_000 * ticks + n for n in (1, 5, 7, 9)]


def test_whole_seconds_are_stored_as_seconds_however_they_are_written(tmp_path):
    prints = set()
    for number, times in enumerate(([1_700_000_000, 1_700_000_060], [1_700_000_000_000, 1_700_000_060_000])):
        rows = [{"user": "u", "item": i, "time": t} for i, t in zip("ab", times, strict=True)]
        data = prepare(log_of(tmp_path, "csv", rows, str(number)))
        assert data.manifest["time_resolution"] == "s"
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_ties_are_reported_and_a_column_orders_them(tmp_path):
    rows = [
        {"user": "u", "item": i, "time": "2026-01-05", "step": s} for i, s in zip("abc", (10, 9, 100), strict=True)
    ] + [{"user": "v", "item": "a", "time": "2026-01-05", "step": 1}]
    for kind in KINDS:
        log = log_of(tmp_path, kind, rows)
        assert histories(prepare(log)) == {"u": ["a", "b", "c"], "v": ["a"]}
        data = prepare(log, tie_break="step")
        assert histories(data) == {"u": ["b", "a", "c"], "v": ["a"]}  # as numbers
        assert data.describe()["events with the time of another of their user"] == 0.75
    as_words = [row | {"step": f"s{row['step']}"} for row in rows]
    assert histories(prepare(log_of(tmp_path, "csv", as_words), tie_break="step"))["u"] == ["a", "c", "b"]
    with pytest.raises(ValueError, match=r"has no column 'no' \(--tie-break\). Its columns: user"):
        prepare(log, tie_break="no")


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_dropped_kept_or_refused(tmp_path, kind):
    rows = [{"user": "u", "item": i, "time": f"2026-01-0{d}"} for i, d in ("a1", "b1", "a1", "a2", "b1")]
    rows.append({"user": "v", "item": "a", "time": "2026-01-01"})
    log = log_of(tmp_path, kind, rows)
    data = prepare(log)
    assert (histories(data), data.manifest["num_duplicates"]) == ({"u": ["a", "b", "a"], "v": ["a"]}, 2)
    assert (data.manifest["num_rows"], data.manifest["num_refused"]) == (6, 0)
    data = prepare(log, duplicates="keep")
    assert (histories(data)["u"], data.manifest["num_duplicates"]) == (["a", "b", "a", "b", "a"], 0)
    with pytest.raises(ValueError, match="2 of 6 rows were refused.*duplicate of an earlier row"):
        prepare(log, duplicates="refuse")
    data = prepare(log, duplicates="refuse", max_refused=0.5)
    number = {"csv": 1, "tsv": 1}.get(kind, 0)
    assert [row["line"] for row in data.refused.to_pylist()] == [3 + number, 5 + number]
    with pytest.raises(ValueError, match="`duplicates` must be one of drop, keep, refuse. Received: 'no'"):
        prepare(log, duplicates="no")


# --- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_missing_ids_however_they_are_written(tmp_path, kind):
    missing = ["NULL", r"\N", "None", "nan", "NaN", "NA", "N/A", "", "  ", "<NA>"]
    rows = [{"user": m, "item": "a"} for m in missing] + [{"user": "u", "item": m} for m in missing]
    log = log_of(tmp_path, kind, [*rows, {"user": "Nancy", "item": "NAN"}, {"user": " u ", "item": "b "}])
    data = prepare(log, max_refused=0.99)
    assert histories(data) == {"Nancy": ["NAN"], "u": ["b"]}
    assert data.manifest["refused"] == {"missing item id": 10, "missing user id": 10}
    data = prepare(log, max_refused=0.99, null_values=["Nancy"])
    assert "NULL" in data.users["user_id"].to_pylist()
    assert "Nancy" not in data.users["user_id"].to_pylist()


def test_nan_is_missing_in_typed_columns(tmp_path):
    write(tmp_path / "log.jsonl", '{"user": NaN, "item": 1}\n{"user": 7.0, "item": 2}\n{"user": 7, "item": NaN}\n')
    data = prepare(tmp_path / "log.jsonl", max_refused=0.9)
    assert histories(data) == {"7": ["2"]}
    table = pa.table(
        {"user": [float("nan"), 7.0, 7.0, None], "item": pa.array(["a", "b", "NaN", "d"], pa.large_string())}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    for log in (tmp_path / "log.parquet", table, table.to_pandas(), pl.from_arrow(table)):
        data = prepare(log, max_refused=0.9)
        assert histories(data) == {"7": ["b"]}
        assert data.manifest["refused"] == {"missing item id": 1, "missing user id": 2}
    mixed = pd.DataFrame({"user": ["u", 7, np.nan, None, 7.0], "item": [1, "x", 2, 3, 4.5]}, dtype=object)
    assert histories(prepare(mixed, max_refused=0.9)) == {"u": ["1"], "7": ["x", "4.5"]}


def test_a_whole_float_is_the_number(tmp_path):
    """pandas writes whole numbers as floats where one is missing: in text too, if all of the column are."""
    expected = {"7": ["123", "5"]}
    frame = pd.DataFrame({"user": [7.0, 7.0, None], "item": [123.0, 5.0, 6.0]})
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")
    frame.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    for log in (frame, *(tmp_path / f"log.{kind}" for kind in ("csv", "parquet", "jsonl"))):
        assert histories(prepare(log, max_refused=0.5)) == expected
    write(tmp_path / "whole.csv", "user,item\n7,123\n")
    data = prepare([tmp_path / "log.csv", tmp_path / "whole.csv"], max_refused=0.5)
    assert histories(data) == {"7": ["123", "5", "123"]}
    versions = prepare(write(tmp_path / "versions.csv", "user,item\nu,1.0\nu,2.0-rc\n"))
    assert histories(versions) == {"u": ["1.0", "2.0-rc"]}  # text, not a column of floats
    items = {"id": [123.0, 5.0], "name": ["Anchor", "Bell"]}
    pd.DataFrame(items).to_csv(tmp_path / "items.csv", index=False)
    pd.DataFrame(items).to_json(tmp_path / "items.jsonl", orient="records", lines=True)
    pd.DataFrame(items).to_parquet(tmp_path / "items.parquet")
    for given in (pa.table(items), *(tmp_path / f"items.{kind}" for kind in ("csv", "jsonl", "parquet"))):
        titles = prepare(frame, items=given, max_refused=0.5).items["title"].to_pylist()
        assert titles == ["Anchor", "Bell"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_stay_as_written_in_logs_and_item_files(tmp_path, kind):
    ids = [
        "0123456789abcdef0123456789abcdef",
        "6F9619FF-8B86-D011-B42D-00CF4FC964FF",
        "2024-01-15",
        "0007",
        "1e5",
        "café",
        "true",
    ]
    log = log_of(tmp_path, kind, [{"user": "u", "item": i} for i in ids])
    items = log_of(tmp_path, kind, [{"item_id": f" {i} ", "title": f"T {i}"} for i in ids], "items")
    data = prepare(log, items=items)
    assert data.vocabulary.item_ids == ids
    assert data.items["title"].to_pylist() == [f"T {i}" for i in ids]


def test_text_without_its_type_is_text(tmp_path):
    table = pa.table(
        {"user": pa.array([b"u", b"u", b"v"]), "item": pa.array(["café".encode(), b"\xff", b"tea"], pa.large_binary())}
    )
    pq.write_table(table, tmp_path / "log.parquet", store_schema=False)
    for log in (table, tmp_path / "log.parquet"):
        data = prepare(log, max_refused=0.5)
        assert histories(data) == {"u": ["café"], "v": ["tea"]}
        assert [(row["line"], row["reason"]) for row in data.refused.to_pylist()] == [(2, "broken UTF-8")]


def test_ids_of_other_types():
    one = uuid.UUID("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
    cases = [
        (pa.array([one.bytes], pa.uuid()), str(one)),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
        (pa.array([12345678901234567890], pa.uint64()), "12345678901234567890"),
        (pa.array(["5.00"]).cast(pa.decimal128(5, 2)), "5"),
        (pa.array(["5.25"]).cast(pa.decimal128(5, 2)), "5.25"),
        (pa.array([1], pa.date32()), "1970-01-02"),
        (pa.array([float("inf")]), None),
        (pa.nulls(1), None),
    ]
    for values, text in cases:
        assert as_text(values)[0].to_pylist() == [text]
    for values in (pa.array([True]), pa.array([{"a": 1}]), pa.array([[1]])):
        with pytest.raises(ValueError, match="holds values of type .* an id is text or a number"):
            as_text(values)


# --- sessions, columns of JSON -----------------------------------------------------------------------------------------


def test_a_list_of_items_is_a_session(tmp_path):
    rows = [
        {"user": "u", "items": ["b", "a", "a"], "time": "2026-01-02"},
        {"user": "u", "items": ["c"], "time": "2026-01-01"},
        {"user": "v", "items": [], "time": "2026-01-01"},
        {"user": None, "items": ["a", "b"], "time": "2026-01-01"},
    ]
    for log in (pa.Table.from_pylist(rows), *(log_of(tmp_path, kind, rows) for kind in ("parquet", "jsonl", "json"))):
        data = prepare(log, item="items", max_refused=0.6)
        assert histories(data) == {"u": ["c", "b", "a", "a"]}
        assert data.manifest["refused"] == {"missing user id": 2, "no items": 1}
        assert data.manifest["num_rows"] == 7


def test_times_of_a_session_go_along(tmp_path):
    rows = [
        {"user": "u", "item": [1, 2], "time": [1_700_000_009, 1_700_000_001]},
        {"user": "u", "item": [3, 4], "time": [1_700_000_005]},
    ]
    for kind in ("parquet", "jsonl"):
        data = prepare(log_of(tmp_path, kind, rows), max_refused=0.9)
        assert histories(data) == {"u": ["2", "1"]}
        assert data.refused["reason"].to_pylist() == ["2 items, but 1 values of the time column"]


def test_columns_that_hold_no_ids_are_refused_in_a_sentence(tmp_path):
    for item, what in (([{"a": 1}], "struct"), ([True], "bool"), ([[["a"]]], "list")):
        table = pa.table({"user": ["u"], "item": item})
        pq.write_table(table, tmp_path / "log.parquet")
        with pytest.raises(
            ValueError, match=f"log.parquet`: the item column holds values of type {what}.*Nothing was read"
        ):
            prepare(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="the user column holds lists: a row has one user"):
        prepare(pa.table({"user": [["u"]], "item": [["a"]]}))
    with pytest.raises(ValueError, match="the time column: holds values of type bool, which are no times"):
        prepare(pa.table({"user": ["u"], "item": ["a"], "time": [True]}))


def test_columns_of_json_are_those_of_all_rows(tmp_path):
    lines = ['{"user": "u", "item": "a"}'] + [
        f'{{"user": "u", "item": "b{n}", "time": {1700000000 - n}}}' for n in range(3)
    ]
    data = prepare(write(tmp_path / "log.jsonl", "\n".join(lines)), max_refused=0.5)
    assert histories(data) == {"u": ["b2", "b1", "b0"]}
    assert data.refused["reason"].to_pylist() == ["missing time"]
    items = write(tmp_path / "items.jsonl", '{"item": "b0"}\n{"item": "b1", "title": "One", "size": [1, 2]}\n')
    assert read_items(items).to_pydict() == {"item_id": ["b0", "b1"], "title": [None, "One"], "size": [None, [1, 2]]}


def test_what_json_holds_beside_ids_is_refused_by_row(tmp_path):
    lines = [
        '{"user": {"id": 1}, "item": "a"}',
        '{"user": true, "item": "a"}',
        '{"user": "u", "item": {"a": 1}}',
        "[" * 20_000,
    ]
    lines += ['{"user": "u", "item": "a"}', '["u", "a"]', '{"user": "\\ud800", "item": "a"}']
    data = prepare(write(tmp_path / "log.jsonl", "\n".join(lines)), max_refused=0.9)
    assert histories(data) == {"u": ["a"]}
    assert data.refused["reason"].to_pylist() == [
        "the user id is neither text nor a number: {'id': 1}",
        "the user id is neither text nor a number: True",
        "the item id is neither text nor a number: {'a': 1}",
        "not JSON: nested too deep",
        "not a JSON object",
        "broken Unicode escape",
    ]


# --- times -------------------------------------------------------------------------------------------------------------


def times_of(tmp_path, times, **options):
    rows = [{"user": "u", "item": f"i{n}", "time": t} for n, t in enumerate(times)]
    return prepare(log_of(tmp_path, "csv", rows), max_refused=0.9, **options)


def test_a_column_has_one_unit(tmp_path):
    """Each row for itself, 20000000000 would be the year 2603 in seconds, and 1970 in milliseconds."""
    data = times_of(tmp_path, [20_000_000_000, 1_700_000_000_000, 1_700_000_100_000])
    assert data.seconds(slice(None)).tolist() == [20_000_000, 1_700_000_000, 1_700_000_100]
    assert data.manifest["time_units"] == {"milliseconds": 3}
    assert any("1 times lie before 1990 and 0 after tomorrow: is the unit right?" in n for n in data.manifest["notes"])
    data = times_of(tmp_path, [1, 2, 3])
    assert (data.timestamp.tolist(), data.manifest["time_units"]) == ([1, 2, 3], {"seconds": 3})
    data = times_of(tmp_path, [8_000_000_000])
    assert any("0 times lie before 1990 and 1 after tomorrow" in n for n in data.manifest["notes"])
    data = times_of(tmp_path, [1_700_000_000, 10**17])
    assert data.refused["reason"].to_pylist() == ["time is no date of 1970 to 2262: 100000000000000000"]


def test_dates_as_numbers(tmp_path):
    data = times_of(tmp_path, [20240115, 20240116, 20249999])
    assert data.timestamp.tolist() == [1705276800, 1705363200]
    assert data.manifest["time_units"] == {"dates as YYYYMMDD": 2}
    assert data.refused["reason"].to_pylist() == ["time is no date of 1970 to 2262: 20249999"]
    assert times_of(tmp_path, [20240115093000]).timestamp.tolist() == [1705311000]
    assert prepare(pa.table({"user": [1], "item": [2], "time": [20240115]})).timestamp.tolist() == [1705276800]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-02", 1767312000),
        ("2026-01-02T10:00", 1767348000),
        ("2026-01-02 10:00:00Z", 1767348000),
        ("2026-01-02T10:00:00+02:00", 1767340800),
        ("2026-01-02 10:00:00 +0200", 1767340800),
        ("2026-01-02 10:00:00 UTC", 1767348000),
        (" 1767348000 ", 1767348000),
        ("1.767348e9", 1767348000),
    ],
)
def test_times_as_text(tmp_path, text, seconds):
    assert times_of(tmp_path, [text]).timestamp.tolist() == [seconds]


def test_a_format_of_times(tmp_path):
    data = times_of(
        tmp_path, ["11/11/2019 9:05:58 AM", "1/2/2020 12:00:00 PM", "soon"], time_format="%m/%d/%Y %I:%M:%S %p"
    )
    assert data.timestamp.tolist() == [1573463158, 1577966400]
    assert data.refused["reason"].to_pylist() == ["time does not parse: soon"]
    with pytest.raises(ValueError, match="the time column: --time-format '%Q': .*Unrecognized format"):
        times_of(tmp_path, ["x"], time_format="%Q")


def test_a_column_of_times_is_found_by_its_values(tmp_path):
    base = {"user": "u", "item": "a", "price": 10, "zip": "20345678"}
    for values in (["2026-01-02", "2026-01-03"], [1_700_000_000_123, 1_600_000_000_000], [20260101, 20260102]):
        rows = [base | {"moment": v} for v in values]
        for kind in KINDS:
            data = prepare(log_of(tmp_path, kind, rows))
            assert "time column: 'moment' (guessed: its values are times; --time sets it)" in data.manifest["notes"]
            assert data.timestamp.any()
    rows = [base | {"sent": "2026-01-02", "seen": "2026-01-03"}]
    data = prepare(log_of(tmp_path, "csv", rows))
    assert "several columns hold times: sent, seen (--time names the one to use)" in data.manifest["notes"]
    assert not data.timestamp.any()


def test_a_column_of_event_types_is_named_in_the_report(tmp_path):
    data = prepare(log_of(tmp_path, "csv", [{"user": "u", "item": "a", "event": "view"}]))
    assert (
        "column 'event' looks like the type of the event: rows of every type are read alike (--event-feature tells them apart)"
        in data.manifest["notes"]
    )


# --- files as they lie -------------------------------------------------------------------------------------------------


def test_compressed_files(tmp_path):
    text = b"user,item\nu,a\nu,b\n"
    write(tmp_path / "log.csv.gz", gzip.compress(text))
    write(tmp_path / "log.jsonl.gz", gzip.compress(b'{"user": "u", "item": "a"}\n{"user": "u", "item": "b"}'))
    for codec, ending in (("zstd", "zst"), ("bz2", "bz2"), ("lz4", "lz4")):
        with pa.CompressedOutputStream(str(tmp_path / f"log.csv.{ending}"), codec) as file:
            file.write(text)
    for path in sorted(tmp_path.iterdir()):
        assert histories(prepare(path)) == {"u": ["a", "b"]}, path
    items = write(tmp_path / "items.csv.gz", gzip.compress(b"id,title\na,A\nb,B\n"))
    assert prepare(tmp_path / "log.csv.gz", items=items).items["title"].to_pylist() == ["A", "B"]
    write(tmp_path / "torn.csv.gz", gzip.compress(b"user,item\n" + b"".join(b"u,%d\n" % n for n in range(9999)))[:5000])
    with pytest.raises(ValueError, match="torn.csv.gz` cannot be read"):
        prepare(tmp_path / "torn.csv.gz")
    write(tmp_path / "text.csv.gz", text)
    with pytest.raises(ValueError, match="text.csv.gz` cannot be read"):
        prepare(tmp_path / "text.csv.gz")


def test_utf_16_is_read(tmp_path):
    assert histories(prepare(write(tmp_path / "log.tsv", "user\titem\nu\tcafé\n".encode("utf-16")))) == {"u": ["café"]}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_folder_of_parts_as_spark_writes_it(tmp_path, kind):
    folder = tmp_path / "events"
    for number, (day, user) in enumerate(
        (("2026-01-02", "u"), ("2026-01-01", "u"), ("__HIVE_DEFAULT_PARTITION__", "v"))
    ):
        part = folder / f"day={day}"
        part.mkdir(parents=True)
        log_of(part, kind, [{"user": user, "item": f"i{number}"}], f"part-0000{number}")
        write(part / f".part-0000{number}.{kind}.crc", b"\0\1")
        write(part / f"part-0000{number}-empty.csv", "")
    write(folder / "_SUCCESS", "")
    data = prepare(folder, time="day", max_refused=0.5)
    assert histories(data) == {"u": ["i1", "i0"]}
    assert data.manifest["source"] == [str(folder)]
    assert [row["reason"] for row in data.refused.to_pylist()] == ["missing time"]
    assert data.refused["file"].to_pylist() == [str(folder / f"day=__HIVE_DEFAULT_PARTITION__/part-00002.{kind}")]
    found = prepare(f"{folder}/*/*.{kind}", max_refused=0.5)
    assert any("'day' (guessed: its values are times" in n for n in found.manifest["notes"])
    assert found.num_events == 2
    assert prepare(f"file://{folder}", time="day", max_refused=0.5).fingerprint == data.fingerprint


def test_places_without_files_say_so(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "is a folder without data files"),
        (tmp_path / "*.csv", "matches no file"),
        (tmp_path / "no.csv", "does not exist or is not a file"),
        ("ftp://host/log.csv", "Paths, file://, s3:// and gs:// can"),
        ("s3://bucket/log.csv?endpoint_override=127.0.0.1:9&scheme=http&region=x", "cannot be read: "),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(path)
    write(tmp_path / "mixed" / "README.md", "x")
    with pytest.raises(ValueError, match="README.md`: no format is known for the ending '.md'"):
        prepare(tmp_path / "mixed")


def test_delimiters_quotes_and_escapes(tmp_path):
    movielens = write(tmp_path / "ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n")
    data = prepare(movielens, format="csv", delimiter="::", columns=["user", "item", "rating", "time"])
    assert histories(data) == {"1": ["1193", "661"], "2": ["1193"]}
    mysql = write(
        tmp_path / "dump.csv", 'u,a\\,1,"x"\nu,\\N,y\n\\N,b,z\n"u","say \\"hi\\"",w\nu,c\\\nd,v\nu,back\\\\slash,v\n'
    )
    data = prepare(mysql, columns=["user", "item", "note"], escape="\\", max_refused=0.5)
    assert histories(data) == {"u": ["a,1", 'say "hi"', "c\nd", "back\\slash"]}
    assert [(r["line"], r["reason"]) for r in data.refused.to_pylist()] == [
        (2, "missing item id"),
        (3, "missing user id"),
    ]
    with pytest.raises(ValueError, match="on line 4, text follows the quote that closes a field.*pass --escape"):
        prepare(mysql, columns=["user", "item", "note"])
    single = write(tmp_path / "single.csv", "user;item\n'u;1';a\n'it''s';b\n")
    assert histories(prepare(single, quote="'")) == {"u;1": ["a"], "it's": ["b"]}
    items = write(tmp_path / "items.csv", 'item_id::title\n1193::Cuckoo\'s "Nest"\n661::NULL\n')
    found = prepare(movielens, format="csv", delimiter="::", columns=["user", "item", "rating", "time"], items=items)
    assert found.items["title"].to_pylist() == ['Cuckoo\'s "Nest"', None]
    for options, message in (
        ({"quote": "ab"}, "--quote must be one ASCII character and no line break, or none. Received: 'ab'"),
        ({"escape": "é"}, "--escape must be one ASCII character"),
        ({"delimiter": ""}, "--delimiter must be ASCII characters"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(single, **options)
    with pytest.raises(ValueError, match=r"holds the character U\+001F"):
        prepare(write(tmp_path / "unit.csv", "user::item\nu::a\x1fb\n"), delimiter="::")


def test_item_files_lose_nothing_either(tmp_path):
    for name, text, message in (
        ("items.csv", "id,title\na,A\nb\n", "items.csv`, line 3: too few columns"),
        ("items.csv", "id,title\na,A\n ,B\n", "items.csv`, row 2: the item id is missing or broken"),
        ("items.csv", 'id,title\na,"A\n', "the quote that opens on line 2 is not closed"),
        ("items.csv", b"id,title\na,\xff\n", "row 1, column 'title': broken UTF-8"),
        ("items.jsonl", '{"id": "a"}\n{broken\n', "items.jsonl`, line 2: not JSON"),
        ("items.jsonl", '{"id": ["a"]}\n', "the item id column holds values of type list"),
        ("items.txt", "a", "no format is known for the ending '.txt'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_items(write(tmp_path / name, text))
    with pytest.raises(ValueError, match="items.csv` must be CSV, TSV, Parquet or JSON: sequences has no properties"):
        read_table(tmp_path / "items.csv", Reading(format="sequences"))
    twice = write(tmp_path / "twice.csv", "id,title\na,First\na,Second\n")
    data = prepare(pa.table({"user": ["u"], "item": ["a"]}), items=twice)
    assert data.items["title"].to_pylist() == ["First"]
    assert "1 rows of the item file repeat an item: the first row of each counts" in data.manifest["notes"]


# --- rows that a review lost -------------------------------------------------------------------------------------------


def test_a_session_loses_only_the_items_without_a_time(tmp_path):
    rows = [
        {"user": "u", "item": ["a", "b", "c"], "time": [1_700_000_000, None, 1_700_000_002]},
        {"user": "v", "item": ["a"], "time": [1_700_000_000]},
    ]
    for kind in ("jsonl", "parquet"):
        data = prepare(log_of(tmp_path, kind, rows), max_refused=0.9)
        assert histories(data) == {"u": ["a", "c"], "v": ["a"]}
        assert (data.manifest["num_rows"], data.refused["reason"].to_pylist()) == (4, ["missing time"])


def test_a_file_without_a_good_line_is_refused_line_by_line(tmp_path):
    good = write(tmp_path / "good.jsonl", '{"user": "u", "item": "a"}\n')
    bad = write(tmp_path / "bad.jsonl", "garbage\nmore garbage\n{[1]: 2}\n{1: 2}\n" + "9" * 5000)
    data = prepare([good, bad], max_refused=0.9)
    assert (data.manifest["num_rows"], data.manifest["num_refused"]) == (6, 5)
    with pytest.raises(ValueError, match="5 of 5 rows were refused"):
        prepare(bad, max_refused=1)


def test_an_end_that_is_escaped_refuses_the_file(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,a\nv,b\\")
    with pytest.raises(
        ValueError, match="the character of --escape ends it, after line 3, so its last row is not whole"
    ):
        prepare(log, escape="\\")


def test_sequence_text_in_parts_and_with_returns(tmp_path):
    parts = [write(tmp_path / f"{n}.txt", text) for n, text in enumerate(("u a b\rv c\r", "u d\n"))]
    with pytest.raises(ValueError, match="Several files of sequence text: the line number cannot be the user"):
        prepare(parts, format="sequences")
    assert histories(prepare(parts, format="sequences", first_column="user")) == {"u": ["a", "b", "d"], "v": ["c"]}


def test_ties_of_nineteen_digits(tmp_path):
    rows = [
        {"user": "u", "item": i, "time": 1_700_000_000, "seq": 1234567890123456789 - n} for n, i in enumerate("abc")
    ]
    assert histories(prepare(log_of(tmp_path, "csv", rows), tie_break="seq")) == {"u": ["c", "b", "a"]}


def test_globs_mean_what_a_shell_means(tmp_path):
    for name in ("a.csv", "old/b.csv", "old/er/c.csv"):
        write(tmp_path / "log" / name, f"user,item\nu,{name}\n")
    for pattern, number in (("log/*.csv", 1), ("log/**/*.csv", 3), ("log/*/*.csv", 1)):
        assert prepare(f"{tmp_path}/{pattern}").num_events == number


def test_unsigned_nanoseconds_and_polars_lists():
    at = pa.array([1_700_000_000_000_000_512, 1_700_000_000_000_000_000], pa.uint64())
    assert histories(prepare(pa.table({"user": ["u", "u"], "item": ["b", "a"], "time": at}))) == {"u": ["a", "b"]}
    frame = pl.DataFrame({"user": ["a", "b"], "item": [["x", "y"], ["z"]]})
    assert histories(prepare(frame)) == {"a": ["x", "y"], "b": ["z"]}


def test_two_runs_into_one_folder_do_not_replace_each_other(tmp_path):
    from tfrec.data.preparation import _work_folder

    log = write(tmp_path / "log.csv", "user,item\nu,a\n")
    with pytest.raises(FileExistsError, match="was written meanwhile"), _work_folder(tmp_path / "out", False):
        prepare(log, tmp_path / "out")
    assert histories(prepare(log)) == {"u": ["a"]}
