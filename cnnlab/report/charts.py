"""Charts of the report: SVG from matplotlib, for pages with light or dark colors."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import escape
from matplotlib.figure import Figure

from cnnlab.report.facts import Series, Table

_INK = "#010203"
"""A placeholder for the page's text color until the SVG is written."""
_HUE = (0.23, 0.51, 0.96)
COLORS = ["#3b82f6", "#e0692b", "#2a9d5c", "#b455c9", "#c7425b", "#1aa3a8", "#8a8f3a", "#7c6f64"]
"""Legible on white and on black."""
_MOST_POINTS = 600
_MOST_NAMES = 12
"""Of more lines, a legend would hide the chart."""
_NUMBER = itertools.count()
_STYLE: Any = {
    "svg.fonttype": "none",
    # Names are not mathematical notation.
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def lines(series: Mapping[str, Series], title: str, legend: bool = True) -> str:
    """Values over the steps, with one line for each series, by the names in the legend. Returns SVG."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for (name, points), color in zip(series.items(), itertools.cycle(COLORS), strict=False):
            steps, values = np.array(_thinned(points), dtype=np.float64).T
            finite = np.isfinite(values)
            axis.plot(steps[finite] + 1, values[finite], color=color, label=name, linewidth=1.4)
            if finite.sum() == 1:
                axis.plot(steps[finite] + 1, values[finite], "o", color=color, markersize=4)
        axis.set(xlabel="step", title=title)
        axis.grid(color=_INK, alpha=0.12, linewidth=0.6)
        if legend:
            axis.legend(fontsize=8)

    said = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in series.items())
    return _svg(draw, (5.4, 3.0), f"{title} over the steps: {said}")


def confusion(counts: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """A confusion matrix (K, K), colored by the share of each true class; rows are the true classes. Returns SVG."""
    count = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        cells = np.empty((count, count, 4))
        cells[..., :3] = _HUE
        cells[..., 3] = share
        axis.imshow(cells, interpolation="nearest")
        axis.set(xlabel="predicted", ylabel="truth")
        if count <= 40:
            labels = [name if len(name) <= 24 else name[:23] + "…" for name in names]
            axis.set_xticks(range(count), labels, rotation=90 if max(map(len, names)) > 2 else 0)
            axis.set_yticks(range(count), labels)
        if count <= 16:
            for row, column in zip(*np.nonzero(counts), strict=True):
                number = int(counts[row, column])
                text = str(number) if number < 10_000 else f"{number / 1000:.0f}k"
                axis.text(column, row, text, ha="center", va="center", fontsize=7)

    side = min(9.0, 2.6 + 0.32 * count)
    right = np.trace(counts) / max(int(counts.sum()), 1)
    return _svg(draw, (side + 0.6, side), f"Confusion matrix of {count} classes; {right:.2%} on the diagonal")


def reliability(bins: Table) -> str:
    """A reliability diagram: the share of correct predictions for each range of probabilities. Returns SVG."""
    filled = [row for row in bins if int(row["images"])]
    probability = [float(row["probability"]) for row in filled]
    accuracy = [float(row["accuracy"]) for row in filled]
    counts = np.array([int(row["images"]) for row in bins])

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], color=_INK, alpha=0.35, linewidth=1, linestyle="--")
        above.plot(probability, accuracy, "o-", color=COLORS[0], linewidth=1.4, markersize=4)
        above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
        edges = [float(row["from"]) for row in bins]
        below.bar(edges, counts / counts.sum(), width=1 / len(bins), align="edge", color=COLORS[0], alpha=0.6)
        below.set(xlabel="probability of the predicted class", ylabel="images")
        for axis in (above, below):
            axis.grid(color=_INK, alpha=0.12, linewidth=0.6)

    said = ", ".join(f"{p:.0%}: {a:.0%} right" for p, a in zip(probability, accuracy, strict=True))
    return _svg(draw, (4.2, 3.8), f"Reliability diagram. {said}")


def values(pairs: Table, scores: Table) -> list[str]:
    """For each value, the predictions and the errors against the truth. Returns SVGs."""
    charts = []
    for row in scores:
        name = row["value"]
        true = np.array([float(pair[f"target {name}"]) for pair in pairs])
        predicted = np.array([float(pair[f"predicted {name}"]) for pair in pairs])
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        panels = {
            "prediction": (predicted, (ends, ends), f"{name}: prediction over truth; R2 {float(row['r2']):.3f}"),
            "error": (predicted - true, (ends, [0, 0]), f"{name}: error over truth; mean {float(row['mae']):.4g}"),
        }
        for label, (heights, line, title) in panels.items():
            charts.append(_svg(partial(_draw_points, true, heights, line, label, title), (4.2, 3.8), title))
    return charts


def objects(precision: Table, f1: Table) -> list[str]:
    """Precision over recall, and F1 over the score, with a line for each class. Returns SVGs."""
    charts = []
    for rows, across, title in ((precision, "recall", "precision over recall"), (f1, "score", "F1 over score")):
        names = [name for name in (rows[0] if rows else ()) if name != across]
        charts.append(_svg(partial(_draw_shares, rows, across, names, title), (5.4, 3.4), f"{title}, IoU 0.5"))
    return charts


def _draw_shares(rows: Table, across: str, names: Sequence[str], title: str, figure: Figure) -> None:
    axis = figure.subplots()
    at = [float(row[across]) for row in rows]
    for name, color in zip(names, itertools.cycle(COLORS), strict=False):
        values = [float(row[name] or "nan") for row in rows]
        axis.plot(at, values, color=color, label=name, linewidth=1.4)
    axis.set(xlabel=across, title=f"{title}, IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(color=_INK, alpha=0.12, linewidth=0.6)
    if 1 < len(names) <= _MOST_NAMES:
        axis.legend(fontsize=8)


def _draw_points(
    true: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], line: Any, label: str, title: str, figure: Figure
) -> None:
    axis = figure.subplots()
    axis.plot(*line, color=_INK, alpha=0.35, linewidth=1, linestyle="--")
    # More points do not show more, and make the page large.
    some = slice(None, None, max(1, len(true) // 3000))
    axis.plot(true[some], heights[some], "o", color=COLORS[0], markersize=3, alpha=0.5, markeredgewidth=0)
    axis.set(xlabel="truth", ylabel=label, title=title)
    axis.grid(color=_INK, alpha=0.12, linewidth=0.6)


def _thinned(points: Series) -> Series:
    """Reduce the points to the maximum number of a line, by means of neighbors."""
    if len(points) <= _MOST_POINTS:
        return points
    parts = np.array_split(np.array(points, dtype=np.float64), _MOST_POINTS)
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _svg(draw: Any, size: tuple[float, float], description: str) -> str:
    """Convert the figure of draw() to SVG, with unique ids and the page's text color.

    >>> _svg(lambda figure: figure.text(0, 0, "<b>"), (1, 1), "a & b")[:53]
    '<svg role="img" aria-label="a &amp; b" class="chart" '
    """
    prefix = f"c{next(_NUMBER)}-"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{prefix}", text)
    text = text.replace(_INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" class="chart" ', 1)
