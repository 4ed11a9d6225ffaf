import itertools
import tracemalloc

import numpy as np
import pytest

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import REPEATS, LeaveLastOut, keeps_seen


def test_the_last_is_test_the_second_last_validation_the_rest_training():
    data = PreparedData.from_histories([["a", "b", "c", "d"], ["x"], ["x", "y"], ["p", "q", "r"]])
    split = LeaveLastOut(data)
    names = data.vocabulary.decode
    assert split.users.tolist() == [0, 3]
    assert split.num_short == 2
    assert names(split.targets("test")) == ["d", "r"]
    assert names(split.targets("validation")) == ["c", "q"]
    starts, ends = split.histories("test")
    assert [names(data.item_index[a:b]) for a, b in zip(starts, ends, strict=True)] == [["a", "b", "c"], ["p", "q"]]
    item_index, offsets = split.train_part()
    # users too short to be evaluated give all their events to training
    assert [names(item_index[a:b]) for a, b in itertools.pairwise(offsets)] == [
        ["a", "b"],
        ["x"],
        ["x", "y"],
        ["p"],
    ]


def test_targets_that_the_user_had_before_are_counted():
    data = PreparedData.from_histories([["a", "b", "c", "a"], ["a", "a"], ["b", "b", "c"], ["c", "b", "b"]])
    split = LeaveLastOut(data)
    assert split.is_repeat("test").tolist() == [True, False, True]
    assert split.is_repeat("validation").tolist() == [False, True, False]


def test_repeats_are_allowed_or_not():
    assert [keeps_seen(repeats) for repeats in REPEATS] == [False, True]
    with pytest.raises(ValueError, match="`repeats` must be one of exclude, allow. Received: 'sometimes'"):
        keeps_seen("sometimes")


def test_training_holds_no_target():
    rng = np.random.default_rng(0)
    data = PreparedData.from_histories([[f"{u}-{i}" for i in range(n)] for u, n in enumerate(rng.integers(3, 9, 50))])
    split = LeaveLastOut(data)
    train = set(split.train_part()[0].tolist())
    assert not train & set(split.targets("test").tolist())
    assert not train & set(split.targets("validation").tolist())


def test_a_final_model_trains_on_everything():
    data = PreparedData.from_histories([["a", "b", "c", "d"], ["x"], ["x", "y"]])
    item_index, offsets = LeaveLastOut(data, num_held_out=0).train_part()
    np.testing.assert_array_equal(item_index, data.item_index)
    np.testing.assert_array_equal(offsets, data.offsets)


def test_an_unknown_split_is_refused():
    split = LeaveLastOut(PreparedData.from_histories([["a", "b", "c"]]))
    with pytest.raises(ValueError, match=r"`part` must be one of test, validation. Received: 'train'"):
        split.histories("train")


def test_a_sample_has_the_targets_and_the_newest_of_the_histories(data):
    split = LeaveLastOut(data)
    sample = LeaveLastOut(split.sample(100, max_length=7))
    assert len(sample.users) == 100
    chosen = np.linspace(0, len(split.users) - 1, 100).astype(int)
    for part in ("validation", "test"):
        np.testing.assert_array_equal(sample.targets(part), split.targets(part)[chosen])
        for (a, b), (c, d) in zip(
            zip(*sample.histories(part), strict=True),
            zip(*(x[chosen] for x in split.histories(part)), strict=True),
            strict=True,
        ):
            np.testing.assert_array_equal(sample.data.item_index[a:b][-7:], data.item_index[c:d][-7:])
            np.testing.assert_array_equal(sample.data.timestamp[a:b][-7:], data.timestamp[c:d][-7:])
    assert len(LeaveLastOut(split.sample(10**6, 7)).users) == len(split.users)


def test_a_large_log_gives_whole_histories_evenly():
    data = PreparedData.from_histories([[f"{u}-{i}" for i in range(5)] for u in range(12)])
    split = LeaveLastOut(data)
    item_index, offsets = split.train_part(max_events=10)
    taken = [data.vocabulary.decode(item_index[a:b]) for a, b in itertools.pairwise(offsets)]
    assert taken == [[f"{u}-{i}" for i in range(3)] for u in (0, 4, 8)]
    np.testing.assert_array_equal(split.train_part(max_events=36)[0], split.train_part()[0])


@pytest.mark.parametrize("num_held_out", [0, 2])
def test_counts_of_the_training_part(num_held_out):
    data = PreparedData.from_histories(["abca", "ab", "bcbbc", "c"])
    split = LeaveLastOut(data, num_held_out)
    expected = np.bincount(split.train_part()[0], minlength=5)[2:]
    np.testing.assert_array_equal(split.train_counts(), expected)


def test_the_training_part_takes_five_bytes_an_event():
    number = 1_000_000
    vocabulary = PreparedData.from_histories(["ab"]).vocabulary
    data = PreparedData(
        vocabulary, np.full(number, 2, np.int32), np.zeros(number, np.int64), np.arange(0, number + 1, 100)
    )
    split = LeaveLastOut(data)
    tracemalloc.start()
    split.train_part()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5.6 * number
