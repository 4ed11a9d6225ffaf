"""What a request says beside its history."""

import numpy as np

from tfrec.data.features import Feature
from tfrec.index.inputs import RequestEncoder, request_inputs
from tfrec.models.sequence_tower import SequenceTower


def test_values_of_python_are_those_of_prepared_data():
    features = [
        Feature("stars", "category", values=("4", "5")),
        Feature("is_app", "category", values=("true", "false")),
    ]
    tower = SequenceTower(10, event_features={feature.name: feature.spec for feature in features})
    encoder = RequestEncoder(request_inputs(tower, {"events": features}))
    given = {
        "stars": [["4", 4, 4.0, np.float32(5), None, np.nan, 4.5]],
        "is_app": [[True, np.bool_(False), "true", None] + [""] * 3],
    }
    encoded = encoder.of_columns([7], given, {})
    assert encoded["stars"][0].tolist() == [2, 2, 2, 3, 0, 0, 1]
    assert encoded["is_app"][0].tolist() == [2, 3, 2, 0, 0, 0, 0]
