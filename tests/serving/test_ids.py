"""Ids as users pass them: the same as their text, or refused at once."""

import enum

import numpy as np
import pandas as pd
import pytest

from tfrec_serving import messages
from tfrec_serving.connection import input_arrays
from tfrec_serving.ids import filter_row, id_text
from tfrec_serving.questions import Questions


class Kind(enum.StrEnum):
    FILM = "film"


@pytest.mark.parametrize(
    "given",
    [
        ["50", "181"], (50, 181), [50.0, 181.0], np.array([50, 181]), np.array([50, 181], np.uint8), [np.float32(50), "181"],
        np.array([50.0, 181.0]), np.array(["50", "181"]), pd.Series([50, 181]), pd.Series([50, 181], dtype="Int64"),
        pd.Series([50.0, 181.0]), pd.Index(["50", "181"]), {50: 0, 181: 0}.keys(), iter([50, 181]),
    ],
)  # fmt: skip
def test_a_number_is_the_id_of_its_digits(given):
    given = list(given) if hasattr(given, "__next__") else given
    asked = [b"50", b"181"]
    recommend = Questions.recommend(given, 3, exclude=given, allow={"year": given}, deny={"tag": given}).inputs
    assert recommend["history"].tolist() == recommend["exclude"].tolist() == [asked]
    assert recommend["allow"].tolist() == [[b"year=50", b"year=181"]]
    assert recommend["deny"].tolist() == [[b"tag=50", b"tag=181"]]
    assert Questions.score(["a"], given).inputs["candidates"].tolist() == [asked]
    assert Questions.embed_items(given).inputs["item_ids"].tolist() == asked
    explain = Questions.explain(given, given).inputs
    assert (explain["history"].tolist(), explain["item_ids"].tolist()) == ([asked, asked], asked)
    assert Questions.embed_history(given).inputs["history"].tolist() == [asked]
    assert Questions.similar_items(next(iter(given))).inputs["item_ids"].tolist() == asked[:1]


def test_other_ids_stay_what_they_are():
    texts = ["0050", "5.0", " a ", "日本", "", Kind.FILM, np.str_("x"), "-7"]
    found = Questions.recommend(texts).inputs["history"][0].tolist()
    assert found == [b"0050", b"5.0", b" a ", "日本".encode(), b"", b"film", b"x", b"-7"]
    assert [id_text(v) for v in (-7, -7.0, 2**70, 0, -0.0)] == ["-7", "-7", str(2**70), "0", "0"]
    assert Questions.recommend([]).inputs["history"].shape == (1, 0)
    assert filter_row(None, "allow").shape == (1, 0)


def test_features_are_text_or_numbers():
    events = {"event type": ["view", None, float("nan")], "price": [1, None, np.float64(2.5)], "none": [None] * 3}
    events |= {"is new": [True, None, np.False_], "far": [1e39, 0, 1]}
    context = {"device": "phone", "age": 18, "place": None}
    inputs = Questions.recommend(["a", "b", "c"], events=events, context=context).inputs
    assert set(inputs) == {
        "history",
        "exclude",
        "k",
        "event_type",
        "price",
        "is_new",
        "far",
        "request_device",
        "request_age",
    }
    assert inputs["is_new"].tolist() == [[b"true", b"", b"false"]]
    assert inputs["event_type"].tolist() == [[b"view", b"", b""]]
    np.testing.assert_array_equal(inputs["price"], np.array([[1, np.nan, 2.5]], np.float32))
    assert inputs["price"].dtype == inputs["request_age"].dtype == np.float32
    assert inputs["request_device"].tolist() == [b"phone"]
    assert Questions.score(["a"], ["b"], context=context).inputs["request_age"].tolist() == [18.0]
    assert Questions.embed_history(["a"], events={"price": (3,)}).inputs["price"].tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"events": {"kind": ["view"]}},
            ValueError,
            "`events`: 'kind' has a value for each item: shape (2,). Received: shape (1,)",
        ),
        (
            {"events": {"kind": "ab"}},
            ValueError,
            "`events`: 'kind' has a value for each item: shape (2,). Received: text",
        ),
        (
            {"events": {"kind": ["view", 1]}},
            TypeError,
            "The values of 'kind' are text, or numbers, or None. Received: 1 (int)",
        ),
        (
            {"context": {"is_new": b"true"}},
            TypeError,
            "The values of 'is_new' are text, or numbers, or None. Received: b'true' (bytes)",
        ),
        ({"events": ["view"]}, TypeError, "`events` is a dict by the names of columns. Received: ['view']"),
        ({"context": "phone"}, TypeError, "`context` is a dict by the names of columns. Received: 'phone'"),
    ],
)
def test_features_that_are_refused(given, error, message):
    with pytest.raises(error) as refused:
        Questions.recommend(["a", "b"], **given)
    assert message in str(refused.value)


