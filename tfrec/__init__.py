"""tfrec: from an interaction log to a sequential recommender that TensorFlow Serving serves and a phone runs.

The public names are imported when first used, so that `import tfrec` is quick.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import Any

from tfrec.version import __version__

_HOMES = {
    "AbstractItemTower": "tfrec.models.towers",
    "AbstractSequenceTower": "tfrec.models.towers",
    "AdditiveAttention": "tfrec.layers",
    "Attention": "tfrec.training.results",
    "CalendarEmbedding": "tfrec.layers",
    "CategoryEmbedding": "tfrec.layers",
    "CausalSelfAttention": "tfrec.layers",
    "ColdItems": "tfrec.data.cold_items",
    "Config": "tfrec.training.config",
    "DataMismatchError": "tfrec.exceptions",
    "DivergedError": "tfrec.exceptions",
    "Dropout": "tfrec.layers",
    "ElapsedEmbedding": "tfrec.layers",
    "Explanation": "tfrec.training.results",
    "FeatureEmbedding": "tfrec.layers",
    "FullSoftmax": "tfrec.models.losses",
    "GBCE": "tfrec.models.losses",
    "GatedBlock": "tfrec.layers",
    "HSTUBlock": "tfrec.layers",
    "HitRate": "tfrec.models.ranking_metrics",
    "ItemTower": "tfrec.models.item_tower",
    "Judgement": "tfrec.evaluation.judgement",
    "LeaveLastOut": "tfrec.data.splits",
    "MRR": "tfrec.models.ranking_metrics",
    "NDCG": "tfrec.models.ranking_metrics",
    "NewerFormatError": "tfrec.exceptions",
    "NumberEmbedding": "tfrec.layers",
    "PackedBatches": "tfrec.data.batches",
    "PositionFromNewest": "tfrec.layers",
    "PreparedData": "tfrec.data.prepared",
    "Recommendations": "tfrec.training.results",
    "RecurrentBlock": "tfrec.layers",
    "RelativePositionBias": "tfrec.layers",
    "Run": "tfrec.training.run",
    "SampledSoftmax": "tfrec.models.losses",
    "Scores": "tfrec.training.results",
    "SequenceTower": "tfrec.models.sequence_tower",
    "TaskHead": "tfrec.models.tasks",
    "TfrecError": "tfrec.exceptions",
    "TfrsRetrieval": "tfrec.models.tfrs_task",
    "TimeBias": "tfrec.layers",
    "TimeSplit": "tfrec.data.time_split",
    "TransformerBlock": "tfrec.layers",
    "TwoTower": "tfrec.models.two_tower",
    "UnavailableError": "tfrec.exceptions",
    "Validation": "tfrec.training.callbacks",
    "Vocabulary": "tfrec.data.vocabulary",
    "build_model": "tfrec.training.compiling",
    "change_catalogue": "tfrec.deploy.catalogue",
    "check": "tfrec.deploy.check",
    "compile_model": "tfrec.training.compiling",
    "evaluate": "tfrec.evaluation.judgement",
    "evaluate_cold_items": "tfrec.evaluation.cold",
    "evaluate_run": "tfrec.training.judging",
    "export": "tfrec.deploy.saved_model",
    "export_embeddings": "tfrec.deploy.catalogue",
    "final_config": "tfrec.training.fit",
    "judge": "tfrec.evaluation.judgement",
    "judge_run": "tfrec.training.judging",
    "prepare": "tfrec.data.preparation",
    "prepare_dataset": "tfrec.data.datasets",
    "prepare_history": "tfrec.data.batches",
    "preset": "tfrec.training.presets",
    "recommend_all": "tfrec.deploy.bulk",
    "refresh": "tfrec.deploy.saved_model",
    "resolve": "tfrec.training.resolve",
    "to_litert": "tfrec.deploy.litert",
    "train": "tfrec.training.fit",
    "write_projector": "tfrec.report.projector",
    "write_report": "tfrec.report.page",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfrec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    if "keras" in sys.modules:
        _register_with_keras()
    return value


def __dir__() -> list[str]:
    return __all__


class _KerasWatcher(importlib.abc.MetaPathFinder):
    """Imports our Keras classes right after Keras, so that `keras.models.load_model` finds them after `import tfrec`."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                ours = (other for other in sys.modules if other.startswith("tfrec."))
                # A module of ours that imports Keras is not whole yet: `__getattr__` registers the classes after it.
                if not any(getattr(sys.modules[other].__spec__, "_initializing", False) for other in ours):
                    _register_with_keras()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register_with_keras() -> None:
    for name in (
        "layers",
        "models.two_tower",
        "models.item_tower",
        "models.sequence_tower",
        "models.tasks",
        "models.losses",
        "models.tfrs_task",
    ):
        importlib.import_module(f"tfrec.{name}")


if "keras" in sys.modules:
    _register_with_keras()
else:
    sys.meta_path.insert(0, _KerasWatcher())
