import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import histories, write

from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.exceptions import NewerFormatError

BROKEN = (
    b"user_id,item_id,timestamp\n"
    b'u1,"a,1",100\n'  # an id with a comma
    b"u1,b\n"  # 3: too few columns
    b'u2,"two\nlines",200\n'  # 4 and 5: an id with a line break
    b",c,300\n"  # 6: no user
    b"u3,d,400,9\n"  # 7: too many columns
    b"u4,\xff\xfe,500\n"  # 8: broken UTF-8
    b"u5,e,soon\n"  # 9: no time
    b"\n"  # 10: blank, no row at all
    b'u6,"q""uote",1700000000\n'
    b"u6,,1700000000\n"  # 12: no item
    b"u6,g,\n"  # 13: time missing
    b"u2,h,2020-01-01T00:00:00+02:00\n"  # ISO 8601
    b'u1,"a,1",100\n'  # 15: exact duplicate
    b"u6,old,-5\n"  # 16: before 1970
)
REFUSED = [
    ("3", "too few columns (3 expected, found 2)"),
    ("6", "missing user id"),
    ("7", "too many columns (3 expected, found 4)"),
    ("8", "broken UTF-8"),
    ("9", "time does not parse: soon"),
    ("12", "missing item id"),
    ("13", "missing time"),
    ("16", "time is before 1970: -5"),
]


def refused(folder) -> list[tuple[str, str]]:
    with (folder / "refused.csv").open(encoding="utf-8", newline="") as file:
        return [(row["line"], row["reason"]) for row in csv.DictReader(file)]


def test_every_kind_of_broken_row_is_refused_with_its_line(tmp_path):
    data = prepare([write(tmp_path / "log.csv", BROKEN)], tmp_path / "out", max_refused=1)
    assert refused(tmp_path / "out") == REFUSED
    assert data.manifest["num_refused"] == len(REFUSED)
    assert data.manifest["num_rows"] == len(REFUSED) + 5
    assert data.manifest["num_duplicates"] == 1
    assert data.manifest["time_units"] == {"seconds": 4, "dates and times": 1}
    assert histories(tmp_path / "out") == {"u1": ["a,1"], "u2": ["two\nlines", "h"], "u6": ['q"uote']}
    data = PreparedData.open(tmp_path / "out")
    assert data.timestamp.tolist() == [100, 200, 1577829600, 1700000000]


def test_too_much_refused_writes_nothing_and_names_the_first_rows(tmp_path):
    with pytest.raises(ValueError, match=r"8 of 13 rows were refused.*nothing was written.*line 3: too few columns"):
        prepare([write(tmp_path / "log.csv", BROKEN)], tmp_path / "out")
    assert os.listdir(tmp_path) == ["log.csv"]


def test_columns_are_guessed_and_said(tmp_path):
    log = write(tmp_path / "log.csv", "rating,movieId,userId,timestamp\n5,x,u,2\n4,y,u,1\n")
    data = prepare([log], tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["y", "x"]}
    assert any("'movieId' (guessed" in note for note in data.manifest["notes"])


def test_named_columns_and_no_time_keep_the_order_of_the_file(tmp_path):
    log = write(tmp_path / "log.tsv", "who\twhat\nu\tb\nu\ta\nu\tb\n")
    prepare([log], tmp_path / "out", user="who", item="what")
    assert histories(tmp_path / "out") == {"u": ["b", "a", "b"]}  # without times a repeat is no duplicate


def test_equal_times_keep_the_order_of_the_files(tmp_path):
    first = write(tmp_path / "1.csv", "user,item,time\nu,a,5\nu,b,5\n")
    second = write(tmp_path / "2.csv", "user,item,time\nu,c,5\nu,d,4\n")
    prepare([first, second], tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["d", "a", "b", "c"]}


def test_a_file_without_a_header_line_and_another_delimiter(tmp_path):
    log = write(tmp_path / "log.csv", "u;a;1\nu;b;2\n;c;3\n")
    prepare([log], tmp_path / "out", max_refused=0.5, columns=["user", "item", "time"])
    assert histories(tmp_path / "out") == {"u": ["a", "b"]}
    assert refused(tmp_path / "out") == [("3", "missing user id")]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    prepare([write(tmp_path / "log.csv", b"\xef\xbb\xbfuser,item\nu,a\n")], tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["a"]}


