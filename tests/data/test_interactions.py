import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrec.data.interactions import Log, prepare
from tfrec.data.prepared import PreparedData

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
    b'u6,"q""uote",1700000000000\n'  # milliseconds
    b"u6,,1700000000\n"  # 12: no item
    b"u6,g,\n"  # 13: time missing
    b"u2,h,2020-01-01T00:00:00+02:00\n"  # ISO 8601
    b'u1,"a,1",100\n'  # 15: exact duplicate
    b"u6,old,-5\n"  # 16: before 1970
    b'u7,"open,5\n'  # 17 and 18: the quote swallows the rest
    b"u8,h,1\n"
)
REFUSED = [
    ("3", "too few columns (3 expected, found 2)"),
    ("6", "missing user id"),
    ("7", "too many columns (3 expected, found 4)"),
    ("8", "broken UTF-8"),
    ("9", "time does not parse: soon"),
    ("12", "missing item id"),
    ("13", "missing time"),
    ("15", "duplicate of an earlier row"),
    ("16", "time is before 1970: -5"),
    ("17", "a quote opens and does not close"),
    ("18", "a quote opens and does not close"),
]


def histories(folder) -> dict[str, list[str]]:
    """Item ids by user id."""
    data = PreparedData.open(folder)
    users = pq.read_table(folder / "users.parquet")["user_id"].to_pylist()
    return {user: data.vocabulary.decode(data.history(u)) for u, user in enumerate(users)}


def refused(folder) -> list[tuple[str, str]]:
    with (folder / "refused.csv").open(encoding="utf-8", newline="") as file:
        return [(row["line"], row["reason"]) for row in csv.DictReader(file)]


