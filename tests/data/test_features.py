"""Kinds of columns told from their values, features learned from them, and encoded in Python and in a served model alike."""

import datetime
import decimal
import json
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from tests.logs import write
from tfrec.cli.main import app
from tfrec.data import features, kinds, raw_columns
from tfrec.data.datasets import prepare_dataset
from tfrec.data.encoding import FeatureEncoder, encode_table
from tfrec.data.features import Feature, fit_feature, load_features, save_features
from tfrec.data.kinds import fit_table, tell_kind
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.data.raw_columns import raw_column

N = 120
WORDS = ("red", "blue", "green", "small", "large", "shirt", "shoe", "hat", "wool", "silk", "old", "new")
NUMBERS = np.arange(N)
TITLES = [f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]} {WORDS[(7 * i + i // 12) % 12]} {i}" for i in range(N)]


def column(values, type_=None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, type_)])


def of(*values) -> list:
    """N rows in which the values take turns."""
    return [values[i % len(values)] for i in range(N)]


def date(i: int) -> datetime.date:
    return datetime.date(1969, 12, 1) + datetime.timedelta(days=i)


@pytest.mark.parametrize(
    ("name", "values", "kind", "separator"),
    [
        ("genre", of("drama", "comedy", None), "category", ""),
        ("country", of("NA", "DE", "FR"), "category", ""),  # Namibia
        ("in stock", of("true", "false"), "category", ""),
        ("is_new", of("yes", *[None] * 9), "category", ""),
        ("is_new", of(True, False, None), "category", ""),
        ("stars", of(1, 2, 3, 4, 5), "category", ""),
        ("stars", of(1.0, 2.0, None), "category", ""),
        ("zip", of("02139", "10115", "80331"), "category", ""),
        ("brand_id", [i // 3 for i in range(N)], "category", ""),
        ("categoryId", [str(i // 3) for i in range(N)], "category", ""),
        ("colour", of("dark red", "light blue", "🟢 green"), "category", ""),
        ("director", [f"Ann Other {i // 8}" for i in range(N)], "category", ""),
        ("genres", of("Drama|War", "War", "Comedy|Drama", None), "multi", "|"),
        ("tags", of("a;b", "b;c", "c"), "multi", ";"),
        ("tags", of("red, blue", "blue, green", "red", ""), "multi", ","),
        ("genres", of(["a", "b"], ["b"], [], None), "multi", ""),
        ("attributes", of([1, 2], [2, 3, 4]), "multi", ""),
        ("attributes", of([1.0, 2.0], [2.0]), "multi", ""),  # pandas writes whole numbers beside nulls so
        ("price", [i * 0.5 for i in range(N)], "number", ""),
        ("price", [f" {i * 0.5} " for i in range(N - 1)] + ["nan"], "number", ""),
        ("price", [decimal.Decimal(i) / 4 for i in range(N)], "number", ""),
        ("year", of(1999, 2001, 2005), "number", ""),
        ("pages", [str(i) for i in range(N)], "number", ""),
        ("released", [str(date(i)) for i in range(N)], "date", ""),
        ("at", [f"{date(i)}T10:00:00+02:00" for i in range(N)], "date", ""),
        ("at", [date(i) for i in range(N)], "date", ""),
        ("vector", [[float(i), 0.5] for i in range(N)], "vector", ""),
        ("vector", [[1.0, 2.0]] * N, "vector", ""),
        ("title", TITLES, "text", ""),
        ("title", [f"{w}{i}" for i, w in enumerate(of(*WORDS))], "text", ""),
        ("description", TITLES, "text", ""),
        (
            "description",
            [f"A film, of the year {i}, with {i + 1} songs, {t}" for i, t in enumerate(TITLES)],
            "text",
            "",
        ),
        ("name2", [f"流浪地球{chr(0x4E00 + i)}" for i in range(N)], "text", ""),
    ],
)
def test_kinds(name, values, kind, separator):
    told = tell_kind(name, column(values))
    assert (told.kind, told.separator) == (kind, separator), told


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("sku", [f"S-{i}" for i in range(N)], "a value of its own, as ids have"),
        ("image", [f"https://example.org/{i}.jpg" for i in range(N)], "a value of its own, as ids have"),
        ("barcode_id", NUMBERS + 10**12, "a value of its own, as ids have"),
        ("images", [[f"{i}.jpg", f"{i}b.jpg"] for i in range(N)], "almost every value occurs once"),
        ("empty", [None] * N, "no row has a value"),
        ("empty", pa.array([None] * N, pa.float64()), "no row has a value"),
        ("empty", pa.array([None] * N, pa.list_(pa.null())), "no row has a value"),
        ("empty", [[]] * N, "no row has a value"),
        ("empty", [""] * N, "no row has a value"),
        ("empty", [" "] * N, "no row has a value"),
        ("empty", [float("nan")] * N, "no row has a value"),
        ("shop", ["A"] * N, "every row has the same value"),
        ("shop", [["A"]] * N, "every row has the same value"),
        ("size", [1] * N, "every row has the same value"),
        ("flag", [True] * N, "every row has the same value"),
        ("day", [date(0)] * N, "every row has the same value"),
        ("day", [str(date(0))] * N, "every row has the same value"),
        ("only", ["A", *[None] * (N - 1)], "every row has the same value"),
        ("meta", [{"a": i} for i in range(N)], "it holds struct"),
        ("grid", [[[1.0], [2.0]]] * N, "it holds list"),
        ("hour", [datetime.time(i % 24) for i in range(N)], "it holds time"),
        ("contact", [f"a{i}@example.org" for i in range(N)], "e-mail addresses"),
        ("contacts", [[f"a{i % 9}@example.org"] for i in range(N)], "e-mail addresses"),
        ("contact", [f"+49 30 1234{i:03}" for i in range(N)], "phone numbers"),
        ("host", [f"10.0.0.{i % 9}" for i in range(N)], "IP addresses"),
        *(
            (name, of("A", "B", "C"), "its name says personal data")
            for name in ("first_name", "Surname", "fullName", "author_email", "phone", "Phone Number", "address", "IP")
        ),
    ],
)
def test_columns_that_are_left_out(name, values, reason):
    told = tell_kind(name, column(values))
    assert told.kind is None
    assert reason in told.reason


def test_names_that_only_hold_the_word_are_no_personal_data():
    for name in ("chip", "ship", "phone_case_colour", "email_marketing_segment2x", "trip", "recipe", "filename"):
        assert tell_kind(name, column(of("A", "B"))).kind == "category", name


def test_a_named_column_is_taken_whatever_it_looks_like():
    table = pa.table({"sku": [f"S-{i // 2}" for i in range(N)], "email": of("a@b.org", "c@d.org"), "none": pa.nulls(N)})
    found, report = fit_table(table, {"sku": "category", "email": "auto", "none": "number"})
    assert [(f.name, f.kind, len(f.values)) for f in found] == [
        ("sku", "category", N // 2),
        ("email", "category", 2),
        ("none", "number", 0),
    ]
    assert report["none"] == {"kind": "number", "missing": 1.0, "reason": "named"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"genre": "multi"},
            "no column 'genre' to make a feature of. Did you mean 'genres'\\? The columns: genres, meta.",
        ),
        ({"qqq": "multi"}, "no column 'qqq' to make a feature of. The columns: genres, meta."),
        ({"item_id": "category"}, "no column 'item_id' to make a feature of."),
        (
            {"genres": "mutli"},
            "'mutli' is no kind for column 'genres'. Did you mean 'multi'\\? The kinds: category, multi, ",
        ),
        ({"genres": "multi:"}, "'multi:' is no kind for column 'genres'. The kinds: "),
        ({"genres": "category:|"}, "'category:|' is no kind for column 'genres'. The kinds: "),
        ({"meta": "auto"}, "`item_features`: column 'meta' has no kind of feature \\(left out: it holds struct"),
        (
            {"meta": "category"},
            "Column `meta` holds struct.*or give the column another kind \\(multi or vector\\) or none",
        ),
        ({"meta": "number"}, "Column `meta` holds struct.*and no numbers"),
        ({"meta": "vector"}, "Column `meta` holds struct.*a vector is a list of numbers"),
        ({"genres": "vector"}, "Column `genres` holds string, and a vector is a list of numbers"),
        ({"genres": "number"}, "Column `genres`, row 1: 'a|b' is no number. Mend it, or give the column another kind"),
        ({"genres": "date"}, "Column `genres`, row 1: 'a|b' is no date."),
    ],
)
def test_names_and_kinds_that_there_are_not(named, message):
    items = pa.table({"item_id": ["1", "2"], "genres": ["a|b", "b"], "meta": [{"x": 1}, {"x": 2}]})
    with pytest.raises(ValueError, match=message):
        fit_table(items, named, without=("item_id",))


def test_wrong_names_are_told_before_the_log_is_read():
    with pytest.raises(ValueError, match="`item_features`: there is no column 'genre'.*The columns: none"):
        prepare("no such file.csv", item_features={"genre": "multi"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [[1.5, 2.0], None, [1.0], [3.0, 4.0]],
            "row 3: a vector of 1 numbers among those of 2. Give every row as many or none",
        ),
        ([[1.5, 2.5], [1.5, None]], "row 2: a vector with a missing or infinite number. Mend it"),
        ([None, [1.5, float("inf")]], "row 2: a vector with a missing or infinite number"),
    ],
)
def test_vectors_that_are_none(values, message):
    table = pa.table({"item_id": list("abcd")[: len(values)], "embedding": values})
    with pytest.raises(ValueError, match=f"Column `embedding`, {message}"):
        fit_table(table, without=("item_id",))
    found, report = fit_table(table, {"embedding": "none"}, without=("item_id",))
    assert (found, report) == ([], {"embedding": {"kind": None, "reason": "left out: named so"}})


def test_lists_of_text_are_no_vectors():
    with pytest.raises(ValueError, match="Column `v` holds list<.*>, and a vector is a list of numbers"):
        fit_feature("v", "vector", column([["a"], ["b"]]))


def test_a_number_that_is_none_makes_the_column_text_with_a_note():
    values = [str(i / 2) for i in range(N)]
    values[77] = "soon"
    told = tell_kind("price", column(values))
    assert told.kind is None
    assert told.reason.endswith("; row 78: 'soon' is no number")
    days = [str(date(i)) for i in range(N)]
    days[3] = "2020-13-01"
    assert tell_kind("day", column(days)).reason.endswith("; row 4: '2020-13-01' is no date")


def test_large_columns_are_told_from_a_sample_and_checked_whole(monkeypatch):
    monkeypatch.setattr(kinds, "SAMPLE", 10)
    values = [str(i / 2) for i in range(N)]
    values[77] = "soon"
    assert tell_kind("price", column(values)).kind is None
    assert tell_kind("genres", column(of("Drama|War", "War|Drama"))).separator == "|"


def test_the_most_frequent_values_are_known(monkeypatch):
    monkeypatch.setattr(features, "MAX_VALUES", 2)
    monkeypatch.setattr(kinds, "MAX_VALUES", 2)
    table = pa.table({"brand": [*["a"] * 5, *["b"] * 3, *["c"] * 3, "d"]})
    found, report = fit_table(table)
    assert found[0].values == ("a", "b")
    assert (report["brand"]["values"], report["brand"]["known"]) == (4, 2)
    assert "4 values (2 known, the others are unknown)" in kinds.describe_feature(report["brand"])
    encoded, unknown = encode_table(found, table)
    assert encoded["brand"].tolist() == [2] * 5 + [3] * 3 + [1] * 4
    assert unknown == {"brand": 4}


def test_many_values_of_their_own_are_left_out(monkeypatch):
    monkeypatch.setattr(kinds, "MAX_VALUES", 2)
    told = tell_kind("code", column([f"x{i // 2}" for i in range(N)]))
    assert told.reason == "left out: the 2 most frequent values stand in 3.3% of the rows"
    assert tell_kind("code", column([f"x{i}" for i in range(1_000_000)])).kind is None


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.uint8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(9, 2), pa.decimal256(9, 2)),
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_typed_numbers(type_):
    values = pa.array([3, None, 250]).cast(pa.int16() if pa.types.is_floating(type_) else pa.int64())
    typed = pa.array([str(v) if v.as_py() else None for v in values]).cast(pa.string())
    if pa.types.is_binary(type_) or pa.types.is_dictionary(type_) or "string" in str(type_):
        typed = typed.dictionary_encode() if pa.types.is_dictionary(type_) else typed.cast(type_)
    elif pa.types.is_float16(type_):
        typed = pa.array(np.array([3, np.nan, 250], np.float16))
    else:
        typed = pa.array([None if v.as_py() is None else decimal.Decimal(v.as_py()) for v in values]).cast(
            pa.decimal128(9, 2)
        )
        typed = typed.cast(type_)
    got = raw_column("x", "number", column(typed))
    np.testing.assert_array_equal(got, np.float32([3, np.nan, 250]))
    assert tell_kind("x", column(typed)).kind == "number"
    assert raw_column("x", "category", column(typed)).tolist() == ["3", "", "250"]