def test_json_lines(tmp_path):
    lines = [
        '{"user": 7, "item": "a", "time": "2021-01-01"}',
        "{broken",
        "[1]",
        "",
        '{"user": 7, "time": 3}',
        '{"user": 7, "item": "b", "time": 1500000000.5}',
        '{"user": [7], "item": "b", "time": 1}',
        '{"user": "\\ud800", "item": "b", "time": 1}',
    ]
    prepare([write(tmp_path / "log.jsonl", "\n".join(lines))], tmp_path / "out", max_refused=1)
    assert histories(tmp_path / "out") == {"7": ["b", "a"]}
    assert [line for line, _ in refused(tmp_path / "out")] == ["2", "3", "5", "7", "8"]
    assert refused(tmp_path / "out")[2] == ("5", "missing item id")


def test_parquet_with_typed_columns(tmp_path):
    table = pa.table(
        {
            "user_id": [1, 1, None],
            "item_id": ["x", "y", "z"],
            "timestamp": pa.array([2_000_000, 1_000_000, 0], pa.timestamp("us")),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    prepare([tmp_path / "log.parquet"], tmp_path / "out", max_refused=0.5)
    assert histories(tmp_path / "out") == {"1": ["y", "x"]}
    assert PreparedData.open(tmp_path / "out").timestamp.tolist() == [1, 2]
    assert refused(tmp_path / "out") == [("3", "missing user id")]


def test_sequence_text(tmp_path):
    log = write(tmp_path / "log.txt", b"alice b a b\n\nbob c\ncarol\n\xff x\n")
    prepare([log], tmp_path / "out", max_refused=1, format="sequences", first_column="user")
    assert histories(tmp_path / "out") == {"alice": ["b", "a", "b"], "bob": ["c"]}
    assert refused(tmp_path / "out") == [("2", "no items"), ("4", "no items"), ("5", "broken UTF-8")]
    prepare([write(tmp_path / "log.txt", "b a\nc\n")], tmp_path / "lines", format="sequences")
    assert histories(tmp_path / "lines") == {"1": ["b", "a"], "2": ["c"]}


def test_item_properties_come_along(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,b\nu,a\nu,c\n")
    items = write(tmp_path / "items.csv", "ID,name,colour\na,Anchor,red\nb,Bell,blue\nz,Zebra,\n")
    data = prepare([log], tmp_path / "out", items=items)
    columns = data.items.to_pydict()
    assert columns == {
        "item_id": ["b", "a", "c"],
        "num_events": [1, 1, 1],
        "title": ["Bell", "Anchor", None],
        "colour": ["blue", "red", None],
    }
    assert "1 of 3 items have no row in the item file" in data.manifest["notes"]


def test_rare_users_and_items_are_dropped_until_none_is_left(tmp_path):
    # dropping item z leaves user v with one event; dropping v leaves item y with one; dropping y keeps u with two
    log = write(tmp_path / "log.csv", "user,item\nu,x\nu,x\nu,y\nv,y\nv,z\n")
    data = prepare([log], tmp_path / "out", min_user_events=2, min_item_events=2)
    assert histories(tmp_path / "out") == {"u": ["x", "x"]}
    assert data.manifest["num_filtered_events"] == 3
    with pytest.raises(ValueError, match="No event is left"):
        prepare([log], tmp_path / "none", min_user_events=9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "", "is empty"),
        ("log.csv", "user,item,time\n", "no rows"),
        ("log.csv", "user,what,time\nu,a,1\n", "no column looks like the item id. Its columns: user, what, time"),
        ("log.csv", "user,item,item\nu,a,1\n", "two columns have the name"),
        ("log.bin", "x", "no format is known for the ending '.bin'"),
        ("log.parquet", "x", "is not a Parquet file"),
        ("log.jsonl", "\n", "no rows"),
    ],
)
def test_what_cannot_be_read_says_why_and_writes_nothing(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        prepare([write(tmp_path / name, content)], tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


def test_wrong_names_are_errors(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,a\n")
    with pytest.raises(ValueError, match=r"has no column 'usr' \(--user\). Its columns: user, item"):
        prepare([log], tmp_path / "out", user="usr")
    with pytest.raises(ValueError, match="there is no format 'xml'"):
        prepare([log], tmp_path / "out", format="xml")
    with pytest.raises(ValueError, match="does not exist"):
        prepare([tmp_path / "no.csv"], tmp_path / "out")
    with pytest.raises(ValueError, match="No file was given"):
        prepare([], tmp_path / "out")
    with pytest.raises(ValueError, match="has no item id. Its columns: colour"):
        prepare([log], tmp_path / "out", items=write(tmp_path / "items.csv", "colour\nred\n"))


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,a\n")
    prepare([log], tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare([log], tmp_path / "out")
    write(log, "user,item\nu,b\n")
    prepare([log], tmp_path / "out", overwrite=True)
    assert histories(tmp_path / "out") == {"u": ["b"]}
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "out"]
    (tmp_path / "precious").mkdir()
    write(tmp_path / "precious" / "letter.txt", "dear")
    with pytest.raises(FileExistsError, match="is not prepared data, so --overwrite does not replace it"):
        prepare([log], tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "letter.txt").read_text() == "dear"


def test_a_large_file_keeps_lines_and_order(tmp_path):
    """Several of DuckDB's reading threads and sort runs: line numbers and order still hold."""
    rows = 400_000
    lines = [f"u{i % 100},i{i % 1000},{i}" for i in range(rows)]
    bad = [7, 200_001, 399_999]
    for line in bad:
        lines[line] = f"u,,{line}"
    log = write(tmp_path / "log.csv", "user,item,time\n" + "\n".join(lines) + "\n")
    prepare([log], tmp_path / "out")
    assert refused(tmp_path / "out") == [(str(line + 2), "missing item id") for line in bad]
    data = PreparedData.open(tmp_path / "out")
    assert data.num_events == rows - 3
    assert (np.diff(data.timestamp[data.offsets[5] : data.offsets[6]]) == 100).all()


def test_describe(tmp_path):
    prepare([write(tmp_path / "log.csv", "user,item,time\nu,a,86400\nu,b,172800\nv,a,86400\n")], tmp_path / "out")
    figures = PreparedData.open(tmp_path / "out").describe()
    assert (figures["users"], figures["items"], figures["events"]) == (2, 2, 3)
    assert figures["time span (UTC)"] == ["1970-01-02 00:00:00", "1970-01-03 00:00:00"]
    assert figures["sparsity"] == 0.25
    assert figures["events per user"]["max"] == 2


def test_a_folder_that_is_no_prepared_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not prepared data"):
        PreparedData.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99, "tfrec_version": "9"}))
    with pytest.raises(ValueError, match="was written by tfrec 9 in format 99"):
        PreparedData.open(tmp_path)


# --- data frames -------------------------------------------------------------------------------------------------------


def columns_of_a_log(number: int = 10_000) -> dict[str, list]:
    """Events of 200 users in the order of the log, times that rise, ids that are numbers."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 200, number).tolist(), rng.integers(0, 300, number).tolist()
    return {"customer": users, "sku": [f"sku {i}" for i in items], "at": (np.arange(number) * 60 + 10**9).tolist()}


FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_is_read_as_a_file_of_the_same_rows(tmp_path, kind):
    columns = columns_of_a_log()
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    items = {"sku": ["sku 1", "sku 2"], "name": ["One", "Two"]}
    from_file = prepare(tmp_path / "log.csv", tmp_path / "data", time="at", min_item_events=2)
    in_memory = prepare(FRAMES[kind](columns), time="at", min_item_events=2, items=FRAMES[kind](items))
    assert in_memory.folder is None
    assert in_memory.fingerprint == from_file.fingerprint
    assert in_memory.users == from_file.users
    assert "user column: 'customer' (guessed; --user sets it)" in in_memory.manifest["notes"]
    title = dict(zip(*in_memory.items.select(["item_id", "title"]).to_pydict().values(), strict=True))
    assert (title["sku 1"], title["sku 2"], title["sku 3"]) == ("One", "Two", None)
    saved = in_memory.save(tmp_path / "saved")
    assert saved.fingerprint == from_file.fingerprint
    assert {path.name for path in saved.folder.iterdir()} == {path.name for path in from_file.folder.iterdir()}
    assert saved.items == in_memory.items
    with pytest.raises(FileExistsError, match="saved` exists"):
        in_memory.save(tmp_path / "saved")


def test_values_of_a_frame_mean_what_they_say():
    """Ids as whole floats, times as timestamps with and without a zone, missing values of every kind."""
    at = pd.to_datetime(
        ["2026-01-02 00:00:00.5", "2026-01-01", "2026-01-03", None, "2026-01-04", "2026-01-05"], format="ISO8601"
    )
    frame = pd.DataFrame(
        {"user": [1.0, 1.0, np.nan, 2.0, 2.0, 3.0], "item": ["b", "a", "c", "d", None, "é"], "time": at}
    )
    for time in (
        frame["time"],
        frame["time"].dt.tz_localize("UTC"),
        frame["time"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
    ):
        data = prepare(frame.assign(time=time), max_refused=1)
        assert data.users["user_id"].to_pylist() == ["1", "3"]
        assert data.vocabulary.decode(data.history(0)) == ["a", "b"]
        assert data.timestamp.tolist() == [1767225600000, 1767312000500, 1767571200000]
        assert data.seconds(slice(1, 3)).tolist() == [1767312000, 1767571200]
        reasons = {row["line"]: row["reason"] for row in data.refused.to_pylist()}
        assert reasons == {3: "missing user id", 4: "missing time", 5: "missing item id"}
        assert data.manifest["num_rows"] == 6 == data.num_events + data.manifest["num_refused"]
    categories = pd.DataFrame({"user": [7, 7], "item": pd.Categorical(["x", "y"])})
    assert prepare(categories).vocabulary.item_ids == ["x", "y"]


def test_frames_that_cannot_be_read_say_why():
    frame = pd.DataFrame({"user": ["u"], "item": ["a"]})
    with pytest.raises(ValueError, match="The frame has no column 'who' \\(--user\\). Its columns: user, item."):
        prepare(frame, user="who")
    with pytest.raises(ValueError, match="The frame: no column looks like the item id"):
        prepare(frame[["user"]])
    with pytest.raises(ValueError, match=r"`\(in memory\)`: no rows"):
        prepare(frame[:0])
    with pytest.raises(
        ValueError, match="`log`: column 'item' holds a value that is neither text nor a number: {'a': 1}"
    ):
        prepare(pd.DataFrame({"user": ["u", 3], "item": [{"a": 1}, "b"]}))
    with pytest.raises(TypeError, match="`log` must be a path, a list of paths or a data frame .* Received: int"):
        prepare(3)
    with pytest.raises(ValueError, match="`items` has no item id. Its columns: colour"):
        prepare(frame, items=pd.DataFrame({"colour": ["red"]}))
    with pytest.raises(ValueError, match="1 of 1 rows were refused"):
        prepare(pd.DataFrame({"user": [None], "item": ["a"]}))


# --- prepared data -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_log_and_with_nothing_else(tmp_path):
    rows = {"user": ["u", "u", "v"], "item": ["a", "b", "a"], "time": [1, 2, 3]}
    found = [prepare(pa.table(rows)).fingerprint]
    assert found[0] == prepare(pa.table(rows), tmp_path / "data", about={"note": 1}).fingerprint
    for name, values in (
        ("item", ["a", "c", "a"]),
        ("time", [1, 2, 4]),
        ("user", ["u", "v", "v"]),
        ("item", ["b", "a", "b"]),
    ):
        found.append(prepare(pa.table(rows | {name: values})).fingerprint)
    found.append(prepare(pa.table({name: values[::-1] for name, values in rows.items()})).fingerprint)
    assert len(set(found)) == len(found)


def test_data_of_format_1_is_read_and_newer_data_is_refused(tmp_path):
    """Written when the manifest called its format `schema_version`."""
    old = Path(__file__).parents[1] / "formats" / "v1" / "prepared"
    data = PreparedData.open(old)
    assert (data.num_users, data.num_items, data.num_events) == (60, 40, 600)
    assert data.items["genres"][0].as_py() == [data.items["title"][0].as_py().partition(",")[0].replace("I", "i")]
    assert "schema_version" in data.manifest
    shutil.copytree(old, tmp_path / "new")
    manifest = data.manifest | {"format_version": 3, "tfrec_version": "9.9"}
    (tmp_path / "new" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        NewerFormatError, match="new` was written by tfrec 9.9 in format 3; this tfrec reads up to 2. Upgrade"
    ):
        PreparedData.open(tmp_path / "new")
