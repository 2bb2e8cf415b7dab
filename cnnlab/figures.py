"""Pictures of a run, drawn with matplotlib and written as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from cnnlab.writing import write_atomically

if TYPE_CHECKING:
    from cnnlab.analysis.cost import NetworkCost

CORRECT, WRONG = "#1a7f37", "#c93c37"
"""Colors of captions."""


def contact_sheet(
    images: Sequence[npt.NDArray[np.generic]],
    titles: Sequence[str],
    path: Path,
    heading: str,
    columns: int = 8,
    colors: Sequence[str] | None = None,
) -> None:
    """Draw images in rows, each with a title.

    Args:
        images: (C, H, W) each, C 1 or 3; uint8 0..255 or float 0..1.
        titles: A title for each image.
        path: The PNG file.
        heading: The heading of the figure.
        columns: Images in a row; for wide images, a divisor of it.
        colors: The colors of the titles; black if None.
    """
    # All images in one axes, in units of inches: one axes per image would take a second to lay out.
    ratio = max(image.shape[2] / image.shape[1] for image in images)
    width, side, line = 1.4 * min(max(ratio, 1.0), 4.0), 1.4, 0.15
    # A divisor of columns, so that groups stay together.
    columns = max(count for count in range(1, columns + 1) if columns % count == 0 and count <= max(16 / width, 1))
    columns = min(columns, len(images))
    room = line * max(title.count("\n") + 1 for title in titles) + 0.1
    rows = math.ceil(len(images) / columns)
    size = max(columns * (width + 0.1), 4.0), rows * (side + room) + 0.5
    figure = Figure(figsize=size)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axis.text(size[0] / 2, 0.28, _literal(heading), ha="center", va="center", fontsize=12)
    for place, (channels, title) in enumerate(zip(images, titles, strict=True)):
        image = np.moveaxis(channels, 0, -1)
        scale = min(width / image.shape[1], side / image.shape[0])
        center = (place % columns + 0.5) * (width + 0.1)
        top = 0.5 + place // columns * (side + room) + room
        left, bottom = center - image.shape[1] * scale / 2, top + image.shape[0] * scale
        axis.imshow(
            image[..., 0] if image.shape[-1] == 1 else image,
            cmap="gray",
            interpolation="nearest",
            aspect="auto",
            extent=(left, left + image.shape[1] * scale, bottom, top),
        )
        color = "black" if colors is None else colors[place]
        axis.text(center, top - 0.05, _literal(title), ha="center", va="bottom", fontsize=9, color=color, clip_on=True)
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))
    _save(figure, path)


def scatter(
    points: npt.NDArray[np.floating], classes: npt.NDArray[np.integer], names: Sequence[str], path: Path, heading: str
) -> None:
    """Draw points (N, 2) into a PNG file, colored by their classes (N,), with the classes' names and a heading."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    axis = figure.subplots()
    colors = colormaps["tab20" if len(names) > 10 else "tab10"]
    for number in np.unique(classes):
        own = points[classes == number]
        axis.scatter(own[:, 0], own[:, 1], s=10, color=colors(int(number) % colors.N), label=_literal(names[number]))
    axis.set(title=_literal(heading), xticks=[], yticks=[])
    if len(names) <= 40:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, markerscale=2)
    _save(figure, path)


def confusion_matrix(counts: npt.NDArray[np.int64], names: Sequence[str], path: Path, unit: str = "images") -> None:
    """Draw a confusion matrix (K, K), truth in rows, of images or another unit, into a PNG file.

    It is colored by the share of each true class, and has the counts if they are legible.
    """
    count = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 3 + 0.45 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="truth", title=f"{int(counts.sum()):,} {unit}, {np.trace(counts):,} right")
    if count <= 50:
        labels = [_literal(name) for name in names]
        axis.set_xticks(range(count), labels, rotation=90 if max(map(len, names)) > 3 else 0)
        axis.set_yticks(range(count), labels)
    if count <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, _short(int(counts[row, column])), ha="center", va="center", fontsize=8, color=color)
    _save(figure, path)


def bars(names: Sequence[str], values: dict[str, Sequence[float]], unit: str, title: str, path: Path) -> None:
    """Draw a group of horizontal bars for each name, from the top down, into a PNG file.

    values has each measurement's values, one a name, in the unit.
    """
    height = 0.8 / max(len(values), 1)
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, (label, numbers) in enumerate(values.items()):
        places = np.arange(len(names)) + (i - (len(values) - 1) / 2) * height
        drawn = axes.barh(places, numbers, height, label=label)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names)), [_literal(name) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    axes.set_title(_literal(title), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(values), frameon=False)
    _save(figure, path)


def layers_chart(cost: NetworkCost, title: str, path: Path) -> None:
    """Draw the cost and the receptive field of a network's layers, from the input to the output, into a PNG file."""
    layers = cost.layers
    places, borders = np.arange(len(layers)), np.arange(len(layers) + 1) - 0.5
    panels = {
        "parameters, millions": [layer.parameters / 1e6 for layer in layers],
        "multiply-adds, millions": [layer.multiply_adds / 1e6 for layer in layers],
        "activations, MB an image": [layer.activation_bytes / 1e6 for layer in layers],
    }
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    for axis, (label, values) in zip(axes, panels.items(), strict=False):
        axis.stairs(values, borders, fill=True)  # Hundreds of bars would be slow.
        axis.set_title(label, loc="left", fontsize=10)
    fields = [layer.receptive_field.fields for layer in layers]
    sizes = [np.nan if field is None else field[0].size for field in fields]
    axes[3].plot(places, sizes, drawstyle="steps-mid", label="through windows")
    axes[3].axhline(cost.image[1], color="gray", linewidth=0.8, linestyle="--", label="the image's height")
    if whole := [place for place, layer in enumerate(layers) if layer.receptive_field.whole_image]:
        axes[3].axvspan(whole[0] - 0.5, len(layers) - 0.5, alpha=0.12, label="the whole image besides")
    axes[3].set_title("receptive field, pixels", loc="left", fontsize=10)
    axes[3].legend(frameon=False, fontsize=8, loc="upper left")
    axes[3].set_xlabel("layers, from the input to the output")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_literal(title))
    _save(figure, path)


def _short(count: int) -> str:
    """Format a count so that it fits into a field.

    >>> _short(9999), _short(123456), _short(12345678)
    ('9999', '123k', '12M')
    """
    return str(count) if count < 10_000 else f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


def _literal(text: str) -> str:
    r"""Escape text so that matplotlib does not read it as mathematics.

    >>> print(_literal("a$b$"))
    a\$b\$
    """
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_atomically(path, file.getbuffer())
