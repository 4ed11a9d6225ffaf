import numpy as np
import pytest

from tfrec.data.batches import PackedBatches, pack, prepare_history, prepare_inputs
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut


@pytest.mark.parametrize("max_length", [1, 3, 7, 50])
def test_the_tensor_and_the_log_are_prepared_alike(max_length):
    rng = np.random.default_rng(0)
    histories = [rng.integers(2, 99, size=n).astype(np.int32) for n in (0, 1, 3, 7, 13)]
    ends = np.cumsum([len(h) for h in histories])
    starts = ends - [len(h) for h in histories]
    batches = PackedBatches(
        np.concatenate(histories), starts, ends, max_length=max_length, batch_positions=999, has_targets=False
    )
    packed = {}
    for members, newest, inputs, _ in batches.with_members():
        for member, place in zip(members, newest, strict=True):
            own = inputs["end"].reshape(-1) == place % batches.length + 1
            own &= np.arange(own.size) // batches.length == place // batches.length
            packed[member] = inputs["history"].reshape(-1)[own].tolist()
    # the same histories with padding and unknown ids strewn between the items
    rows = np.zeros((5, 20), np.int32)
    for row, history in enumerate(histories):
        places = np.sort(rng.choice(20, len(history), replace=False))
        rows[row] = rng.integers(0, 2, 20)
        rows[row, places] = history
    got, got_real = prepare_history(rows, max_length)
    assert sorted(packed) == [1, 2, 3, 4]
    for row, history in enumerate(histories):
        assert np.array(got)[row][np.array(got_real)[row]].tolist() == packed.get(row, [])
        assert packed.get(row, []) == history[-max_length:].tolist()


def test_truncation_keeps_the_newest():
    history, _ = prepare_history(np.array([[5, 6, 7, 8]], np.int32), max_length=2)
    assert np.array(history).tolist() == [[7, 8]]


def test_features_go_with_their_items_and_context_with_the_item_before():
    """What is dropped takes its features along; a property of the user holds everywhere."""
    history = np.array([[5, 6, 0, 1, 7, 8], [0, 0, 0, 0, 0, 9]], np.int32)
    kind = np.array([[2, 3, 9, 9, 4, 5], [9, 9, 9, 9, 9, 6]], np.int32)
    price = kind.astype(np.float32) / 10
    device, age = (
        {"device": 10 * kind},
        {"device": np.array([70, 80], np.int32), "age": np.array([1.5, np.nan], np.float32)},
    )
    prepared = prepare_inputs(
        history, 3, events={"kind": kind, "price": price}, event_context=device, request_context=age
    )
    events, context = ({n: np.array(v) for n, v in prepared[name].items()} for name in ("events", "context"))
    np.testing.assert_array_equal(prepared["history"], [[6, 7, 8], [0, 0, 9]])
    np.testing.assert_array_equal(events["kind"], [[3, 4, 5], [0, 0, 6]])
    np.testing.assert_allclose(events["price"], [[0.3, 0.4, 0.5], [0, 0, 0.6]])
    np.testing.assert_array_equal(context["device"], [[40, 50, 70], [0, 60, 80]])
    np.testing.assert_array_equal(context["age"], [[1.5] * 3, [np.nan] * 3])
    assert {name: sorted(prepared[name]) for name in ("events", "context")} == {
        "events": ["kind", "price"],
        "context": ["age", "device"],
    }
    empty = prepare_inputs(np.zeros((2, 0), np.int32), 3, request_context=age)
    assert empty["context"]["age"].shape == (2, 0)


@pytest.mark.parametrize("row_length", [6, 20, 50])
def test_packing_holds_every_history_once_apart_from_others(row_length):
    lengths = np.minimum(np.random.default_rng(1).geometric(0.08, size=500), row_length)
    row, end, length = pack(lengths, row_length)
    assert sorted(length) == sorted(lengths)
    taken = np.zeros((row.max() + 1, row_length), int)
    for r, e, n in zip(row, end, length, strict=True):
        taken[r, e - n : e] += 1
    assert taken.max() == 1
    assert taken.sum() > 0.97 * taken[:-1].size
    assert (taken[:, 1:] >= taken[:, :-1]).all()  # padding on the left


@pytest.fixture
def split():
    rng = np.random.default_rng(2)
    histories = [[f"i{i}" for i in rng.integers(0, 30, n)] for n in rng.integers(1, 60, 80)]
    return LeaveLastOut(PreparedData.from_histories(histories))


@pytest.mark.parametrize(("max_length", "windows"), [(200, False), (60, False), (8, True), (13, True)])
def test_every_training_pair_comes_once_and_nothing_else(split, max_length, windows):
    batches = PackedBatches.for_training(split, max_length=max_length, batch_positions=128, seed=3, windows=windows)
    pairs = []
    for inputs, target in batches:
        assert target.shape == (batches.rows, batches.length)
        assert (inputs["history"][~inputs["is_real"]] == 0).all()
        pairs += zip(inputs["history"][inputs["is_real"]].tolist(), target[inputs["is_real"]].tolist(), strict=True)
    item_index, offsets = split.train_part()
    expected = [
        (int(item_index[i]), int(item_index[i + 1]))
        for u in range(split.data.num_users)
        for i in range(offsets[u], offsets[u + 1] - 1)
    ]
    assert sorted(pairs) == sorted(expected)
    assert len(pairs) == batches.num_positions


