"""Item files: split and named on their own, and joined to the log."""

import json

import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tests.logs import write
from tfrec.cli.main import app
from tfrec.data.items import read_items
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.data.readers import Reading

LOG = pa.table({"user": ["u", "u"], "item": ["1", "2"]})


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_movielens_1m_as_it_is_published(tmp_path):
    log = write(tmp_path / "ratings.dat", "1::10::5::978300760\n1::20::3::978302109\n")
    items = write(
        tmp_path / "movies.dat", "10::Misérables, Les (1995)::Drama|Musical\n20::Jumanji::Comedy\n".encode("latin-1")
    )
    run(
        *(log, "--out", tmp_path / "out", "--format", "csv", "--delimiter", "::", "--columns", "user,item,rating,time"),
        *("--items", items, "--items-columns", "movie_id,title,genres", "--encoding", "latin-1"),
    )
    found = PreparedData.open(tmp_path / "out").items.to_pydict()
    assert found["title"] == ["Misérables, Les (1995)", "Jumanji"]
    assert found["genres"] == ["Drama|Musical", "Comedy"]


def test_movielens_100k_as_it_is_published(tmp_path):
    log = write(tmp_path / "u.data", "1\t10\t5\t978300760\n1\t20\t3\t978302109\n")
    items = write(tmp_path / "u.item", '10|Toy "Story"|01-Jan-1995\n20|Jumanji|02-Jan-1995\n')
    run(
        *(log, "--out", tmp_path / "out", "--format", "tsv", "--columns", "user,item,rating,time", "--items", items),
        *(
            "--items-columns",
            "movie_id,title,day",
            "--items-format",
            "csv",
            "--items-delimiter",
            "|",
            "--items-quote",
            "none",
        ),
    )
    assert PreparedData.open(tmp_path / "out").items["title"].to_pylist() == ['Toy "Story"', "Jumanji"]


def test_an_item_file_with_another_delimiter_than_the_log(tmp_path):
    log = write(tmp_path / "log.csv", "user::item\nu::1\n")
    items = write(tmp_path / "items.csv", "item,title\n1,A\n")
    assert prepare(log, delimiter="::", items=items).items["title"].to_pylist() == ["A"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.csv", "item_id,title,country\n1,None,NA\n2,,\n"),
        ("items.jsonl", '{"item_id": 1, "title": "None", "country": "NA"}\n{"item_id": 2, "title": null}\n'),
    ],
)
def test_titles_that_look_like_missing_ids_stay(tmp_path, name, content):
    found = read_items(write(tmp_path / name, content)).to_pydict()
    assert found == {"item_id": ["1", "2"], "title": ["None", None], "country": ["NA", None]}


def test_null_values_that_were_named_hold_for_properties_too(tmp_path):
    items = write(tmp_path / "items.csv", "item_id,title\n1,-\n")
    assert read_items(items, null_values=["-"])["title"].to_pylist() == [None]


def test_two_columns_that_are_read_as_one_are_an_error(tmp_path):
    found = read_items(pa.table({"item_id": ["1"], "Title": ["A"], "title": ["b"]}))
    assert found.to_pydict() == {"item_id": ["1"], "Title": ["A"], "title": ["b"]}
    with pytest.raises(ValueError, match="`items`: two columns have the name 'item_id', or are read as it"):
        read_items(pa.table({"sku": ["1"], "item_id": ["2"]}), Reading(item="sku"))
    with pytest.raises(ValueError, match="items.csv`: two columns have the name 'tag'"):
        read_items(write(tmp_path / "items.csv", "item_id,tag,tag\n1,a,b\n"))


def test_columns_without_a_name_are_left_out(tmp_path):
    items = write(tmp_path / "items.csv", "item_id,title,,\n1,A,,\n")
    assert read_items(items).to_pydict() == {"item_id": ["1"], "title": ["A"]}


def test_any_json_can_be_stored(tmp_path):
    rows = [{"item_id": "1", "meta": {}, "title": [5, 6]}, {"item_id": "2", "meta": {}, "title": None}]
    items = write(tmp_path / "items.jsonl", "\n".join(map(json.dumps, rows)))
    prepare(LOG, tmp_path / "out", items=items)
    found = PreparedData.open(tmp_path / "out").items
    assert found["meta"].to_pylist() == ["{}", "{}"]
    assert found["title"].to_pylist() == ["5 6", None]


def test_a_frame_with_odd_values():
    frame = pd.DataFrame({"item_id": [1, 2], "extra": [{"a": 1}, "x"], "size": [2**70, 1]})
    found = read_items(frame).to_pydict()
    assert found == {"item_id": ["1", "2"], "extra": ['{"a": 1}', "x"], "size": [str(2**70), "1"]}


def test_a_property_that_prepared_data_counts_itself_is_left_out_with_a_note():
    data = prepare(LOG, items=pa.table({"item_id": ["1", "2"], "num_events": [7, 8]}))
    assert data.items["num_events"].to_pylist() == [1, 1]
    assert "column 'num_events' of the item file is left out: it is counted from the log" in data.manifest["notes"]


def test_an_option_of_the_item_file_that_there_is_not():
    with pytest.raises(ValueError, match="`items_options`: .*'delimeter'; the fields of `Reading` can be set"):
        prepare(LOG, items=LOG, items_options={"delimeter": ","})