@pytest.mark.parametrize(
    "values",
    [
        column([datetime.date(1969, 12, 31), None], pa.date32()),
        column([datetime.date(1969, 12, 31), None], pa.date64()),
        *(column([datetime.datetime(1969, 12, 31), None], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        column([datetime.datetime(1969, 12, 31), None], pa.timestamp("us", "UTC")),
        column([datetime.datetime(1969, 12, 31, tzinfo=datetime.UTC), None], pa.timestamp("ms", "Asia/Tokyo")),
        column(["1969-12-31", ""]),
        column(["1969-12-31T02:00:00+02:00", "NaT"]),
        column(["1969-12-31 02:00:00 +02:00", None]),
    ],
)
def test_dates_are_days_whatever_their_type(values, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    np.testing.assert_array_equal(raw_column("at", "date", values), np.float32([-1, np.nan]))


def test_numbers_that_are_too_large_or_infinite():
    got = raw_column("x", "number", column([float("inf"), float("nan"), -1e300, 1.0]))
    assert np.isnan(got).tolist() == [True, True, False, False]
    assert np.isfinite(got[2:]).all()
    assert np.isfinite(raw_column("x", "number", column(["1e300", "NaN"]))[0])
    with pytest.raises(ValueError, match="Column `x`, row 2: 'inf' is no number"):
        raw_column("x", "number", column(["1", "inf"]))
    with pytest.raises(ValueError, match="Column `x`, row 1: '0x10' is no number"):
        raw_column("x", "number", column(["0x10"]))
    feature = fit_feature("x", "number", column([1e300, -1e300, 0.0]))
    assert np.isfinite([feature.mean, feature.stddev]).all()


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16()), pa.list_(pa.float32(), 2)),
        pa.list_(pa.decimal128(4, 1)),
    ],
)
def test_typed_vectors(type_):
    rows = [[0.5, 1.5], None, [2.5, 3.5]]
    number = type_.value_type
    if pa.types.is_decimal(number):
        rows = [row and [decimal.Decimal(v) for v in row] for row in rows]
    elif pa.types.is_float16(number):
        rows = [row and np.float16(row) for row in rows]
    values = pa.array(rows, type_)
    got = raw_column("v", "vector", column(values))
    np.testing.assert_array_equal(got, np.float32([[0.5, 1.5], [0, 0], [2.5, 3.5]]))
    assert tell_kind("v", column(values)).kind == "vector"


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.large_string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2), pa.list_(pa.string_view())],
)
def test_typed_lists(type_):
    values = pa.array([["b", "a"], None, ["a", None]], type_)
    assert raw_column("v", "multi", column(values)).tolist() == [["b", "a"], ["", ""], ["a", ""]]
    assert fit_feature("v", "multi", column(values)).values == ("a", "b")


