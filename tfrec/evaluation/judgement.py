"""Contenders on the same requests: metrics, how sure they are, who is better, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut, Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.certainty import corrected, interval, paired_p_value, resampled_means
from tfrec.evaluation.contenders import Contender, baselines_of, of_model
from tfrec.evaluation.lists import Catalogue, list_metrics
from tfrec.evaluation.metrics import CUTOFFS, Ranking, means, metrics_of_requests
from tfrec.evaluation.ranking import embed_histories, rank_targets
from tfrec.evaluation.slices import slices
from tfrec.evaluation.tasks import evaluate_task
from tfrec.models.two_tower import TwoTower

RESERVED = {
    "cold_items",
    "cutoffs",
    "differences",
    "intervals",
    "part",
    "repeats",
    "slices",
    "split",
    "targets",
    "task",
}
"""Names in the result of `evaluate` that are no contenders."""


@dataclass(frozen=True)
class Judgement:
    """What contenders did on the requests of one part of a split.

    >>> data = PreparedData.from_histories(["abcd", "badc", "cbad", "dacb"])
    >>> judged = judge(LeaveLastOut(data), baselines_of(data))
    >>> judged.names, judged.values["bigram"]["hr@5"].shape
    (['popularity', 'bigram', 'item-knn'], (4,))

    Attributes:
        split: `Split`.
        part: str, `"validation"` or `"test"`.
        repeats: str, `"exclude"` or `"allow"`.
        cutoffs: tuple of int.
        rankings: dict, a `Ranking` by contender, with the first items of each ranking.
        values: dict, by contender and metric float64 arrays, shape `(requests,)`.
        of_all: dict, by contender the metrics that belong to all lists together, such as `coverage@10`.
    """

    split: Split
    part: str
    repeats: str
    cutoffs: tuple[int, ...]
    rankings: dict[str, Ranking]
    values: dict[str, dict[str, np.ndarray]]
    of_all: dict[str, dict[str, float]]

    @property
    def names(self) -> list[str]:
        """The contenders, the first being the one that the others are compared with."""
        return list(self.rankings)

    @property
    def cutoff(self) -> int:
        """The k of what is shown first: 10 where it is asked for."""
        return 10 if 10 in self.cutoffs else self.cutoffs[0]

    def metrics(self, name: str) -> dict[str, float]:
        """The means of a contender, and the metrics of all its lists."""
        found = means(self.values[name]) | self.of_all[name]
        if self.repeats == "allow":
            found[f"repeat_share@{self.cutoff}"] = self.rankings[name].share_of(self._is_repeat, self.cutoff)
        return found

    def intervals(self, name: str) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each mean, by the bootstrap over requests."""
        return {metric: interval(means) for metric, means in self._resampled[name].items()}

    def difference(self, name: str, other: str, metric: str) -> dict[str, float]:
        """How much better `name` is than `other`: `difference`, its 95 % interval `low` and `high`, and the paired `p_value`."""
        both = self.values[name][metric], self.values[other][metric]
        low, high = interval(self._resampled[name][metric] - self._resampled[other][metric])
        difference = float(both[0].mean() - both[1].mean())
        return {"difference": difference, "low": low, "high": high, "p_value": paired_p_value(*both)}

    def differences(self, metric: str) -> dict[str, dict[str, float]]:
        """`difference` of the first contender and each other one, with p-values corrected for their number."""
        first, *others = self.names
        found = {other: self.difference(first, other, metric) for other in others}
        p_values = corrected({other: one["p_value"] for other, one in found.items()})
        return {other: one | {"p_value": p_values[other]} for other, one in found.items()}

    def by(self, column: str) -> list[dict[str, Any]]:
        """The metrics of slices, see `slices`: `slice`, `num_requests`, `num_targets` and the means of each contender by name.

        A slice of targets ranks them among all items, as the whole does; it counts the requests that have such a target.
        """
        found = []
        for label, whose, is_kept in slices(self.split, self.part, column):
            if whose == "users":
                is_target = is_kept[self.split.requests(self.part).of_targets]
                own = {n: {m: v[is_kept] for m, v in values.items()} for n, values in self.values.items()}
            else:
                is_target = is_kept
                own = {n: metrics_of_requests(r.only(is_kept), self.cutoffs) for n, r in self.rankings.items()}
            number = int(np.isfinite(next(iter(own.values()))["mrr"]).sum())
            counts = {"slice": label, "num_requests": number, "num_targets": int(is_target.sum())}
            found.append(counts | {name: means(values) for name, values in own.items()})
        return found

    def counts(self) -> dict[str, int]:
        """How many requests and targets there are, and targets that cannot be hit.

        `num_repeat_targets` were in the user's history: misses where repeats are excluded. `num_unseen_targets` never occur in the
        training part: only features can find them.
        """
        asked, targets = self.split.requests(self.part), self.split.targets(self.part) - FIRST_ITEM_INDEX
        return {
            "num_users": len(asked.users),
            "num_targets": len(targets),
            "num_short_users": self.split.data.num_users - len(asked.users),
            "num_new_users": int((asked.starts == asked.ends).sum()),
            "num_repeat_targets": int(self._is_repeat.sum()),
            "num_unseen_targets": int((self.split.train_counts()[targets] == 0).sum()),
        }

    def to_dict(self, by: Sequence[str] = ()) -> dict[str, Any]:
        """All of it as plain values; see `evaluate`.

        Args:
            by: what to slice by, see `slices`. Default: nothing.
        """
        result: dict[str, Any] = {name: self.metrics(name) for name in self.names}
        result["intervals"] = {name: self.intervals(name) for name in self.names}
        shown = (f"hr@{self.cutoff}", f"ndcg@{self.cutoff}")
        result["differences"] = {metric: self.differences(metric) for metric in shown}
        result |= {"slices": {column: self.by(column) for column in by}} if by else {}
        result |= {"part": self.part, "split": self.split.describe(), "repeats": self.repeats}
        result |= {"cutoffs": list(self.cutoffs)} | self.counts()
        return result | ({"targets": list(self.split.rules)} if self.split.rules else {})

    @cached_property
    def _is_repeat(self) -> np.ndarray:
        return self.split.is_repeat(self.part)

    @cached_property
    def _resampled(self) -> dict[str, dict[str, np.ndarray]]:
        """Means of the same resamples for all contenders: a difference of them is a paired one."""
        columns = [(name, metric) for name, values in self.values.items() for metric in values]
        found = resampled_means([self.values[name][metric] for name, metric in columns])
        result: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.values}
        for (name, metric), own in zip(columns, found.T, strict=True):
            result[name][metric] = own
        return result


