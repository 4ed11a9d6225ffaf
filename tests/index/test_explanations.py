"""Why an item has its score: in Python, SavedModel and over the network against scores of shorter histories; a known cause."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec
from tfrec.deploy.serving_model import build_serving_model
from tfrec.index import explanations
from tfrec.index.answers import Answers
from tfrec.index.explanations import Explainer
from tfrec.models.item_tower import ItemTower
from tfrec.training.compiling import build_model
from tfrec.training.config import Config
from tfrec.training.run import Run
from tfrec_serving.questions import Questions


@pytest.fixture(scope="module")
def history(run) -> list[str]:
    """Longer than the model reads (24), with padding, unknown ids, and an item that stands there twice."""
    ids = run.vocabulary.item_ids
    return ["", "nobody", *ids[:10], ids[3], "", *ids[10:29], "nobody"]


def by_shorter_histories(run, history, items, *, events=None, timestamps=None, **others) -> np.ndarray:
    """The contributions from `Run.score` of the history and of each one with a position less: `(items, length)`."""
    kept = [[i for i in range(len(history)) if i != place] for place in (None, *range(len(history)))]
    cut = lambda values: [[values[i] for i in keep] for keep in kept]  # noqa: E731
    given = {"events": {name: cut(values) for name, values in (events or {}).items()}}
    given |= {} if timestamps is None else {"timestamps": cut(timestamps)}
    whole, *shorter = run.score(cut(history), items, **given, **others).scores
    return np.stack([whole - less for less in shorter], axis=1)


def test_contributions_are_the_scores_less_those_of_shorter_histories(run, history):
    items = [run.vocabulary.item_ids[100], history[6], run.vocabulary.item_ids[0]]
    found = run.explain(history, [*items, "nobody"])
    np.testing.assert_allclose(found.contributions[:3], by_shorter_histories(run, history, items), atol=2e-6)
    np.testing.assert_allclose(found.scores, run.score(history, [*items, "nobody"]).scores, atol=1e-6)
    # what is not read gives nothing: padding, unknown ids, items beyond the 24 newest, an unknown item
    assert np.flatnonzero(found.contributions[0]).tolist() == [i for i in range(8, 34) if i not in (13, 33)]
    assert not found.contributions[3].any()
    assert found.contributions.dtype == found.similarities.dtype == np.float32
    vectors = np.array(run.model.item_tower.catalogue())
    index = dict(zip(run.vocabulary.item_ids, vectors, strict=True))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    expected = [[cosine(index[i], index[h]) if h in index else 0.0 for h in history] for i in items]
    np.testing.assert_allclose(found.similarities[:3], expected, atol=1e-6)
    assert not found.similarities[3].any()
    assert (found.id_score, found.content_score) == (None, None)


def test_histories_are_read_a_part_at_a_time(monkeypatch):
    model = tfrec.TwoTower(ItemTower(30, 8), tfrec.SequenceTower(6, num_blocks=1, num_heads=1))
    model.build()
    answers, history, asked = Answers(model, np.ones(30)), np.array([0, *range(2, 9), 1, 9]), np.array([20, 3])
    expected, query = Explainer(answers).explain(history, asked)
    assert np.count_nonzero(expected) == 2 * 6
    for pairs in (1, 3 * 6**2):  # 1 and 3 of the 8 histories that it takes
        monkeypatch.setattr(explanations, "PAIRS", pairs)
        found = Explainer(answers).explain(history, asked)
        np.testing.assert_allclose(found[0], expected, atol=1e-6)
        np.testing.assert_allclose(found[1], query, atol=1e-6)


def test_a_history_of_one_item_or_none(run):
    """The score of a history without items is on another scale, so the only item gave all of the score."""
    ids = run.vocabulary.item_ids
    one = run.explain(["", ids[3], "nobody"], [ids[5], "nobody"])
    assert one.contributions.tolist() == [[0.0, pytest.approx(one.scores[0], abs=1e-6), 0.0], [0.0, 0.0, 0.0]]
    for nothing in ([], [""], ["nobody", ""]):
        found = run.explain(nothing, [ids[5]])
        assert found.contributions.shape == (1, len(nothing))
        assert not found.contributions.any()
        assert found.scores == run.score(nothing, [ids[5]]).scores
    assert run.explain([ids[3]], []).contributions.shape == (0, 1)
    with pytest.raises(ValueError, match=r"One history is explained at a time.* Received 2 histories"):
        run.explain([[ids[3]], [ids[4]]], [ids[5]])
    with pytest.raises(TypeError, match="Ids are text"):
        run.explain([ids[3]], [5])


def test_a_table_has_a_row_for_each_item_and_position(run):
    found = run.explain(["item-3", "nobody"], ["item-5", "item-6"])
    table = found.to_pandas()
    assert table.columns.tolist() == ["item_id", "score", "position", "history_item_id", "contribution", "similarity"]
    assert table.item_id.tolist() == ["item-5", "item-5", "item-6", "item-6"]
    assert table.position.tolist() == [1, 2, 1, 2]
    assert table.history_item_id.tolist() == ["item-3", "nobody"] * 2
    np.testing.assert_array_equal(table.contribution, found.contributions.ravel())
    np.testing.assert_array_equal(table.score, found.scores.repeat(2))
    parts = found._replace(id_score=np.array([1.0, 2.0]), content_score=np.array([3.0, 4.0])).to_arrow()
    assert parts["content_score"].to_pylist() == [3.0, 3.0, 4.0, 4.0]


@pytest.mark.parametrize("index", ["exact", "partitioned", "scann"])
def test_the_served_model_gives_the_same(request, run, history, index):
    if index == "partitioned":
        served = build_serving_model(run, index).explain
    else:
        served = tf.saved_model.load(str(request.getfixturevalue(f"{index}_export") / "1")).signatures["explain"]
    items = ["item-7", "nobody", history[6]]
    rows = tf.constant([history, history, [*[""] * len(history[:-3]), *history[:3]]])
    found = served(history=rows, item_ids=tf.constant(items))["contributions"].numpy()
    expected = run.explain(history, items[:2]).contributions
    np.testing.assert_allclose(found[:2], expected, atol=2e-6)
    only = run.explain(history[:3], items[2:])
    np.testing.assert_allclose(found[2, -1], only.scores[0], atol=1e-6)
    assert not found[2, :-1].any()
    nothing = served(history=tf.zeros((0, 0), tf.string), item_ids=tf.zeros((0,), tf.string))["contributions"]
    assert nothing.shape == (0, 0)


# --- times, events, context


@pytest.fixture(scope="module")
def device_run(device_data, tmp_path_factory):
    """A model that reads times, features of events and of requests. It has not learned anything, so all of them move its scores."""
    config = Config(max_length=4, width=16, num_blocks=1, num_heads=2, dropout_rate=0.0, time_bias=True, calendar=True)
    model, rng = build_model(config, device_data.num_items, device_data.features), np.random.default_rng(0)
    model.build()
    for weight in model.weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return Run.from_model(model, device_data, tmp_path_factory.mktemp("devices") / "run")


ASKED = {
    "events": {
        "event type": ["view", "buy", None, "buy", "view", "buy"],
        "price": [1.0, 2.0, 3.0, None, 5.0, 4.0],
        "device": ["phone", None, "desktop", "phone", "desktop", "phone"],
    },
    "context": {"device": "desktop", "age": "young"},
    "timestamps": [1000, 1001, 1010, 1100, 1500, 9000],
    "request_time": 20_000,
}
READ = ["item-3", "item-9", "nobody", "item-5", "item-6", "item-8"]
"""One more than the model reads, and an unknown id between them."""


def test_what_happened_is_left_out_with_its_item(device_run):
    items = ["item-4", "item-7"]
    expected = by_shorter_histories(device_run, READ, items, **ASKED)
    found = device_run.explain(READ, items, **ASKED)
    np.testing.assert_allclose(found.contributions, expected, atol=2e-6)
    assert (found.contributions[:, [1, 3, 4, 5]] != 0).all()
    other = device_run.explain(READ, items, **ASKED | {"context": {"device": "phone", "age": "young"}})
    assert (other.contributions != found.contributions).any()
    inputs = Questions.explain(READ, items, **ASKED | {"context": ASKED["context"] | {"event type": "view"}}).inputs
    inputs["request_event_type"] = np.array(["", ""], object)  # left out above
    served = build_serving_model(device_run, "exact").explain
    answer = served(**{name: tf.constant(values) for name, values in inputs.items()})["contributions"]
    np.testing.assert_allclose(answer, expected, atol=2e-6)


# --- id and content


@pytest.mark.parametrize("normalize", [False, True])
def test_id_and_content_add_up_to_the_score(normalize, tmp_path):
    data = tfrec.PreparedData.from_histories([["a", "b", "c", "d"], ["d", "c", "b", "a"]] * 3)
    features = {"genre": np.array([2, 3, 4, 2]), "year": np.array([1.0, np.nan, 3.0, -1.0], np.float32)}
    specs = {"genre": {"kind": "category", "num_values": 3}, "year": {"kind": "number"}}
    own = {"content": tfrec.FeatureEmbedding(specs, 8), "features": features, "init_stddev": 0.5}
    item_tower = ItemTower(4, 8, normalize=normalize, **own)
    model = tfrec.TwoTower(item_tower, tfrec.SequenceTower(5, num_heads=2))
    model.build()
    for weight in item_tower.content.weights:  # the first values are small beside those of the table
        weight.assign(10 * np.array(weight))
    run = Run.from_model(model, data, tmp_path / "run")
    found = run.explain(["a", "nobody", "b"], ["c", "d", "nobody"])
    np.testing.assert_allclose((found.id_score + found.content_score)[:2], found.scores[:2], atol=1e-5)
    query = np.array(model.embed_history(model_inputs(run, ["a", "b"])))[0]
    rows, all_of_it = np.array(item_tower.table), np.array(item_tower(np.array([run.vocabulary.encode(["c"])[0]])))[0]
    of_id = rows[run.vocabulary.encode(["c"])[0]] @ query / (np.linalg.norm(all_of_it) if normalize else 1)
    assert found.id_score[0] == pytest.approx(of_id, abs=1e-5)
    assert np.isnan([found.id_score[2], found.content_score[2]]).all()
    assert np.isnan(run.explain(["nobody"], ["c"]).id_score).all()  # the share of popular items is no dot product
    assert ItemTower(4, 8, mlp_dims=[8], **own | {"content": tfrec.FeatureEmbedding(specs, 8)}).parts([2]) is None


def model_inputs(run, history):
    index = np.array([run.vocabulary.encode(history)], np.int32)
    return {"history": index, "is_real": index > 0}


# --- a log whose cause is known


def walk(rng, segments=3) -> list[str]:
    """Each effect follows two events after its cause, and nothing else is known of the next event."""
    events = []
    for _ in range(segments):
        kind, noise = rng.integers(8), rng.integers(20, size=2)
        events += [f"cause-{kind}", *(f"noise-{n}" for n in noise), f"effect-{kind}"]
    return events


@pytest.fixture(scope="module")
def cause_run(tmp_path_factory):
    rng = np.random.default_rng(0)
    data = tfrec.PreparedData.from_histories([walk(rng) for _ in range(400)])
    keras.utils.set_random_seed(0)
    model = tfrec.TwoTower(
        ItemTower(data.num_items, 32), tfrec.SequenceTower(12, num_blocks=1, num_heads=2, dropout_rate=0.0)
    )
    model.compile(keras.optimizers.Adam(1e-2), tfrec.FullSoftmax(), jit_compile=False)
    index = np.stack([data.history(user) for user in range(data.num_users)])
    inputs = {"history": index[:, :-1], "is_real": np.ones_like(index[:, 1:], bool)}
    model.fit(inputs, index[:, 1:], batch_size=128, epochs=20, verbose=0)
    return Run.from_model(model, data, tmp_path_factory.mktemp("cause") / "run")


def test_the_cause_is_found_in_a_log_whose_cause_is_known(cause_run):
    """Two items back from the newest, among noise, two other causes and their effects: the newest item is not it."""
    rng, right, found = np.random.default_rng(1), [], []
    for _ in range(50):
        *history, effect = walk(rng)
        right.append(cause_run.recommend(history, 1, repeats="allow").item_ids[0] == effect)
        moved = cause_run.explain(history, [effect]).contributions[0]
        found.append(history[moved.argmax()] == history[-3])
    assert np.mean(right) > 0.9  # else there is nothing to explain
    assert np.mean(found) > 0.8  # 0.96; by chance 0.09


# --- attention


def test_attention_of_a_run(run, history):
    found = run.attention(history)
    assert found.positions.tolist() == [i for i in range(8, 34) if i not in (13, 33)]
    assert found.item_ids.tolist() == [history[i] for i in found.positions]
    assert [weights.shape for weights in found.weights] == [(2, 24, 24)] * 2
    for weights in found.weights:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        assert not weights[:, *np.triu_indices(24, 1)].any()
    newest = found.of_newest()
    assert list(newest) == found.positions.tolist()
    np.testing.assert_array_equal(newest[32][1], found.weights[1][:, -1, -1])
    few = run.attention(history[:5])
    assert few.item_ids.tolist() == history[2:5]
    assert [weights.shape for weights in few.weights] == [(2, 3, 3)] * 2
    assert [weights.shape for weights in run.attention(["nobody"]).weights] == [(2, 0, 0)] * 2


def test_attention_reads_times_and_events(device_run):
    found = device_run.attention(READ, **ASKED)
    assert found.item_ids.tolist() == ["item-9", "item-5", "item-6", "item-8"]
    later = device_run.attention(READ, **ASKED | {"request_time": 10_000_000})
    assert np.abs(later.weights[0] - found.weights[0]).max() > 1e-6


def test_a_tower_without_attention(tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Newest(tfrec.AbstractSequenceTower):
        max_length = 4

        def call(self, x, is_real, training=None):
            return x

    data = tfrec.PreparedData.from_histories([["a", "b", "c", "d"]] * 3)
    message = {
        "gru": "Only transformer, gated and hstu blocks have attention weights for each head. The tower has 1 of `block=gru`.",
        "none": "The tower has 0 of `block=transformer`.",
        "own": "Newest has no attention weights: it has no method `attention_weights`.",
    }
    towers = {
        "gru": tfrec.SequenceTower(4, num_blocks=1, block="gru", positions=[]),
        "none": tfrec.SequenceTower(4, num_blocks=0),
        "own": Newest(),
    }
    for name, tower in towers.items():
        model = tfrec.TwoTower(ItemTower(4, 8), tower)
        model.build()
        run = Run.from_model(model, data, tmp_path / name)
        with pytest.raises(ValueError, match=message[name]):
            run.attention(["a", "b"])
        assert run.explain(["a", "b"], ["c"]).contributions.any()


def test_a_plot_has_a_panel_for_each_block_and_head(run):
    found = run.attention(["item-3", "item-5", "item-8"])
    figure = found.plot()
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == [f"block {b}, head {h}" for b in (1, 2) for h in (1, 2)]
    labels = lambda axis: [label.get_text() for label in axis.get_xticklabels()]  # noqa: E731
    assert labels(figure.axes[2]) == ["item-3", "item-5", "item-8"]
    (image,) = figure.axes[0].images
    lower = np.tril_indices(3)
    np.testing.assert_allclose(image.get_array()[lower], found.weights[0][0][lower])
    assert labels(found.plot(["A", "B", 30 * "C"]).axes[2]) == ["A", "B", 23 * "C" + "…"]
    with pytest.raises(ValueError, match="`labels` must have one for each item: 3. Received: 1."):
        found.plot(["A"])
    with pytest.raises(ValueError, match="No item of the history is known"):
        run.attention(["nobody"]).plot()
