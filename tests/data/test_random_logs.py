"""Random logs in four formats, against a slow and obvious reading of the same rows."""

import collections
import csv
import datetime
import io
import json
import tempfile
from pathlib import Path

import logs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfrec.data import delimited
from tfrec.data.preparation import prepare

MISSING = [None, "", "NULL", r"\N", "nan", " ", "N/A"]
IDS = [
    "a",
    "b",
    "c",
    "17",
    "0017",
    "17.5",
    "é",
    "日本",
    'quo"te',
    '"',
    '""',
    "com,ma",
    "ta\tb",
    "two\nlines",
    "cr\rlf\r\n",
    "x" * 300,
]
PADDED = [" a", "b  ", "\tc"]
ids = st.one_of(st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from(PADDED), st.sampled_from(MISSING))
ticks = st.integers(0, 12)
times = st.one_of(ticks, ticks, ticks, st.sampled_from([None, "soon", "-5"]))
rows = st.lists(st.tuples(ids, st.one_of(ids, ids, st.lists(ids, max_size=3)), times), min_size=1, max_size=25)
BASE = 1_600_000_000_000


def time_text(tick, style: str):
    """A time as a log writes it; equal ticks are equal times, and ten of them lie within a second."""
    if not isinstance(tick, int):
        return tick
    ms = BASE + 100 * tick
    if style == "iso":
        return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
    if style == "seconds":
        return f"{ms // 1000}.{ms % 1000:03d}"
    return str(ms * {"milliseconds": 1, "nanoseconds": 10**6}[style])


def reference(log, lines):
    """Histories by user, refused `(line, reason)`, and the number of duplicates."""
    events, refused = [], []
    for (user, item, time), line in zip(log, lines, strict=True):
        if item == []:
            refused.append((line, "no items"))
        for position, one in enumerate(item if isinstance(item, list) else [item]):
            names = [None if name is None or name.strip() in ("", *MISSING) else name.strip() for name in (user, one)]
            if names[0] is None:
                refused.append((line, "missing user id"))
            elif names[1] is None:
                refused.append((line, "missing item id"))
            elif time == "soon":
                refused.append((line, "time does not parse"))
            elif time == "-5":
                refused.append((line, "time is before 1970"))
            else:
                events.append((line, position, *names, time))
    if any(time is not None for *_, time in events):
        refused += [(line, "missing time") for line, *_, time in events if time is None]
        events = [event for event in events if event[-1] is not None]
        events.sort(key=lambda event: event[-1])  # stable
        is_timed = True
    else:
        is_timed = False
    seen, histories, num_duplicates = set(), collections.defaultdict(list), 0
    for _, position, user, item, time in events:
        if is_timed and (position, user, item, time) in seen:
            num_duplicates += 1
            continue
        seen.add((position, user, item, time))
        histories[user].append(item)
    return dict(histories), sorted(refused), num_duplicates


def write_delimited(log, path: Path, delimiter: str, ending: str, has_mark: bool, quoting: int, junk: dict[int, str]):
    """Write rows, with blank and broken ones between; return the line of each row, and of the broken ones."""
    text, lines, broken = io.StringIO(newline=""), [], []
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting)

    def line() -> int:
        return len(text.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n"))

    writer.writerow(["user", "item", "time"])
    for number, row in enumerate(log):
        if number in junk:
            if junk[number]:
                broken.append((line(), "too few columns" if junk[number] == "few" else "too many columns"))
            text.write({"few": "a", "many": delimiter.join("abcd"), "": ""}[junk[number]] + ending)
        lines.append(line())
        writer.writerow(row)
    path.write_bytes((b"\xef\xbb\xbf" if has_mark else b"") + text.getvalue().encode())
    return lines, broken


def check(path: Path, expected, broken):
    histories, refused, num_duplicates = expected
    refused = sorted([*refused, *broken])
    num_rows = sum(map(len, histories.values())) + len(refused) + num_duplicates
    if not histories:
        with pytest.raises(
            ValueError, match=f"{len(refused)} of {num_rows} rows were refused" if num_rows else "no rows"
        ):
            prepare(path, max_refused=1)
        return
    data = prepare(path, max_refused=1)
    assert logs.histories(data) == histories
    found = [(row["line"], row["reason"].partition(":")[0].partition(" (")[0]) for row in data.refused.to_pylist()]
    assert sorted(found) == refused
    assert (data.manifest["num_rows"], data.manifest["num_duplicates"]) == (num_rows, num_duplicates)


QUICK = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
styles = st.sampled_from(["iso", "seconds", "milliseconds", "nanoseconds"])


@QUICK
@given(
    rows,
    styles,
    st.sampled_from([",", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.dictionaries(st.integers(0, 24), st.sampled_from(["", "few", "many"]), max_size=4),
    st.sampled_from([1 << 24, 97]),
)
def test_delimited_logs(log, style, delimiter, ending, has_mark, quoting, junk, block_bytes):
    log = [(user, item[0] if isinstance(item, list) and item else item or None, time) for user, item, time in log]
    before = delimited.BLOCK_BYTES
    delimited.BLOCK_BYTES = block_bytes
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "log.csv" if delimiter == "," else "log.tsv")
            written = [(user, item, time_text(time, style)) for user, item, time in log]
            lines, broken = write_delimited(written, path, delimiter, ending, has_mark, quoting, junk)
            check(path, reference(log, lines), broken)
    finally:
        delimited.BLOCK_BYTES = before


@QUICK
@given(rows, styles, st.booleans())
def test_json_logs(log, style, is_array):
    objects = [
        {k: v for k, v in zip(("user", "item", "time"), (u, i, time_text(t, style)), strict=True) if v is not None}
        for u, i, t in log
    ]
    objects[0] |= {key: None for key in ("user", "item", "time") if key not in objects[0]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.json")
        path.write_text(json.dumps(objects) if is_array else "\r\n".join(map(json.dumps, objects)), "utf-8")
        check(path, reference(log, range(1, len(log) + 1)), [])


@QUICK
@given(rows, styles, st.booleans())
def test_parquet_logs(log, style, has_lists):
    if has_lists:
        log = [(user, item if isinstance(item, list) else [item], time) for user, item, time in log]
    else:
        log = [(user, item[0] if isinstance(item, list) and item else item or None, time) for user, item, time in log]
    item = pa.array([i for _, i, _ in log], pa.list_(pa.string()) if has_lists else pa.string())
    user, time = ([row[n] for row in log] for n in (0, 2))
    table = pa.table(
        {
            "user": pa.array(user, pa.string()),
            "item": item,
            "time": pa.array([time_text(t, style) for t in time], pa.string()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder, "log.parquet"), row_group_size=7)
        check(Path(folder, "log.parquet"), reference(log, range(1, len(log) + 1)), [])