def test_only_the_first_values_of_a_long_list_are_read(monkeypatch):
    monkeypatch.setattr(raw_columns, "MAX_LIST", 2)
    assert raw_column("v", "multi", column([["a", "b", "c"], ["d"]])).tolist() == [["a", "b"], ["d", ""]]
    assert raw_column("v", "multi", column(["a|b|c", None]), separator="|").tolist() == [["a", "b"], ["", ""]]


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize(
    "values",
    [pa.nulls(3), pa.nulls(0), pa.nulls(2, pa.string()), pa.nulls(2, pa.list_(pa.null())), pa.nulls(2, pa.date32())],
)
def test_columns_without_a_value(kind, values):
    if values.type == pa.list_(pa.null()) and kind not in ("multi", "vector"):
        return
    if kind == "multi" and values.type == pa.date32():
        values = values.cast(pa.string())
    feature = fit_feature("x", kind, column(values))
    encoded, _ = encode_table([feature], pa.table({"x": values}))
    assert len(encoded["x"]) == len(values)
    assert not np.nan_to_num(encoded["x"]).any()
    missing, _ = encode_table([feature], pa.table({"y": pa.nulls(len(values))}))
    np.testing.assert_array_equal(missing["x"], encoded["x"])


def catalogue(num: int = N) -> pa.Table:
    return pa.table(
        {
            "item id": [f"i{i}" for i in range(num)],
            "title": TITLES[:num],
            "a.b": of("x", " y ", None)[:num],
            "träger": of("Öl", "O\u0308l", "油", "🛢️")[:num],
            "tags": of("a|b", "b", None, "c|é")[:num],
            "price": [f"{i * 1.5}" for i in range(num)],
            "released": [date(i) for i in range(num)],
            "vector": [[float(i), 1.5] if i % 3 else None for i in range(num)],
            "sku": [f"S-{i}" for i in range(num)],
        }
    )