def write(path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_kind_of_broken_row_is_refused_with_its_line(tmp_path):
    report = prepare(Log([write(tmp_path / "log.csv", BROKEN)]), tmp_path / "out", max_refused=1)
    assert refused(tmp_path / "out") == REFUSED
    assert report.manifest["num_refused"] == len(REFUSED)
    assert report.manifest["num_rows"] == len(REFUSED) + 4
    assert report.manifest["time_units"] == {"ISO 8601": 1, "milliseconds": 1, "seconds": 2}
    assert histories(tmp_path / "out") == {"u1": ["a,1"], "u2": ["two\nlines", "h"], "u6": ['q"uote']}
    data = PreparedData.open(tmp_path / "out")
    assert data.timestamp.tolist() == [100, 200, 1577829600, 1700000000]


def test_too_much_refused_writes_nothing_and_names_the_first_rows(tmp_path):
    with pytest.raises(ValueError, match=r"11 of 15 rows were refused.*nothing was written.*line 3: too few columns"):
        prepare(Log([write(tmp_path / "log.csv", BROKEN)]), tmp_path / "out")
    assert os.listdir(tmp_path) == ["log.csv"]


def test_columns_are_guessed_and_said(tmp_path):
    log = write(tmp_path / "log.csv", "rating,movieId,userId,timestamp\n5,x,u,2\n4,y,u,1\n")
    report = prepare(Log([log]), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["y", "x"]}
    assert any("'movieId' (guessed" in note for note in report.notes)


def test_named_columns_and_no_time_keep_the_order_of_the_file(tmp_path):
    log = write(tmp_path / "log.tsv", "who\twhat\nu\tb\nu\ta\nu\tb\n")
    prepare(Log([log], user="who", item="what"), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["b", "a", "b"]}  # without times a repeat is no duplicate


def test_equal_times_keep_the_order_of_the_files(tmp_path):
    first = write(tmp_path / "1.csv", "user,item,time\nu,a,5\nu,b,5\n")
    second = write(tmp_path / "2.csv", "user,item,time\nu,c,5\nu,d,4\n")
    prepare(Log([first, second]), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["d", "a", "b", "c"]}


def test_a_file_without_a_header_line_and_another_delimiter(tmp_path):
    log = write(tmp_path / "log.csv", "u;a;1\nu;b;2\n;c;3\n")
    prepare(Log([log], columns=["user", "item", "time"]), tmp_path / "out", max_refused=0.5)
    assert histories(tmp_path / "out") == {"u": ["a", "b"]}
    assert refused(tmp_path / "out") == [("3", "missing user id")]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    prepare(Log([write(tmp_path / "log.csv", b"\xef\xbb\xbfuser,item\nu,a\n")]), tmp_path / "out")
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
    prepare(Log([write(tmp_path / "log.jsonl", "\n".join(lines))]), tmp_path / "out", max_refused=1)
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
    prepare(Log([tmp_path / "log.parquet"]), tmp_path / "out", max_refused=0.5)
    assert histories(tmp_path / "out") == {"1": ["y", "x"]}
    assert PreparedData.open(tmp_path / "out").timestamp.tolist() == [1, 2]
    assert refused(tmp_path / "out") == [("3", "missing user id")]


def test_sequence_text(tmp_path):
    log = write(tmp_path / "log.txt", b"alice b a b\n\nbob c\ncarol\n\xff x\n")
    prepare(Log([log], format="sequences", first_column="user"), tmp_path / "out", max_refused=1)
    assert histories(tmp_path / "out") == {"alice": ["b", "a", "b"], "bob": ["c"]}
    assert refused(tmp_path / "out") == [("2", "no items"), ("4", "no items"), ("5", "broken UTF-8")]
    prepare(Log([write(tmp_path / "log.txt", "b a\nc\n")], format="sequences"), tmp_path / "lines")
    assert histories(tmp_path / "lines") == {"1": ["b", "a"], "2": ["c"]}


def test_item_properties_come_along(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,b\nu,a\nu,c\n")
    items = write(tmp_path / "items.csv", "ID,name,colour\na,Anchor,red\nb,Bell,blue\nz,Zebra,\n")
    report = prepare(Log([log], items=items), tmp_path / "out")
    columns = PreparedData.open(tmp_path / "out").item_columns()
    assert columns == {
        "item_id": ["b", "a", "c"],
        "num_events": [1, 1, 1],
        "title": ["Bell", "Anchor", None],
        "colour": ["blue", "red", None],
    }
    assert "1 of 3 items have no row in the item file" in report.notes


def test_rare_users_and_items_are_dropped_until_none_is_left(tmp_path):
    # dropping item z leaves user v with one event; dropping v leaves item y with one; dropping y keeps u with two
    log = write(tmp_path / "log.csv", "user,item\nu,x\nu,x\nu,y\nv,y\nv,z\n")
    report = prepare(Log([log]), tmp_path / "out", min_user_events=2, min_item_events=2)
    assert histories(tmp_path / "out") == {"u": ["x", "x"]}
    assert report.manifest["num_filtered_events"] == 3
    with pytest.raises(ValueError, match="No event is left"):
        prepare(Log([log]), tmp_path / "none", min_user_events=9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "", "is empty"),
        ("log.csv", "user,item,time\n", "no rows"),
        ("log.csv", "user,what,time\nu,a,1\n", "no column looks like the item id. Its columns: user, what, time"),
        ("log.csv", "user,item,item\nu,a,1\n", "two columns have the same name"),
        ("log.bin", "x", "no format is known for the ending '.bin'"),
        ("log.parquet", "x", "is not a Parquet file"),
        ("log.jsonl", "\n", "no rows"),
    ],
)
def test_what_cannot_be_read_says_why_and_writes_nothing(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        prepare(Log([write(tmp_path / name, content)]), tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


def test_wrong_names_are_errors(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,a\n")
    with pytest.raises(ValueError, match=r"has no column 'usr' \(--user\). Its columns: user, item"):
        prepare(Log([log], user="usr"), tmp_path / "out")
    with pytest.raises(ValueError, match="there is no format 'xml'"):
        prepare(Log([log], format="xml"), tmp_path / "out")
    with pytest.raises(ValueError, match="does not exist"):
        prepare(Log([tmp_path / "no.csv"]), tmp_path / "out")
    with pytest.raises(ValueError, match="No file was given"):
        prepare(Log([]), tmp_path / "out")
    with pytest.raises(ValueError, match="has no item id. Its columns: colour"):
        prepare(Log([log], items=write(tmp_path / "items.csv", "colour\nred\n")), tmp_path / "out")


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nu,a\n")
    prepare(Log([log]), tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare(Log([log]), tmp_path / "out")
    write(log, "user,item\nu,b\n")
    prepare(Log([log]), tmp_path / "out", overwrite=True)
    assert histories(tmp_path / "out") == {"u": ["b"]}
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "out"]
    (tmp_path / "precious").mkdir()
    write(tmp_path / "precious" / "letter.txt", "dear")
    with pytest.raises(FileExistsError, match="is not prepared data, so --overwrite does not replace it"):
        prepare(Log([log]), tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "letter.txt").read_text() == "dear"


def test_a_large_file_keeps_lines_and_order(tmp_path):
    """Several of DuckDB's reading threads and sort runs: line numbers and order still hold."""
    rows = 400_000
    lines = [f"u{i % 100},i{i % 1000},{i}" for i in range(rows)]
    bad = [7, 200_001, 399_999]
    for line in bad:
        lines[line] = f"u,,{line}"
    log = write(tmp_path / "log.csv", "user,item,time\n" + "\n".join(lines) + "\n")
    prepare(Log([log]), tmp_path / "out")
    assert refused(tmp_path / "out") == [(str(line + 2), "missing item id") for line in bad]
    data = PreparedData.open(tmp_path / "out")
    assert data.num_events == rows - 3
    assert (np.diff(data.timestamp[data.offsets[5] : data.offsets[6]]) == 100).all()


def test_describe(tmp_path):
    prepare(Log([write(tmp_path / "log.csv", "user,item,time\nu,a,86400\nu,b,172800\nv,a,86400\n")]), tmp_path / "out")
    figures = PreparedData.open(tmp_path / "out").describe()
    assert (figures["users"], figures["items"], figures["events"]) == (2, 2, 3)
    assert figures["time span (UTC)"] == ["1970-01-02 00:00:00", "1970-01-03 00:00:00"]
    assert figures["sparsity"] == 0.25
    assert figures["events per user"]["max"] == 2


def test_a_folder_that_is_no_prepared_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not prepared data"):
        PreparedData.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99, "tfrec_version": "9"}))
    with pytest.raises(ValueError, match="was written by tfrec 9 with schema 99"):
        PreparedData.open(tmp_path)
