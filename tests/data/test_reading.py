"""How files are found and their columns chosen, and which options are refused."""

import datetime
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from tests.logs import histories, write
from tfrec.data.events import Events
from tfrec.data.items import read_items
from tfrec.data.preparation import prepare
from tfrec.data.sources import find_sources


def test_ids_from_the_names_of_folders(tmp_path):
    write(tmp_path / "json/user=7/item=a/p.jsonl", '{"time": 1700000000}\n{"time": 1700000001}\n')
    write(tmp_path / "csv/user=7/item=a/p.csv", "what,else\n1,2\n3,4\n")
    assert (
        histories(prepare(tmp_path / "json"))
        == histories(prepare(tmp_path / "csv", duplicates="keep"))
        == {"7": ["a"] * 2}
    )


def test_a_folder_of_one_partition_and_a_file_in_it_know_the_column(tmp_path):
    file = write(tmp_path / "user=7/p.csv", "item\na\n")
    assert histories(prepare(file)) == histories(prepare(file.parent)) == {"7": ["a"]}


def test_one_choice_of_columns_for_all_parts(tmp_path):
    for day in ("2024-01-01", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / f"log/day={day}/p.csv", "user,item\nu,a\nv,b\n")
    data = prepare(tmp_path / "log", max_refused=0.5)
    assert data.manifest["refused"] == {"missing time": 2}
    assert [note for note in data.manifest["notes"] if "time" in note] == [
        "time column: 'day' (guessed: its values are times; --time sets it)"
    ]


def test_a_part_whose_first_times_are_missing_is_read_as_the_others(tmp_path):
    write(tmp_path / "a.csv", "user,item,when\nu,a,\n")
    write(tmp_path / "b.csv", "user,item,when\nu,b,2024-01-02\n")
    data = prepare([tmp_path / "a.csv", tmp_path / "b.csv"], max_refused=0.5)
    assert data.manifest["refused"] == {"missing time": 1}
    assert histories(data) == {"u": ["b"]}


def test_a_log_without_any_time_says_so(tmp_path):
    data = prepare(write(tmp_path / "log.csv", "user,item,time\nu,b,\nu,a,\n"))
    assert histories(data) == {"u": ["b", "a"]}
    assert any(
        note.startswith("no times: the events of a user keep the order of the log") for note in data.manifest["notes"]
    )


def test_a_column_of_hours_is_not_taken_for_the_time(tmp_path):
    data = prepare(write(tmp_path / "log.csv", "user,item,date,time\nu,a,2024-01-03,10:00\nu,b,2024-01-02,11:00\n"))
    assert histories(data) == {"u": ["b", "a"]}
    assert "time column: 'date' (guessed; --time sets it)" in data.manifest["notes"]


def test_a_recbole_list_is_a_session(tmp_path):
    log = write(tmp_path / "log.inter", b"session_id:token\titem_id_list:token_seq\n1\ta b  c\n2\t\n" + b"3\t\xff\n")
    data = prepare(log, item="item_id_list", max_refused=0.9)
    assert histories(data) == {"1": ["a", "b", "c"]}
    assert data.refused.to_pydict()["line"] == [3, 4]


