"""Runs judged on the data that they were trained on, beside other runs and baselines."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrec.data.prepared import PreparedData
from tfrec.evaluation.cold import evaluate_cold_items
from tfrec.evaluation.contenders import BASELINES, Contender, baselines_of, of_model
from tfrec.evaluation.judgement import Judgement, evaluate, judge
from tfrec.evaluation.metrics import CUTOFFS
from tfrec.training.config import Config
from tfrec.training.run import Run
from tfrec.training.settings import CONFIG

SPLIT_FIELDS = ("split", "test", "validation", "targets", "cold_items")
"""Fields of a config that decide what is held out."""


def judge_run(
    run: Run,
    data: PreparedData | str | os.PathLike | None = None,
    part: str = "test",
    *,
    against: Sequence[str | os.PathLike] = (),
    repeats: str | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Judgement:
    """`judge` a run, as `"model"`, on its own split, with its own `repeats` and `targets`.

    >>> judge_run(Run.open("run"), against=["popularity", "other-run"]).differences("ndcg@10")  # doctest: +SKIP
    {'popularity': {'difference': 0.14, 'low': 0.12, 'high': 0.17, 'p_value': 1e-30}, 'other-run': ...}

    Args:
        run: `Run`.
        data: the prepared data or where it lies now. Default: where it lay at training.
        part: `"test"` or `"validation"`. Default: `"test"`.
        against: names of `BASELINES` and folders of other runs, which must be trained on the same data and split. Default: the
            baselines that the data has the columns for.
        repeats: `"exclude"` or `"allow"`. Default: `Run.repeats`.
        cutoffs: ints > 0, the k of the metrics. Default: 5, 10, 20.
    Raises:
        ValueError: the run was trained on all events, another run holds out other events, or a name is unknown.
        DataMismatchError: a run was trained on other data.
    """
    check_held_out(run)
    found = run.data(data)
    contenders = {"model": of_model(run.model)} | contenders_of(run, found, against)
    vectors, repeats = np.asarray(run.model.item_tower.catalogue()), repeats or run.repeats
    return judge(run.split(found), contenders, part, repeats=repeats, cutoffs=cutoffs, vectors=vectors)


def evaluate_run(
    run: Run,
    data: PreparedData | str | os.PathLike | None = None,
    part: str = "test",
    *,
    against: Sequence[str | os.PathLike] = (),
    repeats: str | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """`evaluate` a run on its own split, with its own `repeats` and `targets`; new items too, where it was trained without some.

    Args:
        run, data, part, against, repeats, cutoffs: see `judge_run`.
        by: what to slice by, see `slices`. Default: nothing.
    Returns:
        The dict of `evaluate`; `cold_items` in it is that of `evaluate_cold_items`.
    """
    check_held_out(run)
    found, repeats = run.data(data), repeats or run.repeats
    others = contenders_of(run, found, against)
    split = run.split(found)
    result = evaluate(found, part, run.model, split=split, against=others, repeats=repeats, cutoffs=cutoffs, by=by)
    if run.config and run.config.cold_items:
        cold, boost = run.cold_items(data), run.config.new_item_boost
        result["cold_items"] = evaluate_cold_items(cold, part, run.model, boost, repeats)
    return result


def contenders_of(run: Run, data: PreparedData, against: Sequence[str | os.PathLike]) -> dict[str, Contender]:
    """What stands beside a run, by name; see `judge_run`."""
    if not against:
        return baselines_of(data)
    # a folder that is called `model` would take the place of the run
    return {"./model" if str(name) == "model" else str(name): contender(name, run, data) for name in against}


def contender(name: str | os.PathLike, run: Run, data: PreparedData) -> Contender:
    """A baseline by its name, or the model of another run by its folder, as a contender beside `run`."""
    if str(name) in BASELINES:
        return BASELINES[str(name)]
    if not (Path(name) / CONFIG).is_file():
        raise ValueError(f"`{name}` is neither a run nor one of the baselines {', '.join(BASELINES)}.")
    other = Run.open(name)
    check_held_out(other)
    other.settings.check_data(data)
    mine, theirs = (_split_fields(one.config) for one in (run, other))
    if different := [field for field in SPLIT_FIELDS if mine[field] != theirs[field]]:
        raise ValueError(
            f"`{name}` holds out other events than `{run.folder}`: they differ in {', '.join(different)}. Train both alike."
        )
    return of_model(other.model)


def check_held_out(run: Run) -> None:
    """Raise for a run that was trained on all events."""
    if run.config and run.config.final_epochs:
        raise ValueError(
            f"`{run.folder}` was trained on all events, the targets too: there is nothing left to evaluate it on."
        )


def over_seeds(judged: Judgement) -> dict[str, Any]:
    """The mean and the standard deviation of the metrics of contenders that differ in their seeds.

    >>> over_seeds(judge_run(Run.open("seed-0"), against=["seed-1", "seed-2"]))["model"]["ndcg@10"]  # doctest: +SKIP
    {'mean': 0.1318, 'stddev': 0.0042, 'min': 0.1271, 'max': 0.1358}
    """
    every = [judged.metrics(name) for name in judged.names]
    of_seeds: dict[str, dict[str, float]] = {}
    for metric in every[0]:
        values = np.array([one[metric] for one in every])
        found = {"mean": values.mean(), "stddev": values.std(ddof=1), "min": values.min(), "max": values.max()}
        of_seeds[metric] = {name: float(value) for name, value in found.items()}
    return {"num_runs": len(every), "model": of_seeds}


def different_settings(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The fields in which the configs of two runs differ, with both values."""
    mine, theirs = (dataclasses.asdict(one.config or Config()) for one in (run, other))
    return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _split_fields(config: Config | None) -> dict[str, Any]:
    given = dataclasses.asdict(config or Config())
    return {field: given[field] for field in SPLIT_FIELDS}
