"""Charts of a report as inline SVG. They are as wide as a phone, and take their colours from the page: light, dark or print."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

matplotlib.use("svg")  # draws no window
WIDTH, HEIGHT = 5.0, 3.1
"""Inches of 72 units."""
INK, MUTED = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07", "#0a0b08")
"""Colours that stand for those of the page: `svg` puts its variables in their place."""
STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the font of the page
    "text.color": INK,
    "text.parse_math": False,  # "$10 to $20" is no formula
    "xtick.color": INK,
    "ytick.color": INK,
}


def bars(values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], title: str) -> str:
    """A bar for each contender, with its interval; the first stands out."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=0.9 + 0.33 * len(values))
        for place, (name, value) in enumerate(values.items()):
            low, high = intervals[name]
            axes.barh(
                place, value, color=SERIES[0] if place == 0 else MUTED, alpha=1 if place == 0 else 0.55, height=0.62
            )
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6)
            axes.annotate(f"{value:.4f}", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(values)), [_short(name) for name in values])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(high for _, high in intervals.values()) or 1)
        axes.tick_params(left=False)
        told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        return svg(figure, f"{title}: {told}")


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x_label: str, y_label: str) -> str:
    """A line for each name: its x and y, NaN where there is none."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        told = []
        for name, (x, y) in lines.items():
            kept = np.isfinite(np.asarray(y, float))
            x_kept, y_kept = np.asarray(x, float)[kept], np.asarray(y, float)[kept]
            axes.plot(
                x_kept,
                y_kept,
                marker="o" if len(x_kept) < 15 else "",
                markersize=3.5,
                linewidth=1.8,
                label=_short(name),
            )
            told.append(f"{name} from {y_kept[0]:.4g} to {y_kept[-1]:.4g}" if len(y_kept) else f"{name}: none")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(fontsize=9, loc="best")
        return svg(figure, f"{title}: {'; '.join(told)}")


def groups(labels: Sequence[str], values: Mapping[str, Sequence[float]], title: str, x_label: str) -> str:
    """For each label a dot of each name, with a line from the first to the lowest of the others."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=1.2 + 0.3 * len(labels))
        place = np.arange(len(labels))
        for number, (name, own) in enumerate(values.items()):
            style = {"s": 46, "zorder": 3} if number == 0 else {"s": 26, "alpha": 0.85}
            axes.scatter(
                own, place, label=_short(name), marker="oD^sPXv*"[number % 8], color=SERIES[number % 8], **style
            )
        axes.set_yticks(place, [_short(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(x_label)
        axes.grid(axis="y", color=MUTED, alpha=0.25)
        axes.tick_params(left=False)
        columns = min(3, len(values))
        figure.legend(fontsize=9, loc="outside upper center", ncols=columns, handletextpad=0.1)
        first = next(iter(values))
        told = ", ".join(f"{label} {value:.4f}" for label, value in zip(labels, values[first], strict=True))
        return svg(figure, f"{title}, {first}: {told}")


def cloud(points: np.ndarray, categories: Sequence[str], title: str) -> str:
    """Points of a plane, coloured by their category; the most frequent ones have colours."""
    names, counts = np.unique(categories, return_counts=True)
    shown = [name for name in names[np.argsort(-counts)] if name][:7]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=4.4)
        rest = ~np.isin(categories, shown)
        axes.scatter(*points[rest].T, s=4, color=MUTED, alpha=0.35, linewidths=0, label="other" if shown else None)
        for number, name in enumerate(shown):
            own = np.asarray(categories) == name
            axes.scatter(
                *points[own].T, s=6, color=SERIES[number], alpha=0.8, linewidths=0, label=_short(str(name), 18)
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        if shown:
            figure.legend(fontsize=9, markerscale=3, ncols=3, loc="outside upper center", handletextpad=0.1)
        return svg(figure, f"{title}: {len(points):,} items, coloured by {', '.join(map(str, shown)) or 'nothing'}")


def svg(figure: Figure, described: str) -> str:
    """A figure as inline SVG, with a description for those who do not see it."""
    file = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": described}),  # the parts of two charts never share an id
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has the fonts, not matplotlib
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    start = text.index("<metadata>")
    text = text[:start] + text[text.index("</metadata>") + len("</metadata>") :]
    variables = {INK: "var(--ink)", MUTED: "var(--muted)"}
    variables |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)}
    for colour, variable in variables.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(described)}" ', 1)


def _figure(height: float = HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _short(text: str, length: int = 32) -> str:
    """A text that fits, and that a legend shows: matplotlib leaves out those that begin with an underscore."""
    text = f"\u200b{text}" if text.startswith("_") else text
    return text if len(text) <= length else text[: length - 1] + "…"