def test_cropping_cuts_histories_and_loses_no_pair(split):
    def pairs(**augmentation):
        batches = PackedBatches.for_training(split, max_length=20, batch_positions=100, seed=3, **augmentation)
        for number, (inputs, target) in enumerate(batches):
            real = inputs["is_real"]
            row = number * batches.rows + np.nonzero(real)[0]
            yield from zip(inputs["history"][real], target[real], inputs["end"][real], row, strict=True)

    plain, cropped = list(pairs()), list(pairs(crop_rate=1.0))
    assert [p[:2] for p in plain] == [p[:2] for p in cropped]
    histories, parts = (len({p[2:] for p in epoch}) for epoch in (plain, cropped))
    assert histories * 1.5 < parts <= histories * 2
    assert all(c[2] <= p[2] for c, p in zip(cropped, plain, strict=True))


def test_reordering_swaps_neighbours_alone(split):
    """Each history, with its last target, holds the same items; none has moved by more than one place."""

    def histories(**augmentation):
        batches = PackedBatches.for_training(split, max_length=20, batch_positions=100, seed=3, **augmentation)
        for inputs, target in batches:
            for row in range(len(target)):
                for end in np.unique(inputs["end"][row][inputs["is_real"][row]]):
                    here = (inputs["end"][row] == end) & inputs["is_real"][row]
                    items, targets = inputs["history"][row][here], target[row][here]
                    assert (items[1:] == targets[:-1]).all()
                    yield [*items.tolist(), int(targets[-1])]

    plain, swapped = list(histories()), list(histories(reorder_rate=0.5))
    moved = 0
    for a, b in zip(plain, swapped, strict=True):
        i = 0
        while i < len(a):
            if a[i] == b[i]:
                i += 1
            else:
                assert a[i : i + 2] == b[i : i + 2][::-1]
                moved, i = moved + 2, i + 2
    assert 0.3 < moved / sum(map(len, plain)) < 0.7


def test_long_histories_keep_their_newest_pairs(split):
    batches = PackedBatches.for_training(split, max_length=8, batch_positions=64, seed=3)
    for inputs, target in batches:
        follows = inputs["end"][:, 1:] == inputs["end"][:, :-1]
        follows &= inputs["is_real"][:, 1:]
        assert (inputs["history"][:, 1:] == target[:, :-1])[follows].all()
    longest = int(np.argmax(split.data.lengths))
    end = split.train_ends[longest]
    start = split.data.offsets[longest]
    one = PackedBatches(split.data.item_index, [start], [end - 1], max_length=8, batch_positions=8)
    inputs, target = next(iter(one))
    np.testing.assert_array_equal(target[0], split.data.item_index[end - 8 : end])
    np.testing.assert_array_equal(inputs["history"][0], split.data.item_index[end - 9 : end - 1])


def test_nothing_but_empty_histories_makes_no_batch():
    batches = PackedBatches(np.zeros(0, np.int32), [0], [0], max_length=8, batch_positions=8)
    assert len(batches) == len(list(batches)) == batches.num_positions == 0


def test_the_order_follows_from_seed_and_epoch_alone(split):
    def epoch(seed, number):
        batches = PackedBatches.for_training(split, max_length=50, batch_positions=128, seed=seed)
        batches.epoch = number
        return [target.tobytes() for _, target in batches]

    assert epoch(1, 4) == epoch(1, 4)
    assert epoch(1, 4) != epoch(1, 5)
    assert epoch(1, 4) != epoch(2, 4)


def test_the_dataset_knows_its_length(split):
    batches = PackedBatches.for_training(split, max_length=50, batch_positions=128, seed=0)
    dataset = batches.dataset()
    assert int(dataset.cardinality()) == len(batches) == sum(1 for _ in dataset)


@pytest.mark.parametrize("windows", [False, True])
def test_rows_of_one_history_hold_what_packed_rows_do(windows):
    """The same (history so far, target) pairs, each history in a row of its own, padding on the left, no `end`."""
    split = LeaveLastOut(PreparedData.from_histories(["abcdefgh", "hgfe", "abc", "dcbafedcba"]))
    options = {"max_length": 5, "batch_positions": 20, "seed": 0, "windows": windows}

    def pairs(is_packed):
        found = []
        for inputs, target in PackedBatches.for_training(split, **options, is_packed=is_packed):
            assert ("end" in inputs) == is_packed
            ends = inputs.get("end", np.full(target.shape, target.shape[1]))
            for row in range(len(target)):
                if not is_packed:  # padding, then the history
                    assert (np.diff(inputs["is_real"][row].astype(int)) >= 0).all()
                for at in np.flatnonzero(inputs["is_real"][row]):
                    own = [p for p in range(at + 1) if inputs["is_real"][row, p] and ends[row, p] == ends[row, at]]
                    found.append((tuple(inputs["history"][row, own].tolist()), int(target[row, at])))
        return sorted(found)

    assert pairs(False) == pairs(True)
    assert len(pairs(True)) == PackedBatches.for_training(split, **options).num_positions
    with pytest.raises(ValueError, match="`crop_rate` cuts a history in two within a row, which takes packed rows"):
        PackedBatches.for_training(split, **options, is_packed=False, crop_rate=0.5)
