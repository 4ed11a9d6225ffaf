"""Tables and lines that commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tfrec.training.results import Attention, Explanation

out = Console()


def print_metrics(result: dict[str, Any]) -> None:
    """The tables of `tfrec evaluate`."""
    rows = list(result["intervals"])
    seen = "kept" if result["repeats"] == "allow" else "removed"
    title = f"{result['part']}: {result['num_users']:,} users, whole catalogue, seen items {seen}"
    if result["num_targets"] > result["num_users"]:
        title = title.replace(" users,", f" users with {result['num_targets']:,} targets,", 1)
    _print_rows(title, result, rows, [f"{m}@{k}" for m in ("hr", "ndcg") for k in result["cutoffs"]] + ["mrr"])
    k = 10 if 10 in result["cutoffs"] else result["cutoffs"][0]
    lists = ["coverage", "gini", "popularity", "novelty", "serendipity", "diversity", "category_diversity"]
    of_lists = [f"{m}@{k}" for m in lists if f"{m}@{k}" in result[rows[0]]]
    _print_rows(f"the lists of {k} items", result, rows, of_lists)
    _print_certainty(result, rows, f"ndcg@{k}")
    if result["split"] != "leave last out":
        out.print(f"Split {result['split']}.", highlight=False)
    if result.get("targets"):
        out.print(f"The targets are events with {' and '.join(result['targets'])}.", markup=False, highlight=False)
    _print_counts(result, rows, k)
    for column, found in result.get("slices", {}).items():
        _print_slices(column, found, rows, k)
    if "task" in result:
        print_task(result["task"])
    if "cold_items" in result:
        print_cold(result["cold_items"])


def print_seeds(result: dict[str, Any]) -> None:
    """The table of `tfrec evaluate --as-seeds`."""
    table = Table(title=f"the model of {result['num_runs']} runs", title_justify="left")
    for column in ("", "mean", "deviation", "min", "max"):
        table.add_column(column, justify="right" if column else "left")
    for metric, found in result["model"].items():
        table.add_row(metric.upper(), *(f"{value:.4f}" for value in found.values()))
    out.print(table)


def _print_rows(title: str, result: dict[str, Any], rows: list[str], metrics: list[str]) -> None:
    """A row for each contender, a column for each metric."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for metric in metrics:
        table.add_column(metric.upper() if metric[:2] in ("hr", "nd", "mr") else metric, justify="right")
    for name in rows:
        values = (f"{v:.4f}" if abs(v) < 10 else f"{v:,.1f}" for v in (result[name][metric] for metric in metrics))
        table.add_row(escape(name), *values, style="bold" if name == "model" else "")
    out.print(table)


def _print_certainty(result: dict[str, Any], rows: list[str], metric: str) -> None:
    """How sure the first contender's figure is, and whether it is better than the best of the others."""
    from tfrec.evaluation.certainty import difference_in_words

    first, *others = rows
    low, high = result["intervals"][first][metric]
    text = f"{metric.upper()} of {first}: {result[first][metric]:.4f}, 95 % interval {low:.4f} to {high:.4f}."
    if others:
        best = max(others, key=lambda name: result[name][metric])
        text += f" {difference_in_words(first, best, metric, result['differences'][metric][best])}"
    out.print(text, markup=False, highlight=False)


def _print_counts(result: dict[str, Any], rows: list[str], k: int) -> None:
    """Users that are not evaluated, and targets that cannot be hit."""
    if result["num_short_users"]:
        few = "too few targets" if result.get("targets") else "fewer than 3 events"
        few = few if result["split"] == "leave last out" else "no target in this part"
        out.print(f"{result['num_short_users']:,} users with {few} are not evaluated.")
    if new := result["num_new_users"]:
        out.print(f"{new:,} users are new: they have no history, and get the popular items.")
    if unseen := result["num_unseen_targets"]:
        share = f"{unseen:,} targets ({unseen / result['num_targets']:.1%})"
        out.print(f"{share} never occur in the training part: misses without item features.")
    if repeated := result["num_repeat_targets"]:
        were = f"{repeated:,} targets ({repeated / result['num_targets']:.1%}) were in the user's history already"
        if result["repeats"] == "exclude":
            out.print(f"{were}: misses, whatever the model.")
        else:
            shares = ", ".join(f"{name} {result[name][f'repeat_share@{k}']:.1%}" for name in rows)
            out.print(f"{were}. Share of them among the hits of HR@{k}: {shares}.")


def _print_slices(column: str, found: list[dict[str, Any]], rows: list[str], k: int) -> None:
    """The table of the slices of a column: HR and NDCG of each contender."""
    table = Table(title=f"HR@{k} / NDCG@{k} by {escape(column)}", title_justify="left")
    for title in ("", "targets", *rows):
        table.add_column(escape(title), justify="right" if title else "left")
    for one in found:
        figures = (f"{one[name][f'hr@{k}']:.4f} / {one[name][f'ndcg@{k}']:.4f}" for name in rows)
        table.add_row(escape(one["slice"]), f"{one['num_targets']:,}", *figures)
    out.print(table)