LOG = pa.table({"user": [f"u{i // 10}" for i in range(N)], "item": [f"i{i}" for i in range(N)]})


def prepared(out=None, items=None, log=LOG, **options) -> PreparedData:
    return prepare(
        log, out, items=catalogue() if items is None else items, items_options={"item": "item id"}, **options
    )


def test_features_of_prepared_data(tmp_path):
    pq.write_table(catalogue(), tmp_path / "items.parquet")
    data = prepared(tmp_path / "data", tmp_path / "items.parquet")
    kinds_of = {f.name: f.kind for f in data.features["items"]}
    assert kinds_of == {
        "title": "text",
        "a.b": "category",
        "träger": "category",
        "tags": "multi",
        "price": "number",
        "released": "date",
        "vector": "vector",
    }
    report = data.manifest["item_features"]
    assert report["sku"]["kind"] is None
    assert report["released"]["range"] == ["1969-12-01", "1970-03-30"]
    assert (report["a.b"]["values"], report["a.b"]["missing"]) == (2, round(1 / 3, 4))
    assert report["tags"]["missing"] == 0.25
    assert report["vector"] == {"kind": "vector", "width": 2, "missing": round(1 / 3, 4), "reason": "lists of numbers"}
    in_memory = prepared()
    assert in_memory.features == data.features
    assert in_memory.save(tmp_path / "saved").features == data.features
    encoded, unknown = encode_table(data.features["items"], data.items)
    assert {name: len(values) for name, values in encoded.items()} == dict.fromkeys(kinds_of, N)
    assert unknown == {"a.b": 0, "träger": 0, "tags": 0}
    assert encoded["a.b"][:3].tolist() == [2, 3, 0]
    assert len(set(encoded["träger"][:4].tolist())) == 4  # values are compared byte by byte