def judge(
    split: Split,
    contenders: Mapping[str, Contender],
    part: str = "test",
    *,
    repeats: str = "exclude",
    cutoffs: Sequence[int] = CUTOFFS,
    vectors: np.ndarray | None = None,
    by: Sequence[str] = (),
) -> Judgement:
    """Rank the held-out targets by several contenders.

    Args:
        split: `Split`.
        contenders: dict, `Contender`s by name; the first is compared with the others.
        part: str, `"test"` or `"validation"`. Default: `"test"`.
        repeats: str, `"exclude"` or `"allow"`; see `rank`. Default: `"exclude"`.
        cutoffs: ints > 0, the k of the metrics. Default: 5, 10, 20.
        vectors: float32 array, shape `(num_items, D)`, for the diversity of lists. Default: none.
        by: what `Judgement.by` will be asked for, to be refused before the ranking where it is unknown. Default: nothing.
    Raises:
        ValueError: a cut-off is below 1, a contender has the name of a figure, or nothing is held out.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"Cut-offs are whole numbers from 1. Received: {list(cutoffs)}.")
    cutoffs = tuple(dict.fromkeys(cutoffs))
    if taken := RESERVED & set(contenders):
        raise ValueError(
            f"A contender cannot be called {taken.pop()!r}, which is a figure of the result: choose another name."
        )
    check_requests(split, part)
    for column in by:
        next(slices(split, part, column), None)  # an unknown column is told before the ranking
    catalogue, wanted = Catalogue.of(split, vectors), _keys(split, part)
    rankings, values, of_all = {}, {}, {}
    for name, contender in contenders.items():
        ranking = rank_targets(contender(split, part), split, part, repeats, top=max(cutoffs))
        row = np.arange(len(ranking.items), dtype=np.int64)[:, None]
        is_hit = np.isin(row * ranking.num_items + ranking.items, wanted) & (ranking.items >= 0)
        of_lists, of_all[name] = list_metrics(ranking.items, is_hit, catalogue, cutoffs)
        rankings[name], values[name] = ranking, metrics_of_requests(ranking, cutoffs) | of_lists
    return Judgement(split, part, repeats, cutoffs, rankings, values, of_all)


def check_requests(split: Split, part: str) -> None:
    """Raise unless something is held out in a part."""
    if len(split.requests(part).users):
        return
    if not isinstance(split, LeaveLastOut):
        raise ValueError(f"No user has an event to be found in the {part} part: choose other times.")
    needed = f"2 events {' and '.join(split.rules)} after another one" if split.rules else "3 events"
    raise ValueError(f"No user has {needed} (one of history, a validation and a test target): nothing to evaluate.")


def evaluate(
    data: PreparedData,
    part: str = "test",
    model: TwoTower | None = None,
    *,
    repeats: str = "exclude",
    targets: Sequence[str] = (),
    split: Split | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    against: Mapping[str, Contender] | None = None,
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """Rank the held-out targets by a model and by what it is compared with; the figures of `tfrec evaluate`.

    >>> data = PreparedData.from_histories([["a", "b", "c"], ["b", "c", "a"]])
    >>> evaluate(data)["num_users"]
    2

    Args:
        data: `PreparedData`.
        part: `"test"` or `"validation"`. Default: `"test"`.
        model: `TwoTower`, trained. Default: the others alone.
        repeats: str, `"exclude"` leaves the items of the history out of the ranking, `"allow"` ranks them too; `Run.repeats` is
            the choice that a run was trained with. Default: `"exclude"`.
        targets: texts, which events are to be found; see `LeaveLastOut`. `Run.targets` are those of a run. Default: all.
        split: `Split` of the data; `Run.split(data)` is that of a run. Default: `LeaveLastOut`.
        cutoffs: ints > 0, the k of the metrics. Default: 5, 10, 20.
        against: dict, `Contender`s by name. Default: the baselines that the data has the columns for, see `baselines_of`.
        by: what to slice by, see `slices`. Default: nothing.
    Returns:
        By contender its metrics, the model's as `"model"`; see `metrics_of_requests` and `list_metrics`, and with `repeats="allow"`
        `repeat_share@10`, the share of repeats among the hits. `intervals`: by contender and metric the 95 % interval of the mean.
        `differences`: by metric and contender how much the first one is better, see `Judgement.differences`. `slices`: by column,
        see `Judgement.by`. Counts, see `Judgement.counts`. With a model that has a `task_head` also `task`; see `evaluate_task`.
    Raises:
        ValueError: nothing is held out, or an argument holds another value.
    """
    split = LeaveLastOut(data, targets=targets) if split is None else split
    contenders = {} if model is None else {"model": of_model(model)}
    if contenders.keys() & (against or {}).keys():
        raise ValueError("`against` has a contender 'model' beside `model`: choose another name.")
    contenders |= baselines_of(data) if against is None else against
    vectors = None if model is None else np.asarray(model.item_tower.catalogue())
    judged = judge(split, contenders, part, repeats=repeats, cutoffs=cutoffs, vectors=vectors, by=by)
    result = judged.to_dict(by)
    if model is not None and model.task_head is not None:
        result["task"] = evaluate_task(model, split, part, embed_histories(model, split, part))
    return result


def _keys(split: Split, part: str) -> np.ndarray:
    """int64: request and item of each target as one number."""
    return split.requests(part).of_targets * split.data.num_items + split.targets(part) - FIRST_ITEM_INDEX
