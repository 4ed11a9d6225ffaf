"""The contract that every layer passes, and what is particular to each."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfrec.layers import (
    AdditiveAttention,
    CalendarEmbedding,
    CausalSelfAttention,
    Dropout,
    GatedBlock,
    HSTUBlock,
    PositionFromNewest,
    RecurrentBlock,
    RelativePositionBias,
    TransformerBlock,
)
from tfrec.layers.attention import attend, attend_in_window, pointwise_attend
from tfrec.layers.pooling import newest
from tfrec.layers.positions import rotate, steps_from_newest
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower


@keras.saving.register_keras_serializable("tests")
class FeatureTower(SequenceTower):
    """A tower that takes its features from the item vectors, so that it is called as the others are."""

    def call(self, x, is_real, end=None, training=None):
        kind, number = ops.cast(x[..., 0] > 0, "int32") + 1, ops.where(x[..., 1] > 0, x[..., 1], np.nan)
        others = {"events": {"kind": kind, "number": number}, "context": {"device": kind}}
        return super().call(x, is_real, end, training=training, **others)


BATCH, LENGTH, WIDTH = 3, 7, 10  # with 2 or 5 heads, every axis has a size of its own

LAYERS = {
    "attention": (CausalSelfAttention, {"num_heads": 5, "dropout_rate": 0.1}),
    "block": (TransformerBlock, {"num_heads": 2, "hidden_dim": 13, "dropout_rate": 0.1}),
    "rotary attention": (CausalSelfAttention, {"num_heads": 5, "rotary": True}),
    "windowed attention": (CausalSelfAttention, {"num_heads": 5, "window": 3}),
    "gated": (GatedBlock, {"num_heads": 2, "hidden_dim": 13, "dropout_rate": 0.1}),
    "hstu": (HSTUBlock, {"num_heads": 5, "max_length": 11, "dropout_rate": 0.1, "rotary": True}),
    "additive attention": (AdditiveAttention, {}),
    "gru": (RecurrentBlock, {"cell": "gru", "dropout_rate": 0.1}),
    "lstm": (RecurrentBlock, {"cell": "lstm"}),
    "positions": (PositionFromNewest, {"max_length": 11}),
    "tower": (
        SequenceTower,
        {"max_length": 11, "num_blocks": 2, "num_heads": 2, "hidden_dim": 13, "dropout_rate": 0.1},
    ),
    "relative tower": (
        SequenceTower,
        {"max_length": 5, "block": "gated", "positions": ["relative"], "normalize": True, "mask_rate": 0.1},
    ),
    "feature tower": (
        FeatureTower,
        {
            "max_length": 11,
            "num_heads": 2,
            "event_features": {
                "kind": {"kind": "category", "num_values": 3},
                "number": {"kind": "number", "mean": 0.5},
            },
            "context_features": {"device": {"kind": "category", "num_values": 2}},
        },
    ),
    "recurrent tower": (SequenceTower, {"max_length": 11, "block": "gru", "positions": ["relative"]}),
}


@pytest.fixture(params=LAYERS)
def make(request):
    cls, arguments = LAYERS[request.param]
    return lambda **others: cls(**(arguments | others))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


@pytest.fixture
def is_real():
    return np.arange(LENGTH) >= np.array([[0], [4], [6]])  # 7, 3 and 1 real items, on the right


def test_config_round_trip(make):
    layer = make(name="one")
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    assert config == make(**config).get_config()


@pytest.mark.parametrize("policy", ["float32", "float16", "bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_shape_and_dtype(make, x, is_real, policy):
    layer = make(dtype=policy)
    out = layer(x, is_real)
    assert out.shape == layer.compute_output_shape(x.shape) == x.shape
    assert keras.backend.standardize_dtype(out.dtype) == layer.compute_dtype
    exact = make()
    exact(x, is_real)
    exact.set_weights(layer.get_weights())
    difference = np.abs(ops.convert_to_numpy(ops.cast(out, "float32")) - np.array(exact(x, is_real)))[is_real]
    assert difference.max() < (1e-6 if policy == "float32" else 0.06)


def test_one_fit_step_then_save_and_reload(make, x, is_real, tmp_path):
    inputs = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    model = keras.Model(inputs, make()(*inputs))
    before = [w.copy() for w in model.get_weights()]
    model.compile("sgd", "mse")
    model.fit([x, is_real], np.flip(x), verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded([x, is_real]), model([x, is_real]))


def test_litert_gives_the_same_values(make, x, is_real):
    from ai_edge_litert.interpreter import Interpreter

    layer = make()
    layer(x, is_real)
    module = tf.Module()
    module.variables_ = [v.value for v in layer.variables]
    function = tf.function(
        lambda x, is_real: layer(x, is_real),
        input_signature=[tf.TensorSpec(x.shape, tf.float32), tf.TensorSpec(is_real.shape, tf.bool)],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    runner = Interpreter(model_content=converter.convert()).get_signature_runner()
    (out,) = runner(x=x, is_real=is_real).values()
    np.testing.assert_allclose(out[is_real], np.array(layer(x, is_real))[is_real], atol=2e-5)


def test_a_later_item_changes_no_earlier_output(make, x):
    layer, is_real = make(), np.ones((BATCH, LENGTH), bool)
    before = np.array(layer(x, is_real))
    x[:, 5] = x[:, 5, ::-1]
    after = np.array(layer(x, is_real))
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-6)
    assert (np.abs(after[:, 5] - before[:, 5]) > 1e-3).any(axis=1).all()


def test_the_last_column_alone(make, x, is_real):
    """A request reads nothing else of the last block."""
    layer = make()
    if "newest_only" not in inspect.signature(layer.call).parameters:
        pytest.skip("has no such argument")
    whole = np.array(layer(x, is_real))
    np.testing.assert_allclose(layer(x, is_real, newest_only=True), whole[:, -1:], atol=1e-6)
    if getattr(layer, "block", None) != "gru":  # a recurrent layer of Keras needs a step
        shapes = [tf.TensorSpec((None, None, WIDTH)), tf.TensorSpec((None, None), tf.bool)]
        served = tf.function(lambda x, is_real: layer(x, is_real, newest_only=True), input_signature=shapes)
        np.testing.assert_allclose(served(x, is_real), whole[:, -1:], atol=1e-6)
        assert served(x[:, :0], is_real[:, :0]).shape == (BATCH, 0, WIDTH)  # as a request without a history


@pytest.mark.parametrize("positions", [[], ["relative"]])
def test_the_last_column_alone_of_a_tower_that_reads_times(x, is_real, positions):
    tower = SequenceTower(11, num_heads=2, positions=positions, time_bias=True, calendar=True)
    times = np.cumsum(np.full((BATCH, LENGTH), 40_000), axis=1)
    own = {"timestamps": times, "request_times": times + 5000}
    tower(x, is_real, **own)
    rng = np.random.default_rng(0)
    tower.set_weights([rng.normal(size=w.shape) for w in tower.get_weights()])
    whole = np.array(tower(x, is_real, **own))
    np.testing.assert_allclose(tower(x, is_real, **own, newest_only=True), whole[:, -1:], atol=1e-5)


def test_what_padding_holds_and_how_much_there_is_changes_nothing(make, x, is_real):
    layer = make()
    before = np.array(layer(x, is_real))
    x[~is_real] = 77.0
    np.testing.assert_allclose(np.array(layer(x, is_real))[is_real], before[is_real], atol=1e-6)
    wider = np.concatenate([np.full((BATCH, 3, WIDTH), 5.0, np.float32), x], axis=1)
    real = np.concatenate([np.zeros((BATCH, 3), bool), is_real], axis=1)
    np.testing.assert_allclose(np.array(layer(wider, real))[:, 3:][is_real], before[is_real], atol=1e-6)


def test_histories_packed_into_a_row_do_not_see_each_other(make, x):
    layer = make()
    apart = [np.array(layer(x[:1, a:b], np.ones((1, b - a), bool)))[0] for a, b in ((1, 4), (4, 7))]
    is_real, end = np.arange(7)[None] >= 1, np.array([[0, 4, 4, 4, 7, 7, 7]], np.int32)
    together = np.array(layer(x[:1], is_real, end))[0]
    np.testing.assert_allclose(together[1:], np.concatenate(apart), atol=1e-6)


def test_a_row_of_padding_is_finite_and_hurts_no_gradient(make, x):
    layer, nothing = make(), np.zeros((BATCH, LENGTH), bool)
    with tf.GradientTape() as tape:
        out = layer(x, nothing)
        loss = ops.sum(ops.square(out))
    assert np.isfinite(out).all()
    assert all(
        np.isfinite(tf.convert_to_tensor(g)).all()
        for g in tape.gradient(loss, [v.value for v in layer.trainable_variables])
    )
    if isinstance(layer, (CausalSelfAttention, SequenceTower)):
        assert not np.any(out)


@pytest.mark.parametrize("name", ["attention", "rotary attention", "windowed attention"])
def test_attention_weights_times_the_values_are_the_output(name, x, is_real):
    cls, arguments = LAYERS[name]
    layer = cls(**arguments)
    out, weights = np.array(layer(x, is_real)), np.array(layer.attention_weights(x, is_real))
    assert weights.shape == (BATCH, 5, LENGTH, LENGTH)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(is_real[:, None], weights.shape[:-1]), atol=1e-6)
    value = np.split(x @ np.array(layer.project_in.kernel), 3, axis=-1)[2].reshape(BATCH, LENGTH, 5, 2)
    mixed = np.einsum("bhij,bjhd->bihd", weights, value).reshape(x.shape)
    expected = mixed @ np.array(layer.project_out.kernel)
    np.testing.assert_allclose(out[is_real], expected[is_real], atol=1e-5)
    row, column = np.indices((LENGTH, LENGTH))
    is_seen = (row >= column) & (row - column < (3 if name == "windowed attention" else LENGTH))
    assert (weights[0, 0] > 0).tolist() == is_seen.tolist()
    assert not weights[:, :, :, :4][1].any()  # padding


def test_attention_weights_of_a_pointwise_block(x, is_real):
    cls, arguments = LAYERS["hstu"]
    layer = cls(**arguments | {"rotary": False})
    layer.build(x.shape)
    weights = np.array(layer.attention_weights(x, is_real))
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    _, _, query, key = np.split(silu(np.array(layer.norm(x)) @ np.array(layer.project_in.kernel)), 4, axis=-1)
    query, key = (v.reshape(BATCH, LENGTH, 5, 2) for v in (query, key))
    expected = silu(np.einsum("bihd,bjhd->bhij", query, key)) / 11  # `max_length`
    is_seen = np.tril(np.ones((LENGTH, LENGTH), bool)) & is_real[:, None, None] & is_real[:, None, :, None]
    np.testing.assert_allclose(weights, np.where(is_seen, expected, 0), atol=1e-6)


def test_attention_weights_of_a_tower_are_those_of_what_each_block_reads(x, is_real):
    tower = SequenceTower(5, num_blocks=2, num_heads=2, block="gated", positions=["relative"])
    tower(x, is_real)
    bias = np.zeros((2, 5), np.float32)
    bias[1, 2] = 50.0  # the second head of the second block sees the item two before
    tower.distances[1].bias.assign(bias)
    first, second = (np.array(weights) for weights in tower.attention_weights(x, is_real))
    between = tower.blocks[0](x, is_real, None, np.zeros((1, 2, LENGTH, LENGTH), np.float32))
    for block, read, found in ((0, x, first), (1, between, second)):
        expected = tower.blocks[block].attention_weights(read, is_real)
        np.testing.assert_allclose(found[:, 0], np.array(expected)[:, 0], atol=1e-5)
    np.testing.assert_allclose(second[0, 1, np.arange(2, LENGTH), np.arange(LENGTH - 2)], 1, atol=1e-5)


def test_dropout_only_in_training(x, is_real):
    layer = TransformerBlock(2, 13, dropout_rate=0.5)
    np.testing.assert_array_equal(layer(x, is_real), layer(x, is_real))
    assert (np.array(layer(x, is_real, training=True)) != np.array(layer(x, is_real, training=True))).any()


def test_dropout_keeps_its_share_and_the_mean():
    layer, x = Dropout(0.3, seed=1), np.ones((40, 50, 60), np.float32)
    first, second = (np.array(layer(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {0, np.float32(1 / 0.7)}
    assert first.mean() == pytest.approx(1, abs=0.005)
    kept, again = first > 0, second > 0
    assert (kept & again).mean() == pytest.approx(0.49, abs=0.005)  # steps draw independently
    for axis in range(3):  # and so do neighbours
        assert (kept & np.roll(kept, 1, axis)).mean() == pytest.approx(0.49, abs=0.005)
    np.testing.assert_array_equal(Dropout(0.3, seed=1)(x, training=True), first)
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\). Received: rate=1"):
        Dropout(1)


@pytest.mark.parametrize("by_gather", [False, True])
def test_relative_bias_by_hand(by_gather):
    layer = RelativePositionBias(num_heads=2, max_distance=3)
    layer.build()
    layer.set_weights([np.array([[1, 2, 3], [4, 5, 6]], np.float32)])
    out = np.array(layer.between(4, by_gather))
    np.testing.assert_array_equal(out[0], [[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0], [3, 3, 2, 1]])
    assert layer.between(0, by_gather).shape == (2, 0, 0)
    np.testing.assert_array_equal(out[1], [[4, 0, 0, 0], [5, 4, 0, 0], [6, 5, 4, 0], [6, 6, 5, 4]])


def test_rotary_products_depend_on_the_distance_alone():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 6)).astype(np.float32)
    query, key = (np.array(rotate(np.tile(v, (1, 1, 5, 1))))[0, 0] for v in (a, b))
    products = query @ key.T
    for distance in range(-4, 5):
        np.testing.assert_allclose(np.diag(products, distance), np.diag(products, distance)[0], rtol=1e-5)
    assert products[1, 0] != pytest.approx(products[2, 0])


@pytest.mark.parametrize("window", [1, 2, 3, 7, 9])
def test_a_window_is_the_whole_attention_with_a_mask(window):
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, BATCH, 2, LENGTH, 5)).astype(np.float32)
    is_real = np.arange(LENGTH) >= np.array([[0], [2], [6]])
    end = np.where(np.arange(LENGTH) < np.array([[3], [2], [0]]), [[3], [0], [0]], LENGTH)
    distance = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    bias = rng.normal(size=(2, 3 * LENGTH)).astype(np.float32)  # by head and distance
    is_allowed = (distance >= 0) & (distance < window) & is_real[:, None] & (end[:, :, None] == end[:, None])
    expected = np.array(attend(query, key, value, is_allowed[:, None], bias[:, np.maximum(distance, 0)]))
    blockwise = window + np.subtract.outer(np.arange(window), np.arange(2 * window))
    out = np.array(attend_in_window(query, key, value, is_real, end, bias[:, np.abs(blockwise)], window))
    for row in range(BATCH):
        np.testing.assert_allclose(out[row][:, is_real[row]], expected[row][:, is_real[row]], atol=1e-5)


def test_hstu_attends_without_a_softmax():
    """What is attended to adds up: twice the same item weighs twice."""
    query, key, value = (np.full((1, 1, n, 1), v, np.float32) for n, v in ((2, 1.0), (2, 0.5), (2, 3.0)))
    out = np.array(pointwise_attend(query, key, value, np.array([[True, False], [True, True]])))
    once = 3 * 0.5 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(out[0, 0, :, 0], [once, 2 * once], rtol=1e-6)


def test_attention_by_hand():
    """Two positions, one head, width 1: query (1, 2), key (3, log(3)/2 + 3); logits of the second row differ by log 3."""
    query = np.array([1.0, 2.0], np.float32).reshape(1, 1, 2, 1)
    key = np.array([3.0, 3.0 + np.log(3) / 2], np.float32).reshape(1, 1, 2, 1)
    value = np.array([1.0, 0.0], np.float32).reshape(1, 1, 2, 1)
    out = np.array(attend(query, key, value, np.array([[True, False], [True, True]])))
    np.testing.assert_allclose(out[0, 0, :, 0], [1.0, 0.25], atol=1e-6)


def test_attention_mixes_values_by_hand():
    layer = CausalSelfAttention(num_heads=1)
    layer.build((None, None, 2))
    eye, zero = np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32)
    layer.set_weights([np.concatenate([zero, zero, eye], axis=1), eye])  # no preference: the mean of what is visible
    out = layer(np.array([[[9.0, 9.0], [2.0, 4.0], [4.0, 8.0]]], np.float32), np.array([[False, True, True]]))
    np.testing.assert_allclose(out[0], [[0, 0], [2, 4], [3, 6]], atol=1e-6)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"`num_heads` must divide the width of `x`. Received: num_heads=3, width=10."):
        CausalSelfAttention(num_heads=3).build((None, None, 10))


def test_positions_count_real_items_from_the_newest():
    is_real = np.array([[False, True, True, True], [True, False, True, True]])
    steps = np.array(steps_from_newest(is_real))
    assert steps[is_real].tolist() == [2, 1, 0, 2, 1, 0]


def test_positions_beyond_the_table_share_its_last_row():
    layer = PositionFromNewest(max_length=2)
    out = np.array(layer(np.zeros((1, 4, 3), np.float32), np.ones((1, 4), bool)))[0]
    table = layer.get_weights()[0]
    np.testing.assert_array_equal(out, table[[1, 1, 1, 0]])


def test_newest_picks_the_last_real_position(x):
    is_real = np.array([[True] * 7, [False, True, True, False, False, False, False], [False] * 7])
    out = np.array(newest(x, is_real))
    np.testing.assert_array_equal(out, [x[0, 6], x[1, 2], np.zeros(WIDTH)])


def test_item_tower_config_values_and_catalogue():
    tower = ItemTower(num_items=4, width=6, mlp_dims=[5])
    assert ItemTower.from_config(tower.get_config()).get_config() == tower.get_config()
    vectors = np.array(tower(np.array([[2, 3], [4, 5]])))
    assert vectors.shape == tower.compute_output_shape((2, 2)) == (2, 2, 6)
    np.testing.assert_allclose(vectors.reshape(4, 6), tower.catalogue(), atol=1e-6)
    plain = ItemTower(num_items=4, width=6)
    plain.build()
    plain.set_weights(tower.get_weights()[:1])
    assert np.abs(np.array(plain.catalogue()) - np.array(tower.catalogue())).max() > 1e-4  # the MLP does something


def test_an_empty_catalogue_is_refused():
    with pytest.raises(ValueError, match="`num_items` must be at least 1. Received: num_items=0."):
        ItemTower(num_items=0, width=6)


def test_additive_attention_by_hand():
    """One feature, weights of one: the logit of x_i and x_j is tanh(x_i + x_j)."""
    layer = AdditiveAttention()
    layer.build((None, None, 1))
    layer.set_weights([np.ones(w.shape) if w.ndim > 1 else np.zeros(w.shape) for w in layer.get_weights()])
    x = np.array([[[0.5], [-1.0]]], np.float32)
    first, second = np.array(layer(x, np.array([[True, True]])))[0, :, 0]
    a, b = np.exp(np.tanh([-1.0 + 0.5, -1.0 - 1.0]))
    assert first == pytest.approx(0.5)
    assert second == pytest.approx((a * 0.5 + b * -1.0) / (a + b), rel=1e-5)


def test_a_recurrent_block_remembers_what_came_first(x):
    layer = RecurrentBlock("gru")
    one = np.array(layer(x, np.ones((BATCH, LENGTH), bool)))
    x[:, 0] = x[:, 0, ::-1]
    assert (np.abs(np.array(layer(x, np.ones((BATCH, LENGTH), bool))) - one)[:, -1] > 1e-5).any(axis=1).all()


def test_unknown_cells_and_what_recurrence_lacks_are_refused():
    with pytest.raises(ValueError, match="`cell` must be one of gru, lstm"):
        RecurrentBlock("rnn").build((None, None, 4))
    with pytest.raises(ValueError, match="`block=gru` has neither"):
        SequenceTower(8, block="gru", attention_window=4)


def test_the_calendar_knows_hour_and_weekday():
    layer = CalendarEmbedding()
    layer.build((None, None, 2))
    hours, days = np.arange(24), np.arange(7)
    layer.set_weights([np.stack([hours, hours * 0], 1), np.stack([days * 0, days], 1)])
    sunday_evening = 1_700_000_000 + 5 * 86_400 - 3_600  # 2023-11-19 21:13:20 UTC
    times = np.array([[0, 1, sunday_evening]])
    moments = np.array(layer(np.zeros((1, 3, 2), np.float32), times))[0]
    assert moments.tolist() == [[0, 0], [0, 3], [21, 6]]  # unknown; 1970 began on a Thursday


def test_hidden_items_are_hidden_whole():
    dropout = Dropout(0.3, whole_vectors=True)
    out = np.array(dropout(np.full((40, 50, 3), 2.0, np.float32), training=True))
    assert set(np.unique(out)) == {0.0, 2.0}
    assert (out == out[..., :1]).all()
    assert 0.25 < (out == 0).mean() < 0.35