def test_items_without_a_row_are_missing():
    data = prepared(items=pa.concat_tables([catalogue().slice(20), catalogue().slice(20)]))
    encoded, _ = encode_table(data.features["items"], data.items)
    assert np.isnan(encoded["price"][:20]).all()
    assert not encoded["title"][:20].any()
    assert not encoded["tags"][:20].any()
    assert data.manifest["item_features"]["price"]["missing"] == round(20 / N, 4)


@pytest.mark.parametrize("num", [0, 1])
def test_catalogues_of_no_row_and_of_one(num, tmp_path):
    data = prepared(tmp_path / "data", catalogue().slice(0, num))
    assert data.features == {}
    assert {entry["kind"] for entry in data.manifest["item_features"].values()} == {None}
    assert not (tmp_path / "data" / "features.json").exists()
    only = prepared(items=catalogue(), log=LOG.slice(0, 1))
    assert only.num_items == 1
    assert only.features == {}


def test_folders_without_features_open(tmp_path):
    data = prepare(LOG, tmp_path / "data")
    assert (data.features, data.manifest["item_features"]) == ({}, {})


def test_the_command_line(tmp_path):
    pq.write_table(LOG, tmp_path / "log.parquet")
    items = (
        catalogue()
        .rename_columns(["item_id", *catalogue().column_names[1:]])
        .append_column("c=d", pa.array(of("1|2", "2")))
    )
    pq.write_table(items, tmp_path / "items.parquet")

    def run(*arguments) -> str:
        result = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    options = [
        tmp_path / "log.parquet",
        "--out",
        tmp_path / "data",
        "--items",
        tmp_path / "items.parquet",
        "--overwrite",
    ]
    shown = run(*options, "--item-feature", "sku", "--item-feature", "price=none", "--item-feature", "c=d=multi:|")
    assert "item column 'title': text, 64 numbers (titles)" in shown
    assert "item column 'price': left out: named so" in shown
    assert "item column 'sku': category, 120 values (0 known, the others are unknown) (values)" in shown
    assert "item column 'c=d': multi between '|', 2 values (named)" in shown
    assert "item column 'released': date, 1969-12-01 to 1970-03-30 (dates)" in shown
    assert json.loads(run(*options, "--json"))["item_features"]["sku"]["kind"] is None
    assert "price: number, 0 to 178.5 (numbers)" in run("--describe", tmp_path / "data")
    assert json.loads(run("--describe", tmp_path / "data", "--json"))["item features"]["tags"].startswith(
        "multi between '|'"
    )


