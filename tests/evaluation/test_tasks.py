"""What `evaluate` says of a second head, beside baselines that are worked by hand."""

import dataclasses

import numpy as np
import pytest

from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.judgement import evaluate
from tfrec.evaluation.ranking import embed_histories
from tfrec.evaluation.tasks import ITEM_DAMPING, USER_DAMPING, evaluate_task
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tasks import TaskHead
from tfrec.models.two_tower import TwoTower

HISTORIES = ["abba", "babb", "ab"]
RATINGS = [1, 2, 4, 5, 3, 1, 2, np.nan, 5, 3]
"""Of the training part: a 1 and b 2 of the first user, b 3 and a 1 of the second, a 5 and b 3 of the third, who is too short."""


def make(feature: Feature, values, head: TaskHead) -> tuple[TwoTower, LeaveLastOut]:
    data = PreparedData.from_histories(HISTORIES)
    data = dataclasses.replace(data, event_columns={feature.name: values}, features={"events": [feature]})
    model = TwoTower(ItemTower(2, 4), SequenceTower(4, num_blocks=1, num_heads=1), head)
    model.build()
    return model, LeaveLastOut(data)


def constant_head(value, **options) -> TaskHead:
    head = TaskHead("x", hidden_dims=[], **options)
    head.build((None, 4))
    head.output_layer.set_weights([np.zeros(head.output_layer.kernel.shape), np.asarray(value, "float32")])
    return head


def of_task(model, split, part):
    return evaluate_task(model, split, part, embed_histories(model, split, part))


def test_a_number_by_hand():
    """Test: item a of user 0, rated 5; that of user 1 has no rating. The head says 4 always."""
    model, split = make(Feature("x", "number"), np.array(RATINGS, np.float32), constant_head([4.0]))
    found = of_task(model, split, "test")
    assert (found["column"], found["kind"], found["num_targets"]) == ("x", "number", 1)
    assert found["model"] == pytest.approx({"mae": 1, "rmse": 1})
    mean = 15 / 6
    assert found["mean of all"]["mae"] == pytest.approx(5 - mean)
    assert found["mean of the item"]["mae"] == pytest.approx(5 - 7 / 3)
    of_a, of_b = (7 - 3 * mean) / (3 + ITEM_DAMPING), (8 - 3 * mean) / (3 + ITEM_DAMPING)
    of_user = (1 - mean - of_a + 2 - mean - of_b) / (2 + USER_DAMPING)
    assert found["user + item bias"]["rmse"] == pytest.approx(5 - (mean + of_a + of_user))
    validation = of_task(model, split, "validation")
    assert validation["num_targets"] == 2
    assert validation["model"] == pytest.approx({"mae": 1.0, "rmse": np.sqrt(2)})  # 4 and 2


def test_a_category_by_hand():
    """Training part: value 2 twice and 3 once of item a, 3 three times of b. Test: a of user 0 is 2, b of user 1 is 3."""
    codes = np.array([2, 3, 0, 2, 3, 2, 1, 3, 3, 3], np.int32)
    head = constant_head([1.0, 0.0], kind="category", num_values=2)
    model, split = make(Feature("x", "category", values=("view", "buy")), codes, head)
    found = of_task(model, split, "test")
    assert found["num_targets"] == 2
    assert found["model"] == {"accuracy": 0.5}
    assert found["most frequent"] == {"accuracy": 0.5}
    assert found["most frequent of the item"] == {"accuracy": 1.0}
    assert of_task(model, split, "validation")["num_targets"] == 0
    assert np.isnan(of_task(model, split, "validation")["model"]["accuracy"])


def test_evaluate_has_the_head_beside_the_ranking():
    model, split = make(Feature("x", "number"), np.array(RATINGS, np.float32), constant_head([4.0]))
    result = evaluate(split.data, "test", model)
    assert result["task"]["num_targets"] == 1
    assert set(result["model"]) >= {"hr@10"}
    assert "task" not in evaluate(split.data, "test")
    model, split = make(Feature("x", "number"), np.full(10, np.nan, np.float32), constant_head([4.0]))
    with pytest.raises(ValueError, match="Column 'x' has no number in any event"):
        evaluate(split.data, "test", model)
