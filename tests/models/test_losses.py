import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.losses import GBCE, FullSoftmax, SampledSoftmax, softmax_cross_entropy, times_seen


def test_full_softmax_by_hand(item_tower_of):
    """Items (1, 0) and (0, 1); query (log 3, 0): logits log 3 and 0, so the first has probability 3/4."""
    tower = item_tower_of([[1.0, 0.0], [0.0, 1.0]])
    query = np.array([[[np.log(3), 0.0], [np.log(3), 0.0], [7.0, 7.0]]], np.float32)
    target = np.array([[2, 3, 0]])
    is_real = np.array([[True, True, False]])
    total, count = FullSoftmax()(query, target, {"is_real": is_real}, tower)
    assert float(total) == pytest.approx(-np.log(3 / 4) - np.log(1 / 4), rel=1e-5)
    assert float(count) == 2
    # at temperature 1/2 the odds are squared: 9 to 1
    total, _ = FullSoftmax(temperature=0.5)(query[:, :1], target[:, :1], {"is_real": is_real[:, :1]}, tower)
    assert float(total) == pytest.approx(-np.log(9 / 10), rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("rows", "smoothing"), [(8, 0.0), (10, 0.2), (57, 0.0), (99, 0.5)])
def test_blocks_give_the_loss_and_the_gradients_of_the_whole(monkeypatch, rows, smoothing, jit_compile):
    """57 positions in blocks of any size, some of weight 0, against TensorFlow's own cross-entropy."""
    num_positions, num_items, width = 57, 23, 7
    monkeypatch.setattr("tfrec.models.losses.LOGITS_BYTES", 4 * num_items * rows)
    monkeypatch.setattr("tfrec.models.losses.SMALLEST_BLOCK", 1)
    rng = np.random.default_rng(0)
    query, items = (tf.constant(rng.normal(size=(n, width)), tf.float32) for n in (num_positions, num_items))
    label = tf.constant(rng.integers(0, num_items, num_positions), tf.int32)
    weight = tf.constant(rng.random(num_positions) < 0.7, tf.float32)

    # traced with an unknown number of positions, as in training
    specs = [
        tf.TensorSpec((None, width)),
        tf.TensorSpec((num_items, width)),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,)),
    ]

    @tf.function(jit_compile=jit_compile, input_signature=specs)
    def blocks(query, items, label, weight):
        with tf.GradientTape() as tape:
            tape.watch([query, items])
            loss = 3 * softmax_cross_entropy(query, items, label, weight, smoothing)
        return loss, tape.gradient(loss, [query, items])

    with tf.GradientTape() as tape:
        tape.watch([query, items])
        logits = tf.matmul(query, items, transpose_b=True)
        target = (1 - smoothing) * tf.one_hot(label, num_items) + smoothing / num_items
        whole = 3 * tf.reduce_sum(weight * tf.nn.softmax_cross_entropy_with_logits(target, logits))
    loss, gradients = blocks(query, items, label, weight)
    assert float(loss) == pytest.approx(float(whole), rel=1e-5)
    for got, expected in zip(gradients, tape.gradient(whole, [query, items]), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_huge_logits_do_not_overflow(item_tower_of):
    tower = item_tower_of([[1000.0], [-1000.0]])
    query, inputs = np.array([[[1.0], [1.0]]], np.float32), {"is_real": np.array([[True, True]])}
    assert float(FullSoftmax()(query, np.array([[2, 3]]), inputs, tower)[0]) == pytest.approx(2000.0)


@pytest.mark.parametrize("seen_weight", [1.0, 0.2, 0.0])
def test_sampled_softmax_tends_to_the_full_one(item_tower_of, seen_weight):
    rng = np.random.default_rng(0)
    tower = item_tower_of(rng.normal(size=(40, 5)))
    inputs = {"is_real": rng.random((2, 9)) < 0.8, "history": rng.integers(2, 42, (2, 9), np.int32)}
    args = (rng.normal(size=(2, 9, 5)).astype(np.float32), rng.integers(2, 42, (2, 9), np.int32), inputs, tower)
    full, count = FullSoftmax(0.7, seen_weight=seen_weight)(*args)
    sampled, sampled_count = SampledSoftmax(20_000, 0.7, seen_weight=seen_weight)(*args)
    assert float(sampled) == pytest.approx(float(full), rel=0.01)
    assert float(sampled_count) == float(count)


def test_a_sampled_accidental_hit_has_no_probability(item_tower_of):
    """Every negative is the target itself: nothing to tell it from, so no loss."""
    tower = item_tower_of([[1.0, 2.0]])
    inputs = {"is_real": np.ones((1, 3), bool)}
    loss, _ = SampledSoftmax(8)(np.ones((1, 3, 2), np.float32), np.full((1, 3), 2), inputs, tower)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_gbce_by_hand(item_tower_of):
    """2 of 4 other items are negatives: rate 1/2, so beta is 1/2 (t (1 - 2) + 2): 1 at t = 0, 5/8 at .75, 1/2 at 1."""
    assert [GBCE(2, t).beta(5) for t in (0.0, 0.75, 1.0)] == [1.0, 0.625, 0.5]
    tower = item_tower_of([[0.0], [1.0], [2.0], [3.0], [4.0]])
    query, target = np.array([[[1.0], [9.0]]], np.float32), np.array([[3, 4]])
    inputs = {"is_real": np.array([[True, False]])}
    total, count = GBCE(2, 0.75)(query, target, inputs, tower, negatives=np.array([4, 3]))  # 3 is an accidental hit
    assert float(total) == pytest.approx(0.625 * np.log1p(5 * np.exp(-1)) + np.log1p(np.exp(2) / 5), rel=1e-5)
    assert float(count) == 1


def test_gbce_begins_at_the_probability_of_a_random_item(item_tower_of):
    """Logits of 0, as at the start: odds of 1 to 5 for each of five items, the target and the negative."""
    tower = item_tower_of([[0.0]] * 5)
    query, inputs = np.ones((1, 1, 1), np.float32), {"is_real": np.array([[True]])}
    total, _ = GBCE(1, 0.0)(query, np.array([[3]]), inputs, tower, negatives=np.array([4]))
    assert float(total) == pytest.approx(-np.log(1 / 6) - np.log(5 / 6), rel=1e-5)


@pytest.fixture
def packed():
    """Rows of two histories behind a column of padding; one reads an item twice, one gets an item again as target.

    Also: how often each position has seen each item, its target aside, by three loops: int `(batch, length, 23)`.
    """
    rng, num_items, rows, length = np.random.default_rng(0), 23, 3, 10
    history, end = np.zeros((2, rows, length), np.int32)
    for start, stop in ((1, 4), (4, 10)):
        history[:, start:stop] = rng.integers(FIRST_ITEM_INDEX, num_items + FIRST_ITEM_INDEX, (rows, stop - start))
        end[:, start:stop] = stop
    history[2, 7] = history[2, 5]
    is_real = history > 0
    target = np.where(is_real, rng.integers(FIRST_ITEM_INDEX, num_items + FIRST_ITEM_INDEX, history.shape), 0)
    target[0, 8] = history[0, 6]
    seen = np.zeros((rows, length, num_items), int)
    for row, place in np.argwhere(is_real):
        for before in range(4 if place >= 4 else 1, place + 1):
            if history[row, before] != target[row, place]:
                seen[row, place, history[row, before] - FIRST_ITEM_INDEX] += 1
    return {"history": history, "end": end, "is_real": is_real}, target.astype(np.int32), seen


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("rows", "smoothing", "weight"), [(7, 0.0, 0.0), (30, 0.0, 0.0), (64, 0.3, 0.0), (7, 0.0, 0.2), (30, 0.0, 0.2)]
)
def test_the_weight_of_what_was_seen(monkeypatch, item_tower_of, packed, rows, smoothing, weight, jit_compile):
    """Blocks of any size, against TensorFlow's own log softmax of changed logits; loss and gradients."""
    inputs, target, seen = packed
    num_items, width = seen.shape[-1], 5
    monkeypatch.setattr("tfrec.models.losses.LOGITS_BYTES", 4 * num_items * rows)
    monkeypatch.setattr("tfrec.models.losses.SMALLEST_BLOCK", 1)
    rng = np.random.default_rng(1)
    query, tower = (
        tf.constant(rng.normal(size=(*target.shape, width)), tf.float32),
        item_tower_of(rng.normal(size=(23, 5))),
    )
    loss = FullSoftmax(0.7, smoothing, weight)

    @tf.function(jit_compile=jit_compile)
    def ours(query):
        with tf.GradientTape() as tape:
            tape.watch(query)
            total, _ = loss(query, target, inputs, tower)
        return total, tape.gradient(total, [query, tower.table.value])

    left = ((seen == 0) | (weight > 0)).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(query)
        logits = tf.matmul(query, tower.catalogue(), transpose_b=True) / 0.7 + seen * (
            np.log(weight) if weight else -1e9
        )
        wanted = tf.one_hot(np.maximum(target - FIRST_ITEM_INDEX, 0), num_items)
        wanted = (1 - smoothing) * wanted + smoothing * left / left.sum(-1, keepdims=True)
        losses = -tf.reduce_sum(left * wanted * tf.nn.log_softmax(logits), axis=-1)
        whole = tf.reduce_sum(tf.where(inputs["is_real"], losses, 0))
    total, gradients = ours(query)
    assert float(total) == pytest.approx(float(whole), rel=1e-5)
    for got, expected in zip(gradients, tape.gradient(whole, [query, tower.table.value]), strict=True):
        np.testing.assert_allclose(*map(tf.convert_to_tensor, (got, expected)), atol=2e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_times_seen(packed, jit_compile):
    inputs, target, seen = packed
    candidates = np.random.default_rng(2).integers(FIRST_ITEM_INDEX, 25, 17, np.int32)  # some twice
    found = tf.function(times_seen, jit_compile=jit_compile)(inputs, candidates)
    found = np.where(target[..., None] == candidates, 0, tf.transpose(tf.reshape(found, (10, 3, 17)), (1, 0, 2)))
    np.testing.assert_array_equal(found, seen[..., candidates - FIRST_ITEM_INDEX])


def test_cosine_candidates_have_length_one(item_tower_of):
    tower = item_tower_of([[3.0, 4.0], [0.0, 2.0]])
    tower.normalize = True
    np.testing.assert_allclose(tower.catalogue(), [[0.6, 0.8], [0, 1]], rtol=1e-6)
    np.testing.assert_allclose(tower.candidates(np.array([3])), [[0, 1]], rtol=1e-6)
    np.testing.assert_allclose(tower(np.array([3])), [[0, 2]])  # what a history reads keeps its length


@pytest.mark.parametrize(
    "loss", [FullSoftmax(0.3, 0.1, 0.2), SampledSoftmax(5, 0.3, 4, 0.2), GBCE(5, 0.5, 0.3, 4, 0.2)]
)
def test_config_round_trip(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
