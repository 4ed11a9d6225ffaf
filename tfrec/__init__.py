"""tfrec: from an interaction log to a sequential recommender that TensorFlow Serving serves and a phone runs.

The public names are imported when first used, so that `import tfrec` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from tfrec.version import __version__

_HOMES = {
    "CausalSelfAttention": "tfrec.layers",
    "Config": "tfrec.training.config",
    "DataMismatchError": "tfrec.exceptions",
    "DivergedError": "tfrec.exceptions",
    "Dropout": "tfrec.layers",
    "FullSoftmax": "tfrec.models.losses",
    "GBCE": "tfrec.models.losses",
    "GatedBlock": "tfrec.layers",
    "HSTUBlock": "tfrec.layers",
    "ItemTower": "tfrec.models.item_tower",
    "LeaveLastOut": "tfrec.data.splits",
    "NewerFormatError": "tfrec.exceptions",
    "PackedBatches": "tfrec.data.batches",
    "PositionFromNewest": "tfrec.layers",
    "PreparedData": "tfrec.data.prepared",
    "Recommendations": "tfrec.training.run",
    "RelativePositionBias": "tfrec.layers",
    "Run": "tfrec.training.run",
    "SampledSoftmax": "tfrec.models.losses",
    "SequenceTower": "tfrec.models.sequence_tower",
    "TfrecError": "tfrec.exceptions",
    "TfrsRetrieval": "tfrec.models.tfrs_task",
    "TimeBias": "tfrec.layers",
    "TransformerBlock": "tfrec.layers",
    "TwoTower": "tfrec.models.two_tower",
    "UnavailableError": "tfrec.exceptions",
    "Validation": "tfrec.training.callbacks",
    "Vocabulary": "tfrec.data.vocabulary",
    "build_model": "tfrec.training.compiling",
    "compile_model": "tfrec.training.compiling",
    "evaluate": "tfrec.evaluation.ranking",
    "export": "tfrec.deploy.saved_model",
    "final_config": "tfrec.training.fit",
    "prepare": "tfrec.data.interactions",
    "prepare_dataset": "tfrec.data.datasets",
    "prepare_history": "tfrec.data.batches",
    "preset": "tfrec.training.presets",
    "resolve": "tfrec.training.resolve",
    "to_litert": "tfrec.deploy.litert",
    "train": "tfrec.training.fit",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
