"""tfrec: from an interaction log to a sequential recommender that TensorFlow Serving serves and a phone runs.

The public names are imported when first used, so that `import tfrec` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from tfrec.version import __version__

_HOMES = {
    "CausalSelfAttention": "tfrec.layers",
    "Config": "tfrec.training",
    "Dropout": "tfrec.layers",
    "FullSoftmax": "tfrec.losses",
    "GBCE": "tfrec.losses",
    "GatedBlock": "tfrec.layers",
    "HSTUBlock": "tfrec.layers",
    "ItemTower": "tfrec.towers",
    "LeaveLastOut": "tfrec.splits",
    "Log": "tfrec.interactions",
    "PackedBatches": "tfrec.sequences",
    "PositionFromNewest": "tfrec.layers",
    "PreparedData": "tfrec.prepared",
    "RelativePositionBias": "tfrec.layers",
    "Run": "tfrec.training",
    "SampledSoftmax": "tfrec.losses",
    "SequenceTower": "tfrec.towers",
    "TfrsRetrieval": "tfrec.tfrs_task",
    "TimeBias": "tfrec.layers",
    "TransformerBlock": "tfrec.layers",
    "TwoTower": "tfrec.two_tower",
    "Vocabulary": "tfrec.vocabulary",
    "evaluate": "tfrec.evaluation",
    "export": "tfrec.export",
    "prepare": "tfrec.interactions",
    "prepare_dataset": "tfrec.datasets",
    "prepare_history": "tfrec.sequences",
    "recommend": "tfrec.evaluation",
    "to_litert": "tfrec.lite",
    "train": "tfrec.training",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
