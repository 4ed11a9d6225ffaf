"""The page of a report: one file with everything in it, for a browser, a phone or paper."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tfrec.data.prepared import PreparedData
from tfrec.evaluation.certainty import difference_in_words
from tfrec.evaluation.contenders import BASELINES
from tfrec.files import write_whole
from tfrec.report import charts, facts
from tfrec.training.judging import different_settings, judge_run
from tfrec.training.run import Run
from tfrec.version import __version__

CURVES = {"loss": "training loss", "val_ndcg@10": "NDCG@10 of the validation"}
"""Columns of a run's history that are drawn."""
OF_TARGETS = ("hr", "recall", "ndcg", "map", "mrr")
OF_LISTS = (
    "coverage",
    "gini",
    "popularity",
    "novelty",
    "serendipity",
    "diversity",
    "category_diversity",
    "repeat_share",
)
"""Metrics of the tables, at the first cut-off that is shown."""


def write_report(
    run: Run | str | os.PathLike,
    out: str | os.PathLike = "report.html",
    *,
    data: PreparedData | str | os.PathLike | None = None,
    part: str = "test",
    against: Sequence[str | os.PathLike] = (),
) -> Path:
    """Write what a run can do as one page: no other file, no network, no script.

    It shows what was trained on what, the metrics with intervals beside baselines or other runs, who is better and how sure that
    is, learning curves, slices, popularity bias, a map of the catalogue, users with their recommendations, and how to reproduce it.

    >>> write_report("run", "report.html", against=["popularity", "other-run"])  # doctest: +SKIP
    PosixPath('report.html')

    Args:
        run: `Run` or its folder.
        out: the file to write; it is replaced where it exists. Default: `report.html`.
        data, part, against: see `judge_run`.
    Returns:
        Path of the file.
    Raises:
        ValueError: `out` is a folder; and see `judge_run`.
    """
    run, out = run if isinstance(run, Run) else Run.open(run), Path(out)
    if out.is_dir():
        raise ValueError(f"`{out}` is a folder: pass the file to write, such as `{out / 'report.html'}`.")
    judged = judge_run(run, data, part, against=against)
    found = judged.split.data
    k, first = judged.cutoff, judged.names[0]
    metrics = {name: judged.metrics(name) for name in judged.names}
    intervals = {name: judged.intervals(name) for name in judged.names}
    shown = [f"hr@{k}", f"ndcg@{k}"]
    differences = judged.differences(f"ndcg@{k}")
    best = max(judged.names[1:], key=lambda name: metrics[name][f"ndcg@{k}"], default=None)
    points, categories, share, column = facts.catalogue_map(run)
    own = run.folder.resolve().name  # a run may be given as `.`
    others = {str(name): Run.open(name) for name in against if str(name) not in BASELINES}
    lines = {
        title: {
            label: (one.history["epoch"], one.history[name])
            for label, one in [(own, run), *others.items()]
            if name in one.history
        }
        for name, title in CURVES.items()
    }
    slices = {by: judged.by(by) for by in facts.slice_columns(found)}
    values: dict[str, Any] = {
        "name": own,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "version": __version__,
        "k": k,
        "first": first,
        "part": part,
        "split": judged.split.describe(),
        "repeats": judged.repeats,
        "counts": judged.counts(),
        "verdict": difference_in_words(first, best, f"ndcg@{k}", differences[best]) if best else "",
        "headline": metrics[first],
        "headline_interval": intervals[first],
        "facts": facts.trained_on(run, found),
        "names": judged.names,
        "metrics": metrics,
        "intervals": intervals,
        "target_metrics": [f"{name}@{k}" for name in OF_TARGETS] + ["mrr"],
        "list_metrics": [f"{name}@{k}" for name in OF_LISTS if f"{name}@{k}" in metrics[first]],
        "bars": [
            charts.bars({n: metrics[n][m] for n in metrics}, {n: intervals[n][m] for n in metrics}, m.upper())
            for m in shown
        ],
        "differences": [difference_in_words(first, name, f"ndcg@{k}", one) for name, one in differences.items()],
        "curves": [charts.curves(drawn, title, "epoch", title) for title, drawn in lines.items() if drawn],
        "slices": {by: (rows, _slice_chart(by, rows, judged.names, k)) for by, rows in slices.items()},
        "bias": _bias_chart(facts.shown_by_popularity(judged), k),
        "map": charts.cloud(points, categories, "map of the catalogue"),
        "map_share": share,
        "map_column": column,
        "num_mapped": len(points),
        "examples": facts.examples(run, judged, [first, best] if best else [first]),
        "reproduce": facts.commands(run, own, against),
        "different": {label: different_settings(run, one) for label, one in others.items()},
    }
    page = _environment().get_template("page.html").render(values)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out


def _slice_chart(by: str, rows: list[dict[str, Any]], names: Sequence[str], k: int) -> str:
    """NDCG of each slice, for the first contender and the two best others."""
    number = np.array([row["num_targets"] for row in rows])
    mean = {name: float(number @ [row[name][f"ndcg@{k}"] for row in rows]) for name in names}
    chosen = [names[0], *sorted(names[1:], key=lambda name: -mean[name])[:2]]
    labels = [f"{row['slice']} ({row['num_targets']:,})" for row in rows]
    values = {name: [row[name][f"ndcg@{k}"] for row in rows] for name in chosen}
    return charts.groups(labels, values, f"NDCG@{k} by {by}", f"NDCG@{k}")


def _bias_chart(shares: dict[str, np.ndarray], k: int) -> str:
    tenths = list(range(1, 11))
    lines = {name: (tenths, own.tolist()) for name, own in shares.items()}
    return charts.curves(
        lines, "share of each tenth of the catalogue", "tenth of the catalogue, most popular first", "share"
    )


def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("tfrec.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    found.filters["svg"] = lambda text: jinja2.filters.do_mark_safe(text)  # a chart is ours, and escapes what it shows
    found.filters["figure"] = lambda value: f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return found