WRONG = [
    (True, TypeError, "is text, such as '50', or a whole number. Received: True (bool)"),
    (np.bool_(True), TypeError, "(bool)"),
    (None, TypeError, "Received: None (NoneType)"),
    (pd.NA, TypeError, "NAType"),
    (b"50", TypeError, "Received: b'50' (bytes)"),
    (["50"], TypeError, "Received: ['50'] (list)"),
    (np.array([50]), TypeError, "(ndarray)"),
    (float("nan"), ValueError, "that is a number must be whole. Received: nan"),
    (np.float32("inf"), ValueError, "must be whole. Received: inf"),
    (1.5, ValueError, "must be whole. Received: 1.5"),
    (1e300, ValueError, "this large is not exact as a float: pass it as text. Received: 1e+300"),
    (float(2**53), ValueError, "this large is not exact"),
]


@pytest.mark.parametrize(("value", "error", "message"), WRONG, ids=repr)
def test_what_is_no_id_is_refused_wherever_it_is_given(value, error, message):
    calls = {
        "history": lambda: Questions.recommend(["a", value]),
        "exclude": lambda: Questions.recommend(["a"], exclude=[value]),
        "candidates": lambda: Questions.score(["a"], [value]),
        "item_ids": lambda: Questions.embed_items([value]),
        "item_id": lambda: Questions.similar_items(value),
        "allow['year']": lambda: Questions.recommend(["a"], allow={"year": [value]}),
        "deny['year']": lambda: Questions.recommend(["a"], deny={"year": [value]}),
    }
    for name, call in calls.items():
        with pytest.raises(error) as refused:
            call()
        assert message in str(refused.value)
        assert f"An id in `{name}`" in str(refused.value)
    if not isinstance(value, bytes):  # arrays of a signature may hold any bytes
        array = np.empty((1, 1), object)
        array[0, 0] = value
        with pytest.raises(error, match="An id"):
            input_arrays({"history": array})
        with pytest.raises(error, match="An id"):
            messages.fill_tensor(messages.PredictRequest().inputs.add(key="x").value, array)


@pytest.mark.parametrize("value", ["50", b"50", 50, None, {"50": 1}])
def test_a_list_of_ids_is_a_list(value):
    for call in (
        lambda: Questions.recommend(value),
        lambda: Questions.recommend(["a"], exclude=value),
        lambda: Questions.recommend(["a"], allow={"year": value}),
        lambda: Questions.score(["a"], value),
        lambda: Questions.embed_items(value),
        lambda: Questions.explain(["a"], value),
    ):
        with pytest.raises(TypeError, match="is a list of ids, such as"):
            call()
    with pytest.raises(TypeError, match="`deny` is a dict of lists"):
        Questions.recommend(["a"], deny=["year=50"])
    with pytest.raises(TypeError, match="An attribute is text"):
        Questions.recommend(["a"], deny={None: ["50"]})


def test_k_is_a_whole_number():
    assert Questions.recommend(["a"], np.int64(3)).inputs["k"].tolist() == [3]
    for k in (2.5, "3", True, None, np.bool_(1)):
        with pytest.raises(TypeError, match="`k` is a whole number"):
            Questions.recommend(["a"], k)
    with pytest.raises(ValueError, match="`k` is a number of 32 bits. Received: 2147483648"):
        Questions.similar_items("a", 2**31)
