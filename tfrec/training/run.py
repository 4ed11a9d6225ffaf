"""A trained model with what it takes to use it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfrec.data.prepared import ITEMS, PreparedData
from tfrec.data.vocabulary import Vocabulary
from tfrec.evaluation.ranking import recommend
from tfrec.models.two_tower import TwoTower
from tfrec.training.compiling import build_model
from tfrec.training.config import Config

CONFIG, WEIGHTS, METRICS = "config.json", "model.weights.h5", "metrics.json"


@dataclass
class Run:
    """A trained model with what it takes to use it. `Run.open` is the one function that rebuilds a model from a folder.

    Attributes:
        folder: the run folder.
        config: how it was trained.
        model: with the best weights.
        vocabulary: its catalogue.
        items: the columns of `items.parquet`: `item_id`, `num_events`, perhaps `title` and others.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    config: Config
    model: TwoTower
    vocabulary: Vocabulary
    items: dict[str, list]
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Run:
        """Rebuild the model of a run folder.

        Raises:
            ValueError: the folder is no run, or has no weights yet.
        """
        import pyarrow.parquet

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"`{folder}` is not a run: it has no {CONFIG}. Make one with `tfrec train DATA --out {folder}`."
            )
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"`{folder}` has no weights yet: no epoch was finished. Go on with `tfrec train --resume`."
            )
        config = Config.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        vocabulary = Vocabulary.load(folder)
        # the weights are loaded: to draw a large table first would take memory for three
        model = build_model(dataclasses.replace(config, init_stddev=0.0), len(vocabulary))
        model.load_weights(folder / WEIGHTS)
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if (folder / METRICS).is_file() else {}
        return cls(folder, config, model, vocabulary, pyarrow.parquet.read_table(folder / ITEMS).to_pydict(), metrics)

    def recommend(
        self, history: Sequence[str], k: int = 10, timestamps: Sequence[int] = (), request_time: int = 0
    ) -> list[tuple[str, float]]:
        """The `k` best unseen items after `history` (item ids, oldest first), with their scores, best first.

        A model with `time_bias` reads when each item was and when this is asked, in seconds since 1970.
        """
        times = np.asarray(timestamps if len(timestamps) else [0] * len(history), np.int64)
        indexes, counts = self.vocabulary.encode(history), self.items["num_events"]
        items, scores = recommend(self.model, [indexes], k, counts, [times], [request_time])
        return [(i, s) for i, s in zip(self.vocabulary.decode(items[0]), scores[0].tolist(), strict=True) if i]

    def data(self) -> PreparedData:
        """The prepared data it was trained on.

        Raises:
            ValueError: it is gone, or has another catalogue by now.
        """
        data = PreparedData.open(self.config.data)
        if data.vocabulary.item_ids != self.vocabulary.item_ids:
            raise ValueError(
                f"`{self.config.data}` has another catalogue than the one `{self.folder}` was trained on. "
                f"Train again, or evaluate on the data of the run."
            )
        return dataclasses.replace(data, vocabulary=self.vocabulary)  # a large one is held once