@pytest.fixture
def sentence_encoder(monkeypatch):
    """A package `sentence-transformers` whose vectors are lengths."""

    class SentenceTransformer:
        def __init__(self, name):
            if name != "lengths":
                raise OSError(f"{name} is no model\nand more")

        def encode(self, texts):
            return [[float(len(text)), 1.0, 2.0] for text in texts]

    module = types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    raw_columns._sentence_encoder.cache_clear()


def test_a_sentence_encoder(sentence_encoder):
    data = prepared(text_encoder="lengths", item_features={"sku": "text"})
    title, sku = (f for f in data.features["items"] if f.name in ("title", "sku"))
    assert title == Feature("title", "vector", width=3, encoder="lengths")
    assert sku.kind == "vector"
    encoded, _ = encode_table([title], pa.table({"title": ["abc", None]}))
    assert encoded["title"].tolist() == [[3, 1, 2], [0, 0, 0]]
    assert data.manifest["item_features"]["title"]["encoder"] == "lengths"
    with pytest.raises(ValueError, match="The text encoder `other` cannot be loaded: other is no model$"):
        prepared(text_encoder="other")


def test_a_sentence_encoder_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    raw_columns._sentence_encoder.cache_clear()
    with pytest.raises(
        ValueError, match="`some` encodes column `title` with the package sentence-transformers, which is not"
    ):
        prepared(text_encoder="some")


TEXTS = ["Red SHOE, new!", "", "ＦＵＬＬ Ǆ été e\u0301te\u0301", "流浪地球 2", "🙂 only", "red shoe new"]