@pytest.mark.parametrize("options", [{"user": "u"}, {"item": "i"}, {"time": "t"}])
def test_sequence_text_has_no_columns_to_name(tmp_path, options):
    with pytest.raises(ValueError, match=f"Sequence text has no columns to name: leave out --{next(iter(options))}"):
        prepare(write(tmp_path / "log.txt", "a b\n"), format="sequences", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_refused": float("nan")}, "`max_refused` must be a share between 0 and 1. Received: nan"),
        ({"max_refused": 5}, "Received: 5"),
        ({"first_column": "foo"}, "--first-column must be user, or left out. Received: 'foo'"),
        ({"null_values": "NULL"}, "`null_values` must be a list of texts. Received: 'NULL'"),
        ({"columns": "user,item"}, "`columns` must be a list of texts"),
        ({"quote": "\n"}, "--quote must be one ASCII character and no line break"),
        ({"escape": "§"}, "--escape must be one ASCII character"),
        ({"delimiter": "\n"}, "--delimiter must be ASCII characters, none a line break"),
        ({"delimiter": "§"}, "--delimiter must be ASCII characters"),
        ({"delimiter": ""}, "--delimiter must be ASCII characters"),
        ({"quote": ",", "delimiter": ","}, "--delimiter, --quote and --escape must differ. Received: ',', ','"),
        ({"escape": '"'}, "must differ"),
        ({"encoding": "klingon"}, "--encoding: there is no encoding 'klingon'"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(write(tmp_path / "log.csv", "user,item\nu,a\n"), tmp_path / "new/out", **options)
    assert not (tmp_path / "new").exists()


def test_a_failed_run_leaves_no_folders(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\n,a\n")
    with pytest.raises(ValueError, match="1 of 1 rows were refused"):
        prepare(log, tmp_path / "new/deep/out")
    with pytest.raises(FileExistsError, match="log.csv` is a file, so `.*out` cannot be made in it"):
        prepare(log, log / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays(
        [pa.array(["u"]), pa.array(["a"]), pa.array(["b"]), pa.array([1])], ["user", "item", "item", "x"]
    )
    pq.write_table(table, tmp_path / "log.parquet")
    for log in (table, table.to_pandas(), tmp_path / "log.parquet"):
        with pytest.raises(ValueError, match="two columns have the name 'item'. Rename one of them"):
            prepare(log)
    names = ["user", "item", "x", "x"]  # those that are not used do not matter
    pq.write_table(table.rename_columns(names), tmp_path / "log.parquet")
    write(tmp_path / "log.csv", "user,item,,\nu,a,,\n")
    for log in (
        table.rename_columns(names),
        table.rename_columns(names).to_pandas(),
        tmp_path / "log.parquet",
        tmp_path / "log.csv",
    ):
        assert histories(prepare(log)) == {"u": ["a"]}


def test_frames_with_odd_columns():
    frame = pd.DataFrame({"user": [2**70, 1], "item": [["a", "b"], "c"], "payload": [{"a": 1}, "x"]})
    assert histories(prepare(frame)) == {str(2**70): ["a", "b"], "1": ["c"]}
    day = datetime.date(2024, 1, 3)
    mixed = pd.DataFrame(
        {"user": ["u", "u"], "item": ["a", "b"], "time": [day, datetime.datetime(2024, 1, 2, 1)]}, dtype=object
    )
    assert histories(prepare(mixed)) == {"u": ["b", "a"]}
    with pytest.raises(ValueError, match="column 'item' holds a value that is neither text nor a number"):
        prepare(pd.DataFrame({"user": ["u", "v"], "item": [{"a": 1}, "x"]}))


@pytest.mark.parametrize("text", ["0x10", "epoch", "1_700_000_000", "infinity", "0x65920080"])
def test_what_only_a_database_takes_for_a_time_is_refused(tmp_path, text):
    log = write(tmp_path / "log.csv", f"user,item,time\nu,a,1700000000\nu,b,{text}\n")
    assert prepare(log, max_refused=0.5).refused["reason"].to_pylist() == [f"time does not parse: {text}"]


@pytest.mark.parametrize("time", ["1700000000500.75", 1700000000500.75])
def test_fractions_of_milliseconds_are_exact(time):
    data = prepare(pa.table({"user": ["u"], "item": ["a"], "time": [time]}))
    assert data.manifest["time_resolution"] == "us"
    assert data.timestamp.tolist() == [1700000000500750]


def test_a_header_with_line_breaks_of_unicode(tmp_path):
    assert histories(prepare(write(tmp_path / "log.csv", "user,item,no\u0085te\u2028s\nu,a,1\n"))) == {"u": ["a"]}


def test_a_mark_within_a_file_belongs_to_the_field(tmp_path, monkeypatch):
    monkeypatch.setattr("tfrec.data.delimited.BLOCK_BYTES", 4)
    log = write(tmp_path / "log.csv", "user,item\n\ufeffu,a\n\ufeffu,b\n")
    assert histories(prepare(log)) == {"\ufeffu": ["a", "b"]}


@pytest.mark.parametrize("block", [5, 6, 7, 8, 9, 100])
def test_delimiters_of_several_characters_with_quotes_and_escapes(tmp_path, monkeypatch, block):
    monkeypatch.setattr("tfrec.data.delimited.BLOCK_BYTES", block)
    log = write(tmp_path / "log.csv", 'user::item::note\nu::a::5:" disk\nv::"b::\nc"::x\n')
    assert histories(prepare(log, delimiter="::")) == {"u": ["a"], "v": ["b::\nc"]}
    escaped = write(tmp_path / "escaped.csv", "user::item\na\\:::b\nc\\::d::e\n")
    assert histories(prepare(escaped, delimiter="::", escape="\\")) == {"a:": ["b"], "c::d": ["e"]}


def test_infinity_is_no_id_in_any_format(tmp_path):
    log = write(tmp_path / "log.jsonl", '{"user": Infinity, "item": 1}\n{"user": 1e22, "item": 1}\n')
    frame = pd.DataFrame({"user": [np.inf, 1e22], "item": [1, 1]})
    for source in (log, frame):
        data = prepare(source, max_refused=0.5)
        assert histories(data) == {"1e+22": ["1"]}
        assert data.manifest["refused"] == {"missing user id": 1}


def test_an_array_after_blank_lines(tmp_path):
    assert histories(prepare(write(tmp_path / "log.json", '\n\n[{"user": "u", "item": "a"}]'))) == {"u": ["a"]}


@pytest.mark.parametrize(
    "text", ['{\n "user": "u",\n "item": "a"\n}', '[{"user": "u", "item": "a"},', '{"user": 1}{"user": 2}\n']
)
def test_what_is_no_json_lines_says_why(tmp_path, text):
    with pytest.raises(ValueError, match="line 1: not"):
        prepare(write(tmp_path / "log.json", text))


def test_utf_16_that_is_cut_off_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="log.csv` cannot be read"):
        prepare(write(tmp_path / "log.csv", "user,item\nu,a\n".encode("utf-16") + b"\x00"))


def test_latin_1(tmp_path):
    log = write(tmp_path / "log.csv", "user,item\nJosé,a\n".encode("latin-1"))
    assert histories(prepare(log, encoding="latin-1")) == {"José": ["a"]}


def test_an_error_leaves_no_threads(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no memory")

    monkeypatch.setattr(Events, "_number", fail)
    before = threading.active_count()
    with pytest.raises(ValueError, match="no memory"):
        prepare(write(tmp_path / "log.csv", "user,item\nu,a\n"))
    assert threading.active_count() == before


def test_a_database_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("tfrec.data.events.nanoseconds", lambda *_: "nonsense")
    with pytest.raises(ValueError, match="The log cannot be prepared: Binder Error.*Nothing was written"):
        prepare(write(tmp_path / "log.csv", "user,item,time\nu,a,1700000000\n"))


def test_globs_stay_within_a_folder_on_every_file_system(tmp_path, monkeypatch):
    for name in ("a.csv", "old/b.csv", "day=1/c.csv", "day=2/d.csv"):
        write(tmp_path / name, "user,item\nu,a\n")
    remote = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())

    def names(pattern, is_remote):
        if is_remote:
            with monkeypatch.context() as patch:
                patch.setattr("tfrec.data.sources._filesystem", lambda text: (remote, text))
                found = find_sources(pattern, None)
        else:
            found = find_sources(tmp_path / pattern, None)
        return [os.path.basename(source.name) for source in found]

    for is_remote in (False, True):
        assert names("*.csv", is_remote) == ["a.csv"]
        assert names("**/*.csv", is_remote) == ["a.csv", "c.csv", "d.csv", "b.csv"]
        assert names("day=?", is_remote) == ["c.csv", "d.csv"]
        assert names("*/b.csv", is_remote) == ["b.csv"]


def test_links_among_the_parts(tmp_path):
    write(tmp_path / "log/a.csv", "user,item\nu,a\n")
    (tmp_path / "log/self").symlink_to(tmp_path / "log")
    assert [source.path for source in find_sources(tmp_path / "log", None)] == [str(tmp_path / "log/a.csv")]
    (tmp_path / "log/b.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="b.csv` is a link to a file that does not exist"):
        find_sources(tmp_path / "log", None)


def test_files_of_different_columns(tmp_path):
    pq.write_table(pa.table({"item_id": ["1"], "size": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": ["1"], "size": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="its files do not have the same columns"):
        read_items(tmp_path)


def test_one_user_in_many_batches(monkeypatch):
    events = pa.table({"user": ["u"] * 5 + ["v"] * 2, "item": [*"abcdefg"]})
    plain = prepare(events)
    monkeypatch.setattr("tfrec.data.events.FETCH_ROWS", 1)
    assert histories(prepare(events)) == histories(plain) == {"u": [*"abcde"], "v": [*"fg"]}


def test_nothing_but_the_answer_stands_on_stdout(tmp_path):
    script = (
        "import tfrec.data.preparation as p, tfrec.data.times as t\n"
        "with p._database(None) as sorting, t._database().cursor() as casting:\n"
        "    for con in (sorting, casting):\n"
        "        print(con.sql(\"SELECT current_setting('enable_progress_bar')\").fetchall()[0][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" * 2
