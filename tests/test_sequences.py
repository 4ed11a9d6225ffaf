import numpy as np
import pytest

from tfrec.prepared import PreparedData
from tfrec.sequences import BucketedBatches, bucket_lengths, pad_histories, prepare_history
from tfrec.splits import LeaveLastOut


@pytest.mark.parametrize("max_length", [1, 3, 7, 50])
def test_the_tensor_and_the_log_are_prepared_alike(max_length):
    rng = np.random.default_rng(0)
    histories = [rng.integers(2, 99, size=n).astype(np.int32) for n in (0, 1, 3, 7, 13)]
    ends = np.cumsum([len(h) for h in histories])
    starts = ends - [len(h) for h in histories]
    expected, is_real = pad_histories(np.concatenate(histories), starts, ends, min(max_length, 20), len(histories))
    # the same histories with padding and unknown ids strewn between the items
    rows = np.zeros((5, 20), np.int32)
    for row, history in enumerate(histories):
        places = np.sort(rng.choice(20, len(history), replace=False))
        rows[row] = rng.integers(0, 2, 20)
        rows[row, places] = history
    got, got_real = prepare_history(rows, max_length)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_real, is_real)


def test_truncation_keeps_the_newest():
    history, _ = prepare_history(np.array([[5, 6, 7, 8]], np.int32), max_length=2)
    assert np.array(history).tolist() == [[7, 8]]


def brute_force_padding(lengths, edges):
    return sum(min(e for e in edges if e >= n) for n in lengths)


def test_bucket_lengths_are_the_best_of_all():
    from itertools import combinations

    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.geometric(0.08, size=200), 48)
    candidates = [*range(1, 33), 40, 48]
    best = min(brute_force_padding(lengths, (*few, 48)) for few in combinations(candidates[:-1], 2))
    chosen = bucket_lengths(lengths, max_length=48, num_buckets=3)
    assert len(chosen) <= 3
    assert brute_force_padding(lengths, chosen) == best


@pytest.fixture
def split():
    rng = np.random.default_rng(2)
    histories = [[f"i{i}" for i in rng.integers(0, 30, n)] for n in rng.integers(1, 60, 80)]
    return LeaveLastOut(PreparedData.from_histories(histories))


def test_every_training_pair_comes_once_and_nothing_else(split):
    batches = BucketedBatches.for_training(split, max_length=200, batch_positions=128, seed=3)
    pairs, shapes = [], set()
    for inputs, target in batches:
        shapes.add(target.shape)
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
    assert len(shapes) <= len(batches.lengths) <= 5


def test_long_histories_keep_their_newest_pairs(split):
    batches = BucketedBatches.for_training(split, max_length=8, batch_positions=64, seed=3)
    for inputs, target in batches:
        assert inputs["history"].shape[1] <= 8
        assert (inputs["history"][:, 1:] == target[:, :-1])[inputs["is_real"][:, :-1]].all()
    longest = int(np.argmax(split.data.lengths))
    end = split.train_ends[longest]
    _, inputs, target = next(
        b
        for b in BucketedBatches(
            split.data.item_index, [split.data.offsets[longest]], [end - 1], max_length=8, batch_positions=8
        ).with_members()
    )
    np.testing.assert_array_equal(target[0], split.data.item_index[end - 8 : end])
    np.testing.assert_array_equal(inputs["history"][0], split.data.item_index[end - 9 : end - 1])


def test_the_order_follows_from_seed_and_epoch_alone(split):
    def epoch(seed, number):
        batches = BucketedBatches.for_training(split, max_length=50, batch_positions=128, seed=seed)
        batches.epoch = number
        return [target.tobytes() for _, target in batches]

    assert epoch(1, 4) == epoch(1, 4)
    assert epoch(1, 4) != epoch(1, 5)
    assert epoch(1, 4) != epoch(2, 4)


def test_the_dataset_knows_its_length(split):
    batches = BucketedBatches.for_training(split, max_length=50, batch_positions=128, seed=0)
    dataset = batches.dataset()
    assert int(dataset.cardinality()) == len(batches) == sum(1 for _ in dataset)