def test_text_in_a_served_model_and_in_python(tmp_path):
    data = prepared()
    encoder = FeatureEncoder(data.features["items"])
    specs = encoder.signature()
    assert [spec.name for spec in specs] == ["title", "a_b", "tru00e4ger", "tags", "price", "released", "vector"]
    table = data.items
    raw = {f.name: raw_column(f.name, f.kind, table[f.name], separator=f.separator) for f in encoder.features}
    served = tf.Module()
    served.encoder = encoder
    inputs = {f"x{n}": tf.TensorSpec(spec.shape, spec.dtype, f"x{n}") for n, spec in enumerate(specs)}
    names = dict(zip(inputs, raw, strict=True))
    back = {name: key for key, name in names.items()}
    served.encode = tf.function(
        lambda x: {back[n]: v for n, v in encoder({names[k]: v for k, v in x.items()}).items()}, [inputs]
    )
    tf.saved_model.save(served, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    got = loaded.encode({key: tf.constant(raw[name]) for key, name in names.items()})
    expected, _ = encode_table(encoder.features, table)
    for key, name in names.items():
        np.testing.assert_array_equal(got[key].numpy(), expected[name])
    title = next(f for f in encoder.features if f.name == "title")
    vectors = encode_table([title], pa.table({"title": ["red shoe", "RED  shoe!", "", None, "zzz"]}))[0]["title"]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0, 0, 0])


