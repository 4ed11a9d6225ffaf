"""Which events are targets and how much they count, from short texts."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from tfrec.data.batches import PackedBatches
from tfrec.data.event_rules import event_weights, is_target
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut

LOG = pa.table(
    {
        "user": ["u"] * 8,
        "item": list("abcdefgh"),
        "type": ["view", "buy", "view", "cart", None, "cart", "buy", "once"],
        "price": [1.0, 2.5, None, 4.0, 0.1, 6.0, 7.0, 8.0],
        "stars": ["3", "5", "3", "5", "1", None, "1", "9"],
        "a=b": ["x", "x", "y", "y", "x", "x", "y", "y"],
    }
)


@pytest.fixture(scope="module")
def data() -> PreparedData:
    kinds = {"type": "category", "price": "number", "stars": "category", "a=b": "category"}
    return prepare(LOG, event_features=kinds)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["type=buy"], [1, 6]),
        (["type = buy, cart"], [1, 3, 5, 6]),
        (["type!=view"], [1, 3, 5, 6, 7]),  # a missing value is no target
        (["price>=4"], [3, 5, 6, 7]),
        (["price>4"], [5, 6, 7]),
        (["price<2.5"], [0, 4]),
        (["price<=2.5"], [0, 1, 4]),
        (["price=0.1,7"], [4, 6]),
        (["price!=1,2.5"], [3, 4, 5, 6, 7]),
        (["stars>=3"], [0, 1, 2, 3, 7]),  # a category of numbers
        (["stars=5"], [1, 3]),
        (["a=b=y"], [2, 3, 6, 7]),  # a name with a sign
        (["type=buy,cart", "price>=4"], [3, 5, 6]),
    ],
)
def test_rules_hold_for_these_events(data, rules, expected):
    assert np.flatnonzero(is_target(data, rules)).tolist() == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("tpye=buy", "--target 'tpye=buy': the data has no column 'tpye' of events. Did you mean 'type'. Its columns: type, price"),
        ("type=bye", "--target 'type=bye': column 'type' has no value 'bye'. Did you mean 'buy'. Its values: buy, cart, view, o"),
        ("type>=3", "--target 'type>=3': column 'type' is a category with values such as 'buy', and no column of numbers"),
        ("price>=dear", "--target 'price>=dear': 'dear' is no number"),
        ("price>=1,2", "--target 'price>=1,2': >= takes one number. Received: '1,2'"),
        ("type", "--target 'type' is no rule. Pass one such as event_type=purchase or rating>=3"),
        ("type=", "--target 'type=': no value follows '='"),
    ],
)  # fmt: skip
def test_wrong_targets_are_told(data, rule, message):
    with pytest.raises(ValueError, match=message):
        is_target(data, [rule])


def test_a_rare_value_of_many_is_unknown():
    log = pa.table(
        {"user": ["u"] * 42, "item": [f"i{n}" for n in range(42)], "x": [*(f"v{n}" for n in range(40)), "a", "a"]}
    )
    data = prepare(log, event_features=["x"])
    assert np.flatnonzero(is_target(data, ["x!=a"])).tolist() == list(range(40))
    with pytest.raises(ValueError, match="column 'x' has no value 'v7'.* A value of a single event is not known"):
        is_target(data, ["x=v7"])


def test_a_window_without_a_target_is_left_out():
    is_bought = [False] * 6 + [True] * 2 + [False] * 8 + [True] * 4
    log = pa.table({"user": ["u"] * 20, "item": [f"i{n}" for n in range(20)], "bought": is_bought})
    split = LeaveLastOut(prepare(log, event_features=["bought"]), targets=["bought=true"])
    options = {"max_length": 4, "batch_positions": 4, "seed": 0, "windows": True}
    found = sorted(inputs["history"][0, -1] - 2 for inputs, _, _ in PackedBatches.for_training(split, **options))
    plain = sorted(
        inputs["history"][0, -1] - 2 for inputs, _ in PackedBatches.for_training(LeaveLastOut(split.data), **options)
    )
    assert (found, plain) == ([8, 16], [0, 4, 8, 12, 16])


def test_weights_are_numbers_or_those_of_values(data):
    np.testing.assert_array_equal(event_weights(data, ["price"]), np.float32([1, 2.5, 1, 4, 0.1, 6, 7, 8]))
    np.testing.assert_array_equal(event_weights(data, ["stars"]), [3, 5, 3, 5, 1, 1, 1, 9])
    by_type = event_weights(data, ["type:buy=3, view=0"])
    np.testing.assert_array_equal(by_type, [0, 3, 0, 1, 1, 1, 3, 1])
    both = event_weights(data, ["price", "type:buy=3,view=0"])
    np.testing.assert_array_equal(both, by_type * event_weights(data, ["price"]))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("prise", "--weight 'prise': the data has no column 'prise' of events. Did you mean 'price'"),
        ("type", "--weight 'type': column 'type' is a category with values such as 'buy', and no column of numbers"),
        ("type:bye=3", "--weight 'type:bye=3': column 'type' has no value 'bye'. Did you mean 'buy'"),
        ("type:buy", "--weight 'type:buy': 'buy' is not VALUE=WEIGHT, such as purchase=3"),
        ("type:buy=dear", "--weight 'type:buy=dear': 'dear' is no number"),
        ("type:buy=-1", "--weight 'type:buy=-1': a weight cannot be negative. Received: -1, in column 'type'"),
        ("price:buy=1", "--weight 'price:buy=1': 'price' is a column of numbers, which has no values to weigh"),
        ("type=buy", "--weight 'type=buy': .*type=buy' of events"),
    ],
)  # fmt: skip
def test_wrong_weights_are_told(data, rule, message):
    with pytest.raises(ValueError, match=message):
        event_weights(data, [rule])


def test_a_negative_number_is_no_weight():
    data = prepare(
        LOG.select(["user", "item"]).append_column("n", pa.array([1.0] * 7 + [-0.5])), context={"n": "number"}
    )
    with pytest.raises(ValueError, match="--weight 'n': a weight cannot be negative. Received: -0.5, in column 'n'"):
        event_weights(data, ["n"])


def test_data_without_columns_of_events_says_so():
    with pytest.raises(
        ValueError, match="the data has no column 'type' of events. Its columns: none. `tfrec prepare --event-fe"
    ):
        LeaveLastOut(PreparedData.from_histories(["abc"]), targets=["type=buy"])


def shop(*histories: str) -> PreparedData:
    """Events `a`, `b`, ...: an upper letter is a purchase."""
    events = [
        (f"u{u}", letter.lower(), "buy" if letter.isupper() else "view")
        for u, h in enumerate(histories)
        for letter in h
    ]
    users, items, types = (list(column) for column in zip(*events, strict=True))
    log = pa.table({"user": users, "item": items, "type": types, "price": np.arange(len(users)) + 1.0})
    properties = pa.table({"user": sorted(set(users)), "age": np.arange(len(set(users))) + 20.0})
    return prepare(
        log,
        event_features={"type": "category"},
        context={"price": "number"},
        users=properties,
        user_features={"age": "number"},
    )


def test_the_last_targets_are_held_out_and_histories_hold_every_kind():
    data = shop("aBcDeFg", "AbC", "abcd", "aBC", "ABc", "abCd", "aBBcd")
    split = LeaveLastOut(data, targets=["type=buy"])
    decode = data.vocabulary.decode
    # of u1 and u4 nothing stands before the second last purchase, u2 has none, u5 one
    assert split.users.tolist() == [0, 3, 6]
    assert split.num_short == 4
    found = {
        part: [
            ("".join(decode(data.item_index[a:b])), decode(data.item_index[b : b + 1])[0])
            for a, b in zip(*split.histories(part), strict=True)
        ]
        for part in ("validation", "test")
    }
    assert found == {
        "validation": [("abc", "d"), ("a", "b"), ("a", "b")],
        "test": [("abcde", "f"), ("ab", "c"), ("ab", "b")],
    }
    assert decode(split.targets("test")) == ["f", "c", "b"]
    item_index, offsets = split.train_part()
    parts = ["".join(decode(item_index[a:b])) for a, b in itertools.pairwise(offsets)]
    assert parts == ["abc", "abc", "abcd", "a", "abc", "abcd", "a"]
    assert split.train_counts().sum() == len(item_index)
    final = LeaveLastOut(data, 0, ["type=buy"])
    assert final.train_ends.tolist() == data.offsets[1:].tolist()
    assert final.users.tolist() == [0, 3, 6]


def test_all_events_as_targets_are_the_split_without_targets():
    rng = np.random.default_rng(0)
    data = shop(*("".join(rng.choice(list("abcdef"), n)) for n in rng.integers(1, 9, 40)))
    plain, split = LeaveLastOut(data), LeaveLastOut(data, targets=["price>0"])
    for part in ("validation", "test"):
        for ours, theirs in zip(split.histories(part), plain.histories(part), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(split.train_ends, plain.train_ends)
    np.testing.assert_array_equal(split.train_part()[0], plain.train_part()[0])
    assert plain.weights() is None
    assert split.weights().all()


def test_batches_weigh_the_event_that_is_to_be_found():
    data = shop("aBcDeFgHiJ", "aBcDe", "ace")
    split = LeaveLastOut(data, targets=["type=buy"])
    options = {"max_length": 8, "batch_positions": 32, "seed": 0}
    batches = PackedBatches.for_training(split, **options)
    for inputs, target, weight in batches:
        is_purchase = np.isin(
            np.vectorize(lambda i: data.vocabulary.decode([i])[0] if i > 1 else "")(target), list("bdfh")
        )
        np.testing.assert_array_equal(weight, (inputs["is_real"] & is_purchase).astype(np.float32))
    weighed = PackedBatches.for_training(split, **options, weights=["type:buy=3"])
    assert {float(w) for *_, weight in weighed for w in weight.flat} == {0.0, 3.0}
    assert len(next(iter(PackedBatches.for_training(LeaveLastOut(data), **options)))) == 2
    without = PackedBatches.for_training(LeaveLastOut(data), **options, weights=["price"])
    assert sum(weight.sum() for *_, weight in without) > 0
    for batch, by_tensorflow in zip(weighed, weighed.dataset(), strict=True):
        assert len(batch) == len(by_tensorflow) == 3
    weighed.epoch = 0
    swapped = PackedBatches.for_training(LeaveLastOut(data, targets=["type=buy"]), **options, reorder_rate=1.0)
    for _, target, weight in swapped:  # a weight goes with its target
        letters = [data.vocabulary.decode([i])[0] if i > 1 else "" for i in target.flat]
        assert [w > 0 for w in weight.flat] == [letter in set("bdfh") for letter in letters]


def test_a_sample_keeps_targets_columns_and_properties_but_no_ids():
    data = shop("abcdefgHijKlm", "aBCd", "abcdBCabc")
    targets = ["type=buy"]
    split = LeaveLastOut(data, targets=targets)
    sample = split.sample(10, max_length=3)
    again = LeaveLastOut(sample, targets=targets)
    for part in ("validation", "test"):
        np.testing.assert_array_equal(again.targets(part), split.targets(part))
        for (a, b), (c, d) in zip(
            zip(*split.histories(part), strict=True), zip(*again.histories(part), strict=True), strict=True
        ):
            np.testing.assert_array_equal(data.item_index[max(a, b - 3) : b], sample.item_index[max(c, d - 3) : d])
            assert data.event_columns["price"][b] == sample.event_columns["price"][d]
    assert sample.users["user_id"].to_pylist() == ["0", "1", "2"]
    assert sample.user_columns["age"].tolist() == data.user_columns["age"].tolist()
    assert len(sample.item_index) < len(data.item_index)
