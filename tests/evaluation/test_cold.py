"""New items, ranked by what they are."""

import dataclasses

import numpy as np
import pytest

from tfrec.data.cold_items import ColdItems
from tfrec.data.datasets import prepare_dataset
from tfrec.data.prepared import PreparedData
from tfrec.evaluation.cold import evaluate_cold_items
from tfrec.evaluation.content_knn import ContentKNN
from tfrec.training.config import Config
from tfrec.training.fit import train


@pytest.fixture(scope="module")
def all_data():
    return prepare_dataset("synthetic", num_users=600, num_items=120, events_per_user=20, num_interests=10)


def small(**others):
    return Config(
        max_length=20, width=16, num_blocks=1, num_heads=1, epochs=8, cold_items=0.1, learning_rate=1e-2, **others
    )


@pytest.fixture(scope="module")
def cold_run(all_data, tmp_path_factory):
    return train(small(), all_data, tmp_path_factory.mktemp("cold") / "run")


def test_new_items_are_found_by_what_they_are(all_data, cold_run):
    cold = cold_run.cold_items(all_data)
    found = evaluate_cold_items(cold, "test", cold_run.model, cold_run.config.new_item_boost)
    assert found["num_cold_items"] == 12
    assert found["num_cold"] == len(cold.targets)
    hits = {name: figures["cold"]["hr@10"] for name, figures in found.items() if isinstance(figures, dict)}
    assert hits["model"] > 1.3 * hits["random"]
    assert hits["model"] > 1.3 * hits["content-knn"]
    assert hits["popularity in category"] < hits["random"] / 2  # nobody had them
    # an order at random: as many hits as places among those that are left to rank
    starts, ends = cold.histories
    seen = [len(np.unique(cold.known.item_index[a:b])) for a, b in zip(starts, ends, strict=True)]
    assert hits["random"] == pytest.approx(np.mean(10 / (120 - np.array(seen))))
    number = found["num_warm"], found["num_cold"]
    model = found["model"]
    again = evaluate_cold_items(cold, "test", cold_run.model, cold_run.config.new_item_boost, "allow")["model"]["warm"]
    assert again["hr@10"] <= model["warm"]["hr@10"]  # more items are ranked
    both = np.average([model["warm"]["ndcg@10"], model["cold"]["ndcg@10"]], weights=number)
    assert model["all"]["ndcg@10"] == pytest.approx(both)


def test_more_weight_of_new_items_finds_more_of_them_and_fewer_of_others(all_data, cold_run):
    cold, boosts = cold_run.cold_items(all_data), [-0.2, 0.0, 0.2]
    found = [evaluate_cold_items(cold, "test", cold_run.model, boost)["model"] for boost in boosts]
    assert [f["cold"]["hr@10"] for f in found] == sorted(f["cold"]["hr@10"] for f in found)
    assert found[0]["warm"]["hr@10"] > found[2]["warm"]["hr@10"]


def test_a_model_of_ids_knows_nothing_of_new_items(all_data, tmp_path):
    run = train(small(item_features="none"), all_data, tmp_path / "run")
    found = evaluate_cold_items(run.cold_items(all_data), "test", run.model)["model"]
    assert found["cold"]["hr@10"] < 0.05 < found["warm"]["hr@10"]


def test_without_features_there_is_nothing_to_rank_by():
    data = PreparedData.from_histories(["abcd", "badc", "cbad"])
    with pytest.raises(ValueError, match="New items are ranked by their features, and the data has none"):
        evaluate_cold_items(ColdItems(data, 0.25))


def test_a_share_without_a_target_is_named(all_data):
    alone = dataclasses.replace(
        all_data, item_index=all_data.item_index[:1], timestamp=all_data.timestamp[:1], offsets=np.array([0, 1])
    )
    with pytest.raises(ValueError, match="No user has an event of a held-out item after one of a known item: raise"):
        evaluate_cold_items(ColdItems(alone, 0.1))


def test_content_neighbours_agree_with_a_plain_computation():
    features = {
        "genres": np.array([[2, 3], [3, 0], [2, 0], [4, 0]], np.int32),
        "year": np.array([1990, 2000, np.nan, 2010], np.float32),
    }
    idf = np.log(4 / np.array([2, 2, 1]))
    genres = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]) * idf
    year = np.stack([(np.nan_to_num(features["year"], nan=2000) - 2000) / np.std([1990, 2000, 2010]), np.ones(4)], 1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    vectors = unit(np.concatenate([unit(genres), unit(year)], 1))
    scores = ContentKNN(features, num_newest=2).scores(np.array([3, 0, 1, 2]), np.array([0, 3, 4]))
    assert np.allclose(scores, np.stack([(vectors[0] + vectors[1]) @ vectors.T, vectors[2] @ vectors.T]), atol=1e-5)