def test_two_processes_learn_the_same(tmp_path):
    code = f"""
import hashlib, pyarrow as pa
from tfrec.data.features import fit_feature
from tfrec.data.text import ngrams
import tensorflow as tf
feature = fit_feature("title", "text", pa.chunked_array([{TITLES!r}]))
print(hashlib.md5(feature.table.tobytes()).hexdigest(), ngrams(tf.constant({TEXTS!r})).to_list())
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_words_of_any_script():
    from tfrec.data.text import ngrams

    lengths = ngrams(tf.constant(TEXTS)).row_lengths().numpy().tolist()
    # n words give 2n - 1 n-grams; combining marks stay in their word, and each Chinese letter is a word
    assert lengths == [5, 0, 7, 9, 1, 5]
    first, last = ngrams(tf.constant([TEXTS[0], TEXTS[5]])).to_list()
    assert first == last


def test_similar_titles_have_similar_vectors():
    rng = np.random.default_rng(0)
    topics = [["space", "rocket", "planet", "star"], ["love", "paris", "wedding", "kiss"]]
    titles = [" ".join(rng.choice(topics[i % 2], 3)) for i in range(200)]
    feature = fit_feature("title", "text", column(titles))
    vectors = encode_table([feature], pa.table({"title": titles}))[0]["title"]
    similarity = vectors @ vectors.T
    is_same = (np.arange(200)[:, None] - np.arange(200)) % 2 == 0
    assert similarity[is_same].mean() > similarity[~is_same].mean() + 0.2


def test_features_are_stored_whole(tmp_path):
    found = prepared().features
    save_features(tmp_path, found | {"users": [Feature("age", "number", mean=30.0, stddev=3.0, is_log=True)]})
    loaded = load_features(tmp_path)
    assert loaded["items"] == found["items"]
    assert loaded["users"][0].spec == {"kind": "number", "mean": 30.0, "stddev": 3.0, "is_log": True}
    table = next(f.table for f in found["items"] if f.kind == "text")
    np.testing.assert_array_equal(next(f.table for f in loaded["items"] if f.kind == "text"), table)
    assert load_features(tmp_path / "none") == {}


def test_frames_of_pandas():
    frame = pd.DataFrame(
        {
            "item id": [f"i{i}" for i in range(N)],
            "genre": pd.Categorical(of("a", "b")),
            "tags": of(["x", "y"], ["y"], None),
            "age": pd.array(of(1, 2, None), "Int64"),
            "at": pd.date_range("1960-01-01", periods=N, freq="D", tz="Europe/Berlin"),
            "vector": [np.array([i, 0.5]) for i in range(N)],
        }
    )
    found = {f.name: f.kind for f in prepared(items=frame).features["items"]}
    assert found == {"genre": "category", "tags": "multi", "age": "category", "at": "date", "vector": "vector"}


def test_numbers_of_a_long_tail_are_read_on_a_log_scale():
    assert fit_feature("price", "number", column([1.0] * 99 + [1e6])).is_log
    assert not fit_feature("year", "number", column(list(range(1990, 2010)))).is_log


def test_kinds_of_the_public_data(tmp_path, monkeypatch):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    flags = [i % 2 for i in range(19)]
    films = [
        f"{i}|Film, The {i} (19{80 + i % 9})|0{1 + i % 9}-Feb-1995||x|{'|'.join(map(str, flags))}\n"
        for i in range(1, 40)
    ]
    write(folder / "u.item", "".join(films) + f"40|unknown||||{'|'.join(map(str, flags[::-1]))}\n")
    write(folder / "u.genre", "".join(f"genre{i}|{i}\n" for i in range(19)))
    write(folder / "u.data", "".join(f"{i % 4}\t{i}\t{i % 5}\t{1000 + i}\n" for i in range(1, 41)))
    monkeypatch.setenv("TFREC_DATA_DIR", str(tmp_path))
    data = prepare_dataset("movielens-100k")
    assert {f.name: f.kind for f in data.features["items"]} == {
        "title": "text",
        "year": "number",
        "genres": "multi",
        "released": "date",
    }
    columns = data.items.to_pydict()
    assert (columns["year"][0], columns["released"][0]) == (1981, datetime.date(1995, 2, 2))
    assert (columns["year"][-1], columns["released"][-1], columns["title"][-1]) == (None, None, "unknown")
    from tfrec.data.datasets.movielens import movielens_100k

    assert set(movielens_100k()) == {"events", "items"}
    write(folder / "u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n")
    tables = movielens_100k()
    assert tables["users"].to_pydict() == {
        "user_id": ["1", "2"],
        "age": [24, 53],
        "gender": ["M", "F"],
        "occupation": ["technician", "other"],
    }
    assert tables["events"]["rating"].to_pylist()[:2] == [1.0, 2.0]
    assert prepare_dataset("movielens-100k").fingerprint == data.fingerprint


ATOMS = (
    *(
        ["NA", "nan", "", " ", "x y", "02", "1.5", "1e400", "0x1", "a|b", "||", "a, b", "2020-02-30"],
        ["1960-05-05T01:02Z"],
    ),
    *(
        ["99999-01-01", "2020-01-01 25:00"],
        [0, 2**31, -1.5, 1e300, float("nan"), float("inf")],
        [0, 2**62],
        [True, False],
    ),
    *(
        [datetime.date(1, 1, 1), datetime.date(9999, 12, 31)],
        [datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)],
    ),
    *([decimal.Decimal("2.50")], [b"a", b"\xff", b"12"], [datetime.time(3)], [datetime.timedelta(3)]),
)


@pytest.mark.parametrize("seed", range(4))
def test_random_columns_are_told_or_named_in_an_error(seed):
    rng = np.random.default_rng(seed)
    for number in range(30):
        atoms, nulls, num_rows = ATOMS[rng.integers(len(ATOMS))], rng.choice([0, 0.3, 1]), rng.choice([0, 1, 2, 50])

        def value(make, nulls=nulls):
            return None if rng.random() < nulls else make()

        def atom(atoms=atoms, value=value):
            return value(lambda: atoms[rng.integers(len(atoms))])

        shapes = [
            atom,
            lambda: value(lambda: [atom() for _ in range(rng.integers(3))]),
            lambda: [[atom()]],
            lambda: {"a": atom()},
        ]
        values = pa.array([shapes[number % len(shapes)]() for _ in range(num_rows)])
        if number % len(shapes) == 0 and rng.random() < 0.3:
            values = values.dictionary_encode()
        table = pa.table({"x": pa.chunked_array([values[:1], values[1:]])})
        for named in (None, *({"x": kind} for kind in ("auto", *kinds.KINDS))):
            try:
                found, report = fit_table(table, named)
            except ValueError as error:
                assert "olumn `x`" in str(error) or "column 'x'" in str(error), error  # noqa: PT017
                continue
            json.dumps(report, allow_nan=False)
            assert kinds.describe_feature(report["x"])
            for encoded in encode_table(found, table)[0].values():
                assert len(encoded) == num_rows
                assert not np.isinf(encoded).any()
