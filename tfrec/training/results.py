"""The answers of a run in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

LABEL = 24
"""Characters of a label in a plot; a longer one is cut."""


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


class Explanation(NamedTuple):
    """Why items have their scores after one history.

    Attributes:
        item_ids: array of str, shape `(items,)`.
        scores: float32 array of that shape, as `Run.score` gives them; `-inf` for an unknown item.
        history: array of str, shape `(L,)`: the item ids of the history as given, oldest first.
        contributions: float32 array, shape `(items, L)`: the score less the score without that one position. 0 at unknown ids, and
            at items too old to be read. Of a history with one known item, its contribution is the score.
        similarities: float32 array of that shape: the cosine of the item's vector with that of each item of the history; 0 where
            one of them is unknown.
        id_score, content_score: float32 arrays, shape `(items,)`, whose sum is the score: what the row of the id table gives, and
            what the features of the item give. NaN for an unknown item, and after a history without a known item, which gets the
            share of popular items. None for a run whose items have no content, or an MLP that mixes the two.
    """

    item_ids: np.ndarray
    scores: np.ndarray
    history: np.ndarray
    contributions: np.ndarray
    similarities: np.ndarray
    id_score: np.ndarray | None = None
    content_score: np.ndarray | None = None

    def to_arrow(self) -> pa.Table:
        """A row for each item and position: `item_id`, `score`, `position` from 1 (the oldest), `history_item_id`, `contribution`,
        `similarity`; also `id_score` and `content_score` where they are known.
        """
        length = len(self.history)
        of_items = {"item_id": self.item_ids, "score": self.scores}
        found: dict[str, Any] = {name: np.repeat(values, length) for name, values in of_items.items()}
        found["position"] = np.tile(np.arange(1, length + 1), len(self.item_ids))
        found["history_item_id"] = np.tile(self.history, len(self.item_ids))
        found |= {"contribution": self.contributions.ravel(), "similarity": self.similarities.ravel()}
        if self.id_score is not None and self.content_score is not None:
            found["id_score"] = np.repeat(self.id_score, length)
            found["content_score"] = np.repeat(self.content_score, length)
        return pa.table(found)

    def to_pandas(self) -> Any:
        """`to_arrow` as a pandas DataFrame; pandas must be installed."""
        return self.to_arrow().to_pandas()


class Attention(NamedTuple):
    """The attention weights of every block and head for one history.

    A weight says what a layer reads. It does not say what moved a score: other weights can give the same answer, and a block adds
    to what the position holds already (Jain & Wallace 2019, "Attention is not Explanation"). `Run.explain` measures what moved it.

    Attributes:
        item_ids: array of str, shape `(L,)`: the known items of the history that the model reads, oldest first.
        positions: int array of that shape, the place of each in the history as given; 0 is the oldest.
        weights: list of float32 arrays, one for each block, shape `(heads, L, L)`: `[h, i, j]` is how much of position `j` position
            `i` takes. A row adds up to 1, but for blocks of HSTU, whose weights may be below 0.
    """

    item_ids: np.ndarray
    positions: np.ndarray
    weights: list[np.ndarray]

    def of_newest(self) -> dict[int, list[np.ndarray]]:
        """What the newest position reads, by the position that is read: for each block an array with the weight of each head."""
        return {
            int(place): [weights[:, -1, column] for weights in self.weights]
            for column, place in enumerate(self.positions)
        }

    def plot(self, labels: Sequence[str] | None = None) -> Any:
        """Draw a grid of the weights: a row for each block, a column for each head.

        Args:
            labels: str for each of `item_ids`, such as titles. Default: the item ids.
        Returns:
            Figure of matplotlib. A notebook shows it, and `savefig` writes it to a file.
        Raises:
            ValueError: no item of the history is known, or there is another number of labels.
        """
        names = self.item_ids.tolist() if labels is None else list(labels)
        if not len(self.item_ids):
            raise ValueError("No item of the history is known: there are no weights to plot.")
        if len(names) != len(self.item_ids):
            raise ValueError(f"`labels` must have one for each item: {len(self.item_ids)}. Received: {len(names)}.")
        from matplotlib import pyplot  # takes a second, which nothing else needs

        names = [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in names]
        blocks, heads = len(self.weights), len(self.weights[0])
        step = -(-len(names) // 25)  # more labels could not be read
        ticks = range((len(names) - 1) % step, len(names), step)  # the newest has one
        shown, hidden = [names[i] for i in ticks], [""] * len(ticks)
        room = 1.0 + 0.07 * max(map(len, shown))  # inches for the labels
        size = (2.6 * heads + room + 0.6, 2.6 * blocks + room)
        figure, axes = pyplot.subplots(blocks, heads, figsize=size, squeeze=False, layout="constrained")
        is_later = np.triu(np.ones((len(names), len(names)), bool), 1)
        for block, weights in enumerate(self.weights):
            for head, (axis, of_head) in enumerate(zip(axes[block], weights, strict=True)):
                seen = np.where(is_later, np.nan, of_head)
                image = axis.imshow(seen, vmin=min(0.0, weights.min()), vmax=weights.max())
                axis.set_title(f"block {block + 1}, head {head + 1}", fontsize=9)
                axis.set_xticks(ticks, shown if block == blocks - 1 else hidden, rotation=90, fontsize=7)
                axis.set_yticks(ticks, shown if head == 0 else hidden, fontsize=7)
            figure.colorbar(image, ax=axes[block].tolist(), fraction=0.05)
        figure.supxlabel("looked at", fontsize=9)
        figure.supylabel("looks", fontsize=9)
        pyplot.close(figure)  # or a notebook would show it twice
        return figure


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each vector of `a`, `(A, width)`, with each of `b`, `(B, width)`; 0 with a vector of zeros.

    >>> cosines(np.array([[3.0, 4.0]]), np.array([[6.0, 8.0], [4.0, -3.0], [0.0, 0.0]])).round(6).tolist()
    [[1.0, 0.0, 0.0]]
    """
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (a, b)]
    return unit[0] @ unit[1].T
