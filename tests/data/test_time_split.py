"""The split by time, against a slow count of events."""

import itertools

import numpy as np
import pytest

from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.time_split import TimeSplit, make_split

DAY = 86_400


@pytest.fixture(scope="module")
def log():
    """60 users with 1 to 12 events in 100 days, in order of time."""
    rng = np.random.default_rng(0)
    histories = [[f"i{i}" for i in rng.integers(0, 30, rng.integers(1, 13))] for _ in range(60)]
    data = PreparedData.from_histories(histories)
    for start, end in itertools.pairwise(data.offsets):
        data.timestamp[start:end] = 1_700_000_000 + np.sort(
            rng.integers(rng.integers(0, 99 * DAY), 100 * DAY, end - start)
        )
    return data


def slow(data, start, end):
    """`(user, history, targets)` of the events in `start <= time < end`, one user at a time."""
    for user, (first, last) in enumerate(itertools.pairwise(data.offsets)):
        events = range(first, last)
        targets = list(dict.fromkeys(data.item_index[e] for e in events if start <= data.timestamp[e] < end))
        if targets:
            yield user, [data.item_index[e] for e in events if data.timestamp[e] < start], targets


@pytest.mark.parametrize(("test", "validation"), [("10d", None), ("240h", "2w"), (0.2, 0.1), ("2024-01-31", "7d")])
def test_counts_agree_with_a_slow_reference(log, test, validation):
    split = TimeSplit(log, test, validation)
    end = log.timestamp.max() + 1
    borders = {"validation": (split.starts["validation"], split.starts["test"]), "test": (split.starts["test"], end)}
    for part, (start, stop) in borders.items():
        asked, expected = split.requests(part), list(slow(log, start, stop))
        assert asked.users.tolist() == [user for user, _, _ in expected]
        targets = [split.targets(part)[a:b].tolist() for a, b in itertools.pairwise(asked.offsets)]
        assert targets == [own for _, _, own in expected]
        histories = [log.item_index[a:b].tolist() for a, b in zip(asked.starts, asked.ends, strict=True)]
        assert histories == [history for _, history, _ in expected]
        assert split.num_new_users[part] == sum(not history for _, history, _ in expected) > 0
    is_train = log.timestamp < split.starts["validation"]
    np.testing.assert_array_equal(split.is_train(), is_train)
    np.testing.assert_array_equal(split.train_part()[0], log.item_index[is_train])
    np.testing.assert_array_equal(split.train_counts(), np.bincount(log.item_index[is_train], minlength=32)[2:])


def test_spans_shares_and_dates_name_the_same_moments(log):
    split = TimeSplit(log, "10d", "5d")
    end = log.timestamp.max() + 1
    assert (split.starts["test"], split.starts["validation"]) == (end - 10 * DAY, end - 15 * DAY)
    share = TimeSplit(log, 0.2, 0.1)
    number = [(log.timestamp >= share.starts[part]).sum() / log.num_events for part in ("test", "validation")]
    np.testing.assert_allclose(number, [0.2, 0.3], atol=0.01)
    dated = TimeSplit(log, "2024-01-31T12:00", "2024-01-21")
    assert dated.starts == {"test": 1_706_702_400, "validation": 1_705_795_200}
    assert dated.describe() == "by time: validation since 2024-01-21 00:00, test since 2024-01-31 12:00 (UTC)"


def test_only_some_events_are_targets(log):
    kind = np.random.default_rng(1).integers(0, 2, log.num_events).astype(np.float32)
    own = {"features": {"events": [Feature("bought", "number")]}, "event_columns": {"bought": kind}}
    log = PreparedData(log.vocabulary, log.item_index, log.timestamp, log.offsets, **own)
    split, whole = TimeSplit(log, "20d", targets=["bought>=1"]), TimeSplit(log, "20d")
    bought = log.item_index[(kind > 0) & (log.timestamp >= split.starts["test"])]
    assert set(split.targets("test")) == set(bought)
    assert kind[split.requests("test").targets].all()
    assert len(split.targets("test")) < len(whole.targets("test"))
    asked = split.requests("test")
    assert (np.diff(asked.offsets) > 0).all()
    np.testing.assert_array_equal(log.timestamp[asked.ends] >= split.starts["test"], True)


def test_a_sample_has_newest_histories(log):
    split = TimeSplit(log, "20d")
    asked, sample = split.requests("test"), LeaveLastOut(split.sample(1000, max_length=3))
    known = asked.ends - asked.starts >= 2  # leave-last-out needs three events
    for part, back in (("test", 0), ("validation", 1)):
        np.testing.assert_array_equal(sample.targets(part), log.item_index[asked.ends[known] - back])


def test_a_final_model_trains_on_everything(log):
    np.testing.assert_array_equal(make_split(log, "time", "9d", num_held_out=0).train_part()[0], log.item_index)


@pytest.mark.parametrize(
    ("test", "validation", "message"),
    [
        ("7 days", None, "A part of a split is a span such as 7d .* or a share in .0, 1.. Received: '7 days'"),
        (1.5, None, "Received: 1.5"),
        ("10d", "soon", "Received: 'soon'"),
        ("2024-02-01", None, "The test starts at 2024-02-01: set `validation` too"),
        ("2024-01-01", "2024-01-05", "The validation must start before the test, and the test before the last event"),
        ("2030-01-01", "7d", "The validation must start before the test, and the test before the last event"),
        ("99d", "9d", "leave nothing to train on"),
        ("", None, "`split=time` needs `test`"),
    ],
)
def test_a_part_that_cannot_be_held_out_is_refused(log, test, validation, message):
    with pytest.raises(ValueError, match=message):
        TimeSplit(log, test, validation)


def test_a_split_that_is_not_known_or_has_no_parts_is_refused(log):
    with pytest.raises(ValueError, match="`split` must be one of last, time. Received: 'weekly'"):
        make_split(log, "weekly")
    with pytest.raises(ValueError, match="`test` and `validation` are for `split=time`"):
        make_split(log, test="7d")


def test_a_log_without_times_is_refused():
    with pytest.raises(ValueError, match="The log has no times, and a split by time needs them"):
        TimeSplit(PreparedData.from_histories(["abc"]), "7d")