def print_task(result: dict[str, Any]) -> None:
    """The table of a second head of `tfrec evaluate`."""
    rows = [name for name, value in result.items() if isinstance(value, dict)]
    table = Table(title=f"{escape(result['column'])} of {result['num_targets']:,} targets", title_justify="left")
    table.add_column("")
    for metric in result[rows[0]]:
        table.add_column(metric.upper() if result["kind"] == "number" else metric, justify="right")
    for name in rows:
        values = (f"{value:.4f}" for value in result[name].values())
        table.add_row(name, *values, style="bold" if name == "model" else "")
    out.print(table)


def print_cold(result: dict[str, Any]) -> None:
    """The table of new items of `tfrec evaluate`."""
    table = Table(title=f"{result['num_cold_items']:,} new items, ranked with all others", title_justify="left")
    table.add_column("HR@10 / NDCG@10")
    groups = {"warm": "known items", "cold": "new items", "all": "both"}
    number = {"warm": result["num_warm"], "cold": result["num_cold"], "all": result["num_warm"] + result["num_cold"]}
    for group, title in groups.items():
        table.add_column(f"{title}\n{number[group]:,} targets", justify="right")
    for name, figures in result.items():
        if isinstance(figures, dict):
            row = (f"{figures[group]['hr@10']:.4f} / {figures[group]['ndcg@10']:.4f}" for group in groups)
            table.add_row(name, *row, style="bold" if name == "model" else "")
    out.print(table)


def find_titles(folder: Path | None) -> dict[str, str]:
    """Titles by item id, from the `items.parquet` of an export, a run or a prepared folder; empty where there are none."""
    import pyarrow.parquet

    from tfrec.data.prepared import ITEMS

    places = (
        []
        if folder is None
        else [folder / ITEMS, *sorted(folder.glob(f"*/assets.extra/{ITEMS}")), folder / "assets.extra" / ITEMS]
    )
    for place in places[::-1]:
        if place.is_file():
            columns = pyarrow.parquet.read_table(place).to_pydict()
            return {i: t for i, t in zip(columns["item_id"], columns.get("title", []), strict=False) if t}
    return {}


def print_recommendations(answer: list, names: dict[str, str]) -> None:
    """A table of recommendations, with titles when known."""
    table = Table()
    for column in ["", "item_id", *(["title"] if names else [])]:
        table.add_column(column)
    table.add_column("score", justify="right")
    for rank, (item_id, score) in enumerate(answer, 1):
        table.add_row(str(rank), item_id, *([names.get(item_id, "")] if names else []), f"{score:.4f}")
    out.print(table)


def print_explanation(explanation: Explanation, attention: Attention | None, names: dict[str, str]) -> None:
    """A table for each item: what each position of the history gave, with titles when known."""
    read = {} if attention is None else attention.of_newest()
    blocks = [] if attention is None else [f"block {number}" for number in range(1, len(attention.weights) + 1)]
    for i, item_id in enumerate(explanation.item_ids):
        moved, score = explanation.contributions[i], explanation.scores[i]
        said = f"score {score:.4f}" if score > float("-inf") else "the model does not know it"
        title = escape(f"{item_id} {names.get(item_id, '')}".strip())
        table = Table(title=f"{title}: {said}", title_justify="left")
        for column in ["", "item_id", *(["title"] if names else [])]:
            table.add_column(column)
        for column in ["contribution", "similarity", *blocks]:
            table.add_column(column, justify="right", no_wrap=column not in blocks)
        for place, own in enumerate(explanation.history):
            weights = [" ".join(f"{weight:.2f}" for weight in of_block) for of_block in read.get(place, [])]
            known = [escape(own), *([escape(names.get(own, ""))] if names else [])]
            figures = (f"{moved[place]:+.4f}", f"{explanation.similarities[i, place]:.4f}")
            is_most = moved[place] == max(moved) > 0
            table.add_row(str(place + 1), *known, *figures, *weights, style="bold" if is_most else "")
        out.print(table)
        if explanation.id_score is not None and explanation.content_score is not None and score > float("-inf"):
            parts = f"its id gives {explanation.id_score[i]:+.4f}, its features {explanation.content_score[i]:+.4f}"
            out.print(f"Of the score, {parts}.", highlight=False)
    out.print("The contribution is the score less the score without the item of that row.", highlight=False)
    if blocks:
        out.print(
            "Under each block, a number for each head: the weight of attention with which the newest position reads the item. "
            "Weights by themselves are no explanation: a layer may read an item that does not move the score.",
            highlight=False,
        )


def print_lite(report) -> None:
    """The line of `tfrec lite`."""
    out.print(
        f"Wrote {report.path}: {report.size_bytes / 1e6:.2f} MB, vocabulary.json beside it. Against Keras, over "
        f"{report.num_histories} histories: largest score difference {report.max_difference:.1e}, same items for "
        f"{report.same_items:.0%}."
    )


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2, ensure_ascii=False))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(v, str) for v in value.values()):
            value = "\n".join(f"{key}: {v}" for key, v in value.items())
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {v:,}" for key, v in value.items()) or "none"
        elif isinstance(value, list):
            value = " to ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, float):
            value = f"{value:,.4g}"
        table.add_row(name, "not known" if value is None else escape(str(value)))
    out.print(table)
