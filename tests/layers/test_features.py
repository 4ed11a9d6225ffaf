"""The layers that embed features: the contract of each, and their values by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfrec.layers import CategoryEmbedding, FeatureDropout, FeatureEmbedding, NumberEmbedding

WIDTH = 6
SPECS = {
    "genre": {"kind": "category", "num_values": 3},
    "tags": {"kind": "multi", "num_values": 4},
    "year": {"kind": "number", "mean": 2000.0, "stddev": 10.0},
    "image": {"kind": "vector", "width": 5},
}
BATCH = {
    "genre": np.array([[2, 0], [4, 1], [3, 2]], np.int32),
    "tags": np.array([[[2, 3, 0], [0, 0, 0]], [[5, 0, 0], [1, 0, 0]], [[4, 4, 2], [2, 0, 0]]], np.int32),
    "year": np.array([[1990.0, np.nan], [2010.0, 2000.0], [np.nan, 1.0]], np.float32),
    "image": np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32),
}
LAYERS = {
    "category": (CategoryEmbedding, {"num_values": 3}, BATCH["genre"]),
    "multi": (CategoryEmbedding, {"num_values": 4, "is_multi": True}, BATCH["tags"]),
    "number": (NumberEmbedding, {"mean": 2000.0, "stddev": 10.0}, BATCH["year"]),
    "log": (NumberEmbedding, {"mean": 7.0, "stddev": 0.5, "is_log": True}, BATCH["year"]),
    "features": (FeatureEmbedding, {"features": SPECS}, BATCH),
    "features and MLP": (FeatureEmbedding, {"features": SPECS, "hidden_dims": [7]}, BATCH),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """`(make, x)`: makes a layer, and what it reads."""
    cls, arguments, x = LAYERS[request.param]
    return lambda **others: cls(width=WIDTH, **(arguments | others)), x


def shapes(x):
    return {name: values.shape for name, values in x.items()} if isinstance(x, dict) else x.shape


def test_config_round_trip(case):
    make, _ = case
    layer = make(name="one")
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_shape_and_dtype(case, policy):
    make, x = case
    layer = make(dtype=policy)
    out = layer(x)
    assert out.shape == layer.compute_output_shape(shapes(x)) == (3, 2, WIDTH)
    assert keras.backend.standardize_dtype(out.dtype) == layer.compute_dtype
    assert np.isfinite(ops.convert_to_numpy(ops.cast(out, "float32"))).all()


def test_one_fit_step_then_save_and_reload(case, tmp_path):
    make, x = case
    given = x if isinstance(x, dict) else {"x": x}
    inputs = {name: keras.Input(v.shape[1:], dtype=v.dtype.name, name=name) for name, v in given.items()}
    model = keras.Model(inputs, make()(inputs if isinstance(x, dict) else inputs["x"]))
    before = [w.copy() for w in model.get_weights()]
    model.compile("sgd", "mse")
    model.fit(given, np.ones((3, 2, WIDTH)), verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(given), model(given))


def test_litert_gives_the_same_values(case):
    from ai_edge_litert.interpreter import Interpreter

    make, x = case
    layer = make()
    expected = np.array(layer(x))
    given = x if isinstance(x, dict) else {"x": x}
    module = tf.Module()
    module.variables_ = [v.value for v in layer.variables]
    signature = [tf.TensorSpec(v.shape, v.dtype, name) for name, v in given.items()]
    call = lambda *values: layer(dict(zip(given, values, strict=True)) if isinstance(x, dict) else values[0])  # noqa: E731
    function = tf.function(call, input_signature=signature).get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert()
    (out,) = Interpreter(model_content=content).get_signature_runner()(**given).values()
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_values_have_a_mean_and_missing_ones_are_zeros():
    layer = CategoryEmbedding(num_values=4, width=WIDTH, is_multi=True)
    layer.build()
    (table,) = layer.get_weights()
    out = np.array(layer(np.array([[2, 5, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])))
    np.testing.assert_allclose(out, [(table[2] + table[5]) / 2, np.zeros(WIDTH), table[1]], atol=1e-7)


def test_numbers_are_standardised_and_missing_ones_learned():
    layer = NumberEmbedding(width=2, mean=2000, stddev=10)
    layer.build()
    layer.set_weights([np.array([1.0, -2.0]), np.array([0.5, 0.25])])
    out = np.array(layer(np.array([2010.0, np.nan, 5000.0])))
    np.testing.assert_allclose(out, [[1, -2], [0.5, 0.25], [5, -10]])  # at most 5 deviations


def test_a_skewed_number_is_read_on_a_log_scale():
    layer = NumberEmbedding(width=1, mean=1.0, stddev=2.0, is_log=True)
    layer.build()
    layer.set_weights([np.ones(1), np.zeros(1)])
    x = np.array([0.0, np.e - 1, np.e**2 - 1, 1 - np.e])
    np.testing.assert_allclose(np.array(layer(x))[:, 0], [-0.5, 0, 0.5, -1], atol=1e-6)


def test_features_add_up():
    layer = FeatureEmbedding(SPECS, WIDTH)
    out = np.array(layer(BATCH))
    parts = [np.array(embed(BATCH[name])) for name, embed in zip(SPECS, layer.embeddings, strict=True)]
    np.testing.assert_allclose(out, np.sum(parts, axis=0), atol=1e-6)


def missing_of(values):
    """Bool, shape `(batch, length)`: which values are missing."""
    if values.dtype.kind == "f" and values.ndim == 2:
        return np.isnan(values)
    return (values == 0).reshape(*values.shape[:2], -1).all(axis=-1)


def test_training_hides_features_by_rows_and_alone():
    shape, rate = (400, 50), 0.2
    given = {"genre": np.full(shape, 2, np.int32), "year": np.full(shape, 1990, np.int32)}
    given |= {"tags": np.full((*shape, 3), 4, np.int32), "image": np.ones((*shape, 5), np.float32)}
    layer = FeatureDropout(SPECS, rate, seed=1)
    config = layer.get_config()
    assert FeatureDropout.from_config(config).get_config() == config
    assert not missing_of(np.array(layer(given)["genre"])).any()  # not in training
    found = {name: np.array(values) for name, values in layer(given | {"other": np.ones(1)}, training=True).items()}
    assert found.pop("other") == 1
    hidden = {name: missing_of(values) for name, values in found.items()}
    for name, is_hidden in hidden.items():
        assert is_hidden.mean() == pytest.approx(2 * rate * (1 - rate), abs=0.03)
        of_row = is_hidden.mean(axis=1)  # near `rate` or near `1 - rate`
        assert (of_row > 0.5).mean() == pytest.approx(rate, abs=0.06)
        assert of_row[of_row > 0.5].mean() == pytest.approx(1 - rate, abs=0.03)
        kept = np.array(given[name])[~is_hidden]
        np.testing.assert_array_equal(found[name][~is_hidden], kept)
    assert (hidden["genre"] != hidden["tags"]).mean() > 0.2  # each has rows of its own
    again = np.array(layer(given, training=True)["genre"])
    assert (again != found["genre"]).any()
    assert not FeatureDropout(SPECS, 0.0).variables
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\)\. Received: rate=1\."):
        FeatureDropout(SPECS, 1)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`kind` must be category, multi, number or vector. Received: 'colour'"):
        FeatureEmbedding({"x": {"kind": "colour"}}, WIDTH)
