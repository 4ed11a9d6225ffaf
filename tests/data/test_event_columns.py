"""Columns of events and users: read in every format, stored in step with the items, and refused where they are wrong."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.logs import write
from tfrec.cli.main import app
from tfrec.data.cold_items import ColdItems
from tfrec.data.event_columns import EventColumn, event_columns
from tfrec.data.features import Feature
from tfrec.data.items import read_users
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData

ROWS = [
    ("u", "a", 1_700_000_000, "view", 1.5, True),
    ("v", "b", 1_700_000_000, "buy", None, False),
    ("u", "b", 1_700_000_003, "buy", 2.0, False),  # after the next row in time
    ("u", "c", 1_700_000_002, "view", 0.25, True),
    ("v", "a", 1_700_000_001, None, 4.0, None),
    ("u", "c", 1_700_000_002, "view", 0.25, True),  # a duplicate
]
NAMES = ["user", "item", "time", "event_type", "price", "is_app"]
OPTIONS = {"event_features": {"event_type": "category", "price": "number"}, "context": ["is_app", "event_type"]}
TYPES = ["view", "view", "buy", "buy", None]
"""In the order of the prepared events: of `u` a, c, b, of `v` b, a."""
PRICES = [1.5, 0.25, 2.0, np.nan, 4.0]
IS_APP = ["true", "true", "false", "false", None]


def table() -> pa.Table:
    return pa.table(dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True)))


def texts(data: PreparedData, name: str) -> list[str | None]:
    """The values of a category, event by event."""
    features = [*data.features.get("events", []), *data.features.get("context", [])]
    values = next(feature for feature in features if feature.name == name).values
    return [(None, "unknown", *values)[code] for code in data.event_columns[name]]


def check(data: PreparedData) -> None:
    assert [f.name for f in data.features["events"]] == ["event_type", "price"]
    assert [f.name for f in data.features["context"]] == ["event_type", "is_app"]
    assert list(data.event_columns) == ["event_type", "price", "is_app"]  # once each
    assert data.vocabulary.decode(data.item_index) == ["a", "c", "b", "b", "a"]
    assert texts(data, "event_type") == TYPES
    assert [value and value.lower() for value in texts(data, "is_app")] == IS_APP  # pandas writes True
    np.testing.assert_array_equal(data.event_columns["price"], np.float32(PRICES))
    assert [values.dtype for values in data.event_columns.values()] == [np.int32, np.float32, np.int32]
    assert data.manifest["num_duplicates"] == 1
    assert data.manifest["event_features"]["price"] == {
        "kind": "number",
        "range": [0.25, 4.0],
        "missing": 0.2,
        "reason": "named",
        "uses": ["events"],
    }


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("form", ["csv", "tsv.gz", "parquet", "jsonl", "json", "pandas", "arrow"])
def test_every_format_gives_the_same_columns(tmp_path, form, is_stored):
    frame, path = table().to_pandas(), tmp_path / f"log.{form}"
    if form == "csv":
        frame.to_csv(path, index=False)
    elif form == "tsv.gz":
        frame.to_csv(path, index=False, sep="\t")
    elif form == "parquet":
        pq.write_table(table(), path)
    elif form in ("jsonl", "json"):
        path = write(path, "\n".join(map(json.dumps, table().to_pylist())))
        if form == "json":
            write(path, json.dumps(table().to_pylist()))
    log = {"pandas": frame, "arrow": table()}.get(form, path)
    check(prepare(log, tmp_path / "out" if is_stored else None, **OPTIONS))


def test_a_folder_keeps_the_columns_in_files_of_numbers(tmp_path):
    data = prepare(table(), tmp_path / "out", **OPTIONS)
    assert data.manifest["event_columns"] == ["event_type", "price", "is_app"]
    assert sorted(p.name for p in (tmp_path / "out").glob("event_*")) == ["event_0.npy", "event_1.npy", "event_2.npy"]
    assert all(isinstance(values, np.memmap) for values in data.event_columns.values())
    in_memory = prepare(table(), **OPTIONS)
    saved = in_memory.save(tmp_path / "saved")
    check(saved)
    assert saved.fingerprint == data.fingerprint == in_memory.fingerprint
    plain = prepare(table(), tmp_path / "plain")
    assert plain.event_columns == {}
    assert not list((tmp_path / "plain").glob("event_*"))
    assert plain.fingerprint == dataclasses.replace(data, event_columns={}).fingerprint != data.fingerprint


def test_rare_users_and_items_take_their_columns_along(tmp_path):
    for out in (None, tmp_path / "out"):
        data = prepare(table(), out, **OPTIONS, min_user_events=3)
        assert texts(data, "event_type") == ["view", "view", "buy"]
        np.testing.assert_array_equal(data.event_columns["price"], np.float32([1.5, 0.25, 2.0]))
        data = prepare(table(), out and tmp_path / "others", **OPTIONS, min_item_events=2)
        assert data.vocabulary.decode(data.item_index) == ["a", "b", "b", "a"]
        np.testing.assert_array_equal(data.event_columns["price"], np.float32([1.5, 2.0, np.nan, 4.0]))


def test_duplicates_that_are_kept_keep_their_columns():
    data = prepare(table(), **OPTIONS, duplicates="keep")
    np.testing.assert_array_equal(data.event_columns["price"], np.float32([1.5, 0.25, 0.25, 2.0, np.nan, 4.0]))


def test_events_that_differ_in_a_named_column_are_no_duplicates():
    log = pa.table(
        {"user": ["u"] * 4, "item": list("abbb"), "time": [1, 2, 2, 2], "what": ["view", "view", "buy", "view"]}
    )
    data = prepare(log, event_features=["what"])
    assert texts(data, "what") == ["view", "view", "buy"]
    assert (data.manifest["num_duplicates"], prepare(log).manifest["num_duplicates"]) == (1, 2)


def test_a_rare_value_is_known_unless_there_are_many_values():
    log = pa.table({"user": ["u"] * 80, "item": list("ab") * 40, "shop": [str(n) for n in [*range(30), *[99] * 50]]})
    assert len(prepare(log, context={"shop": "category"}).features["context"][0].values) == 31
    log = pa.table({"user": ["u"] * 80, "item": list("ab") * 40, "shop": [str(n) for n in [*range(33), *[99] * 47]]})
    assert prepare(log, context={"shop": "category"}).features["context"][0].values == ("99",)


def test_few_broken_numbers_are_refused_and_many_make_a_category():
    price = [str(n / 8) for n in range(199)] + ["12,9x"]
    log = pa.table({"user": ["u", "v"] * 100, "item": list("abcd") * 50, "price": price})
    data = prepare(log, event_features=["price"])
    assert data.features["events"][0].kind == "number"
    assert data.refused.select(["line", "reason"]).to_pylist() == [{"line": 200, "reason": "price is no number: 12,9x"}]
    assert data.manifest["num_rows"] == 200 == data.num_events + data.manifest["num_refused"]
    with pytest.raises(ValueError, match="1 of 200 rows were refused, more than --max-refused 0 allows"):
        prepare(log, event_features=["price"], max_refused=0)
    log = log.set_column(2, "price", pa.array([*price[:195], "x", "y", "z", *price[198:]]))
    told = prepare(log, event_features=["price"]).manifest["event_features"]["price"]
    assert (told["kind"], told["reason"]) == ("category", "values; 'x' is no number")
    stars = [str(n % 5) for n in range(199)] + ["none yet"]  # a category all the same: nothing is refused
    data = prepare(log.set_column(2, "stars", pa.array(stars)), event_features=["stars"])
    assert set(data.features["events"][0].values) == {*"01234", "none yet"}
    assert not len(data.refused)


def test_whole_numbers_are_one_value_with_and_without_a_point(tmp_path):
    stars = ["4", "4.0", "4.00", "5", "5.0", ""]
    log = {
        "user": list("uuuvvv"),
        "item": list("abcabc"),
        "stars": stars,
        "version": ["1.0", "1.1", "1", "1.0", "1.1", "1"],
    }
    path = tmp_path / "log.csv"
    pd.DataFrame(log).to_csv(path, index=False)
    data = prepare(path, event_features={"stars": "category", "version": "category"})
    assert texts(data, "stars") == ["4", "4", "4", "5", "5", None]
    assert texts(data, "version") == log["version"]  # not whole: text
    frame = pd.DataFrame(log | {"stars": pd.to_numeric(pd.Series(stars))})  # NaN makes floats of them
    assert texts(prepare(frame, event_features={"stars": "category"}), "stars") == ["4", "4", "4", "5", "5", None]
    same = pa.table({"user": ["u"] * 2, "item": ["a"] * 2, "time": [1, 1], "stars": ["4", "4.0"]})
    assert prepare(same, event_features={"stars": "category"}).manifest["num_duplicates"] == 1


def test_new_items_take_their_columns_out():
    data = prepare(table(), **OPTIONS)
    cold = ColdItems(data, 0.34, seed=1)
    kept = np.array([item not in cold.item_ids for item in data.vocabulary.decode(data.item_index)])
    for name, values in data.event_columns.items():
        np.testing.assert_array_equal(cold.known.event_columns[name], values[kept])


def test_the_request_for_a_new_item_is_what_happened_before_it():
    log = pa.table({"user": list("uuuuvv"), "item": list("abcxax"), "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    data = prepare(log, context={"price": "number"}, users=pa.table({"user": ["u", "v"], "n": ["7", "8"]}))
    cold = next(c for c in (ColdItems(data, 0.25, seed) for seed in range(99)) if c.item_ids == ["x"])
    found = cold.requests(max_length=2)
    assert found.offsets.tolist() == [0, 3, 5]
    assert [cold.catalogue["item_id"][int(i) - 2].as_py() for i in found.item_index] == ["b", "c", "x", "a", "x"]
    assert found.event_columns["price"].tolist() == [2, 3, 4, 5, 6]
    assert found.users["user_id"].to_pylist() == ["u", "v"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_wrong_number_refuses_the_row(tmp_path, form):
    rows = {"user": ["u"] * 5, "item": list("abcde"), "price": ["1", "2.5", "dear", "", "1e3"]}
    path = tmp_path / f"log.{form}"
    if form == "csv":
        write(path, "user,item,price\n" + "\n".join(map(",".join, zip(*rows.values(), strict=True))))
    elif form == "jsonl":
        write(path, "\n".join(map(json.dumps, pa.table(rows).to_pylist())))
    else:
        pq.write_table(pa.table(rows), path)
    data = prepare(path, event_features={"price": "number"}, max_refused=0.5)
    line = 4 if form == "csv" else 3
    assert data.refused.select(["line", "reason"]).to_pylist() == [{"line": line, "reason": "price is no number: dear"}]
    np.testing.assert_array_equal(data.event_columns["price"], np.float32([1, 2.5, np.nan, 1000]))
    assert data.manifest["num_rows"] == 5 == data.num_events + data.manifest["num_refused"]
    assert data.manifest["refused"] == {"price is no number": 1}
    with pytest.raises(ValueError, match="1 of 5 rows were refused, more than --max-refused 0.01 allows"):
        prepare(path, event_features={"price": "number"})
    told = prepare(path, event_features=["price"])  # its kind is told: one wrong value makes a category of it
    assert told.features["events"][0].kind == "category"


def test_broken_text_refuses_the_row_and_objects_are_no_values(tmp_path):
    path = write(tmp_path / "log.csv", b"user,item,shop\nu,a,\xff\xfe\nu,b,ok\nu,c,ok\n")
    data = prepare(path, event_features=["shop"], max_refused=0.5)
    assert data.refused["reason"].to_pylist() == ["broken UTF-8"]
    path = write(tmp_path / "log.jsonl", '{"user": "u", "item": "a", "shop": {"x": 1}}\n{"user": "u", "item": "b"}\n')
    reasons = prepare(path, context=["shop"], max_refused=0.5).refused["reason"].to_pylist()
    assert [reason.partition(" is ")[0] for reason in reasons] == ["shop"]
    log = pa.table({"user": ["u"], "item": ["a"], "shop": [{"x": 1}]})
    with pytest.raises(
        ValueError, match="column 'shop' holds struct<x: int64>, and a feature of events is text or a number"
    ):
        prepare(log, context=["shop"])


def test_a_session_has_one_value_or_one_for_each_item():
    log = pa.table(
        {
            "user": ["u", "v", "w"],
            "item": [["a", "b"], ["b"], ["a", "b"]],
            "price": [[1.5, 2.5], [3.5], [9.0]],
            "device": ["app", "web", "app"],
        }
    )
    data = prepare(log, event_features=["price"], context=["device"], max_refused=0.5)
    assert data.event_columns["price"].tolist() == [1.5, 2.5, 3.5]
    assert data.refused["reason"].to_pylist() == ["2 items, but 1 values of the price column"]
    assert texts(data, "device") == ["app", "app", "web"]


def test_kinds_are_told_from_the_values():
    number = np.arange(200)
    log = pa.table(
        {
            "user": number % 5,
            "item": number % 7,
            "stars": number % 5 + 1,
            "year": number % 9 + 1995,
            "minutes": number * 0.5,
            "shop_id": number % 50,
            "zip": [f"{n % 60:05d}" for n in number],
            "nothing": pa.nulls(200, pa.string()),
            "nearly": [str(n) for n in number[:-1] / 7] + ["soon"],
        }
    )
    names = ["stars", "year", "minutes", "shop_id", "zip", "nothing", "nearly"]
    told = prepare(log, event_features=names).manifest["event_features"]
    assert {name: (entry["kind"], entry["reason"]) for name, entry in told.items()} == {
        "stars": ("category", "5 whole numbers"),
        "year": ("number", "years"),
        "minutes": ("number", "numbers"),
        "shop_id": ("category", "values"),
        "zip": ("category", "values"),
        "nothing": ("category", "no row has a value"),
        "nearly": ("number", "numbers"),
    }
    data = prepare(log, event_features={"stars": "number"}, context={"minutes": "category"})
    assert data.features["events"][0].mean == pytest.approx(3)
    assert data.features["events"][0].stddev == pytest.approx(2**0.5)
    assert data.event_columns["minutes"].dtype == np.int32


def test_the_most_frequent_value_comes_first_and_large_numbers_stay_finite():
    log = pa.table({"user": ["u"] * 6, "item": list("abcdef"), "x": list("zyyzyx"), "n": ["1e999", "-1e99", *"1234"]})
    data = prepare(log, event_features={"x": "category", "n": "number"})
    assert data.features["events"][0].values == ("y", "z", "x")
    assert data.event_columns["x"].tolist() == [3, 2, 2, 3, 2, 4]
    assert np.isfinite(data.event_columns["n"]).all()


def test_nothing_but_named_columns_is_read_and_a_note_says_so():
    log = table().append_column("email", pa.array([f"{n}@b.org" for n in range(6)]))
    data = prepare(log, event_features=["price"])
    assert (
        "columns left out: 'event_type', 'is_app', 'email' (--event-feature and --context take some)"
        in data.manifest["notes"]
    )
    assert list(data.event_columns) == ["price"]
    many = pa.table({"user": ["u"], "item": ["a"]} | {f"c{n}": ["x"] for n in range(12)})
    assert any(
        note.endswith("'c9' and 2 more (--event-feature and --context take some)")
        for note in prepare(many).manifest["notes"]
    )
    assert not any("looks like the type" in n for n in prepare(table(), context=["event_type"]).manifest["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_features": ["prise"]}, r"The frame has no column 'prise' \(--event-feature or --context\)\. Its columns: user,"),
        ({"event_features": {"price": "numbr"}}, "`event_features`: 'numbr' is no kind for column 'price'. Did you mean 'number'?"),
        ({"context": {"price": "date"}}, "`context`: 'date' is no kind for column 'price'. The kinds of a column of the log: cat"),
        (
            {"event_features": {"price": "number"}, "context": {"price": "category"}},
            "`context`: column 'price' is named as number and as category: leave one out",
        ),
        ({"event_features": ["k"]}, "Column 'k' cannot be a feature: a served model has an input of that name"),
        ({"context": ["request time"]}, "Column 'request time' cannot be a feature"),
        ({"context": ["request_device"]}, "Column 'request_device' cannot be a feature"),
        ({"context": ["a b", "a.b"]}, "Two features have the name 'a_b': column 'a b' and column 'a.b'"),
        ({"context": ["Price", "price"]}, "Two features have the name 'price': column 'Price' and column 'price'"),
        ({"context": ["K"]}, "Column 'K' cannot be a feature"),
        (
            {"users": pa.table({"user": ["u", "v"], "a b": ["1", "2"], "a.b": ["1", "2"]}), "user_features": {"a b": "number"}},
            "`user_features`: columns 'a b' and 'a.b' would be the same input 'a_b' .* or leave it out .a.b=none.",
        ),
        ({"context": "price"}, "`context` must be a list of names or a dict of kinds. Received: 'price'"),
        (
            {"users": pa.table({"user": ["u"], "x": ["1"]}), "user_features": {"y": "number"}},
            "`user_features`: there is no column 'y' to make a feature of. The columns: x",
        ),
        (
            {"users": pa.table({"user": ["u"], "x": [["1"]]}), "user_features": {"x": "multi"}},
            "`user_features`: column 'x' is multi, and a property of users is category or number",
        ),
        (
            {"users": pa.table({"user": ["u"], "price": ["1"]}), "user_features": {"price": "number"}, "context": ["price"]},
            "Two features have the name 'price': column 'price' and column 'price', of events, their context or users",
        ),
        ({"users": pa.table({"x": ["u"]})}, "`users` has no user id. Its columns: x. Call one of them user_id."),
        ({"users": pa.table({"user": ["u", None]})}, "`users`, row 2: the user id is missing or broken"),
        ({"users": pa.table({"user": ["u"]}), "users_options": {"fromat": "csv"}}, "`users_options`: .*fromat"),
    ],
)  # fmt: skip
def test_wrong_names_and_kinds_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(table(), **options)


def test_sequence_text_has_no_columns(tmp_path):
    with pytest.raises(
        ValueError, match="Sequence text has items alone, and no columns 'price': leave out --event-feature"
    ):
        prepare(write(tmp_path / "log.txt", "a b c\n"), format="sequences", event_features=["price"])


def test_a_column_is_named_once_for_both_uses():
    assert event_columns({"a": "auto"}, {"a": "number", "b": "auto"}) == [
        EventColumn("a", "number", ("events", "context")),
        EventColumn("b", "auto", ("context",)),
    ]


def test_users_with_properties():
    users = pa.table(
        {
            "customer": [2.0, 1.0, 2.0, 9.0],
            "country": ["NO", "SE", "DE", "NO"],
            "age": [31.5, None, 99.0, 12.0],
            "born": ["1990-01-01", "1991-02-02", "1992-03-03", "1993-04-04"],
            "email": ["a@b.org"] * 4,
        }
    )
    log = pa.table({"user": [1, 1, 2, 3], "item": list("abab")})
    data = prepare(log, users=users, user_features={"country": "category", "age": "number"})
    assert data.users.select(["user_id", "country", "age"]).to_pylist() == [
        {"user_id": "1", "country": "SE", "age": None},
        {"user_id": "2", "country": "NO", "age": 31.5},
        {"user_id": "3", "country": None, "age": None},
    ]
    assert [feature.name for feature in data.features["users"]] == ["country", "age"]
    assert data.user_columns["country"].tolist() == [3, 2, 0]
    np.testing.assert_array_equal(data.user_columns["age"], np.float32([np.nan, 31.5, np.nan]))
    counts = {"num_users_without_properties": 1, "num_repeated_users": 1, "num_users_without_events": 1}
    assert counts.items() <= data.manifest.items()
    assert {
        "1 of 3 users have no row in the user file",
        "1 rows of the user file repeat a user: the first row of each counts",
        "1 users of the user file have no event in the log",
    } <= set(data.manifest["notes"])
    told = data.manifest["user_features"]
    assert told["born"]["reason"] == "left out: date, and a property of users is category or number"
    assert told["email"]["reason"] == "left out: its name says personal data"
    assert list(data.describe()["user features"]) == ["country", "age", "born", "email"]
    assert data.users.column_names == ["user_id", "country", "age"]  # what is left out is not stored
    wrong = dataclasses.replace(data, features={"users": [Feature("born", "date")]})
    with pytest.raises(ValueError, match="Column 'born' of users is date: a property of users is category or number"):
        wrong.user_columns  # noqa: B018


def test_user_files_are_read_like_item_files(tmp_path):
    path = write(tmp_path / "u.user", "1|24|M\n2|53|F\n")
    found = read_users(path, format="csv", columns=["user_id", "age", "gender"], delimiter="|")
    assert found.to_pydict() == {"user_id": ["1", "2"], "age": ["24", "53"], "gender": ["M", "F"]}


def test_movielens_100k_with_its_users(tmp_path):
    write(tmp_path / "u.data", "1\t10\t5\t978300760\n2\t20\t3\t978302109\n")
    write(tmp_path / "u.user", "1|24|M\n2|53|F\n")
    arguments = [
        *("prepare", tmp_path / "u.data", "--format", "tsv", "--columns", "user,item,rating,time"),
        *("--event-feature", "rating=number", "--users", tmp_path / "u.user", "--users-format", "csv"),
        *("--users-columns", "user_id,age,gender", "--users-delimiter", "|", "--out", tmp_path / "out"),
        *("--user-feature", "gender"),
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    data = PreparedData.open(tmp_path / "out")
    assert data.event_columns["rating"].tolist() == [5, 3]
    assert data.user_columns["age"].tolist() == [24, 53]
    assert data.users["gender"].to_pylist() == ["M", "F"]


def test_names_of_folders_are_columns_too(tmp_path):
    write(tmp_path / "log" / "shop=north" / "a.csv", "user,item\nu,a\nu,b\n")
    write(tmp_path / "log" / "shop=south" / "a.csv", "user,item\nv,a\nv,b\n")
    data = prepare(tmp_path / "log", context=["shop"])
    assert texts(data, "shop") == ["north", "north", "south", "south"]


def test_a_file_that_lacks_the_column_is_refused(tmp_path):
    write(tmp_path / "log" / "a.csv", "user,item,shop\nu,a,north\n")
    write(tmp_path / "log" / "b.csv", "user,item\nu,b\n")
    with pytest.raises(ValueError, match=r"b.csv` has no column 'shop' \(--event-feature or --context\)"):
        prepare(tmp_path / "log", context=["shop"])


def test_rows_read_are_accepted_refused_or_dropped(tmp_path):
    """Every event keeps its own values, whatever is refused, dropped or sorted around it."""
    rng = np.random.default_rng(7)
    number = 5000
    price = [str(n) if n % 11 else "x" for n in range(number)]
    log = pa.table(
        {
            "user": [str(u) if u else None for u in rng.integers(0, 90, number)],
            "item": [str(i) for i in rng.integers(0, 100, number)],
            "time": rng.integers(1_600_000_000, 1_600_000_050, number),
            "price": price,
            "copy": [f"v{n}" for n in range(number)],
        }
    )
    log = pa.concat_tables([log, log.slice(0, 100)])
    number += 100
    options = {"event_features": {"price": "number"}, "context": {"copy": "category"}, "max_refused": 1}
    data = prepare(log, tmp_path / "out", **options, duplicates="drop", min_item_events=40, min_user_events=5)
    manifest = data.manifest
    parts = ("num_refused", "num_duplicates", "num_filtered_events")
    assert min(manifest[part] for part in parts) > 0
    assert number == data.num_events + sum(manifest[part] for part in parts)
    row = data.event_columns["price"].astype(int)
    assert len(set(row)) == data.num_events
    assert (row % 11 > 0).all()
    assert data.vocabulary.decode(data.item_index) == [log["item"][n].as_py() for n in row.tolist()]
    users = np.repeat(data.users["user_id"].to_numpy(), data.lengths)
    assert users.tolist() == [log["user"][n].as_py() for n in row.tolist()]
    assert data.timestamp.tolist() == [log["time"][n].as_py() for n in row.tolist()]


def test_the_command_reads_columns_of_events_and_users(tmp_path):
    table().to_pandas().to_csv(tmp_path / "log.csv", index=False)
    pd.DataFrame({"user": ["u", "v"], "age": [30, 40]}).to_csv(tmp_path / "users.csv", index=False)
    arguments = [
        *("prepare", tmp_path / "log.csv", "--out", tmp_path / "out", "--event-feature", "price=number"),
        *("--event-feature", "event_type", "--context", "is_app=category", "--context", "event_type"),
        *("--users", tmp_path / "users.csv", "--user-feature", "age=number"),
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "event column 'price': number, 0.25 to 4.0, 20% missing (named)" in result.output
    assert "user column 'age': number, 30 to 40 (named)" in result.output
    data = PreparedData.open(tmp_path / "out")
    assert data.user_columns["age"].tolist() == [30, 40]
    assert {use: [f.name for f in features] for use, features in data.features.items()} == {
        "events": ["price", "event_type"],
        "context": ["event_type", "is_app"],
        "users": ["age"],
    }
    arguments = ["prepare", "synthetic", "--out", str(tmp_path / "other"), "--users", "users.csv"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--users is the number of its users" in result.output
