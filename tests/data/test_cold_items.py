"""Items that are held out with all their events."""

import numpy as np
import pyarrow as pa
import pytest

from tfrec.data.cold_items import ColdItems
from tfrec.data.datasets import prepare_dataset
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import FIRST_ITEM_INDEX


@pytest.fixture(scope="module")
def all_data():
    return prepare_dataset("synthetic", num_users=60, num_items=40, events_per_user=12)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_event_of_a_held_out_item_is_known(all_data, seed):
    cold = ColdItems(all_data, 0.1, seed)
    held_out = set(cold.item_ids)
    assert len(held_out) == 4
    assert held_out.isdisjoint(cold.known.vocabulary.item_ids)
    for user in range(all_data.num_users):
        everything = all_data.vocabulary.decode(all_data.history(user))
        kept = [item for item in everything if item not in held_out]
        assert cold.known.vocabulary.decode(cold.known.history(user)) == kept
    assert (
        cold.known.num_events
        + np.isin(all_data.items["item_id"], cold.item_ids)[all_data.item_index - FIRST_ITEM_INDEX].sum()
        == all_data.num_events
    )


def test_a_target_is_the_last_cold_event_of_a_user_and_its_history_what_was_known_before(all_data):
    cold = ColdItems(all_data, 0.1)
    held_out, ids = set(cold.item_ids), cold.catalogue["item_id"].to_pylist()
    expected = []
    for user in range(all_data.num_users):
        items = all_data.vocabulary.decode(all_data.history(user))
        places = [place for place, item in enumerate(items) if item in held_out]
        if places and (before := [item for item in items[: places[-1]] if item not in held_out]):
            expected.append((before, items[places[-1]]))
    starts, ends = cold.histories
    found = [
        (cold.known.vocabulary.decode(cold.known.item_index[start:end]), ids[item])
        for start, end, item in zip(starts, ends, cold.target_items, strict=True)
    ]
    assert found == expected
    assert len(found) > 30


def test_the_seed_chooses_the_items(all_data):
    assert ColdItems(all_data, 0.1, 0).item_ids == ColdItems(all_data, 0.1, 0).item_ids
    assert ColdItems(all_data, 0.1, 0).item_ids != ColdItems(all_data, 0.1, 1).item_ids


def test_features_are_learned_without_the_held_out_items():
    data = prepare_dataset("synthetic", num_users=60, num_items=40, events_per_user=12)
    genres = [feature for feature in ColdItems(data, 0.9).known.features["items"] if feature.name == "genres"]
    assert 0 < len(genres[0].values) < 20


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match=r"The share of cold items must be in \(0, 1\)"):
        ColdItems(PreparedData.from_histories(["ab"]), share)


def test_rules_hold_for_held_out_targets():
    """Of each user the last event with a held-out item for which they hold."""
    kind = ["view", "buy", "view", "view", "buy", "view", "view", "buy"]
    log = pa.table({"user": list("uuuuvvvv"), "item": list("axaxaxax"), "kind": kind})
    data = prepare(log, event_features={"kind": "category"})
    held_out = next(seed for seed in range(99) if ColdItems(data, 0.5, seed).item_ids == ["x"])
    assert ColdItems(data, 0.5, held_out).targets.tolist() == [3, 7]
    assert ColdItems(data, 0.5, held_out, ("kind=buy",)).targets.tolist() == [1, 7]
    assert ColdItems(data, 0.5, held_out, ("kind!=buy",)).targets.tolist() == [3, 5]
