"""The answers of a run in Python."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa


class Recommendations(NamedTuple):
    """The answer to one history, or a row for each of several.

    Attributes:
        item_ids: array of str, shape `(k,)` or `(histories, k)`, best first; `""` where no item is left.
        scores: float32 array of the same shape; `-inf` where no item is left.
    """

    item_ids: np.ndarray
    scores: np.ndarray

    def to_arrow(self) -> pa.Table:
        """A row for each recommendation: `history` (its number), `rank` from 1, `item_id`, `score`."""
        ids, scores = np.atleast_2d(self.item_ids), np.atleast_2d(self.scores)
        history, rank = np.nonzero(ids != "")
        columns = (history, rank + 1, ids[history, rank], scores[history, rank])
        return pa.table(dict(zip(("history", "rank", "item_id", "score"), columns, strict=True)))

    def to_pandas(self) -> Any:
        """`to_arrow` as a pandas DataFrame; pandas must be installed."""
        return self.to_arrow().to_pandas()


class Scores(NamedTuple):
    """The scores of candidates after one history, or a row for each of several.

    Attributes:
        scores: float32 array, shape `(C,)` or `(histories, C)`; `-inf` for an unknown candidate.
        predicted: array of the same shape, what the second head predicts for each candidate: float32 numbers, NaN for an unknown
            candidate, or the values of a category as text, `""` for an unknown candidate. None for a run without a second head.
    """

    scores: np.ndarray
    predicted: np.ndarray | None
