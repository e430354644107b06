"""What a comparison of representations found: a file of all numbers, and a figure of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rarezoo.provenance import written_beside
from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, plain_axes, to_png
from rarezoo.similarity.compare import Similarity

# In inches: of a cell of the matrix, of the longest side of it, and of a line of text.
_CELL, _LONGEST, _LINE = 0.24, 14.0, 0.12
_LETTER = 0.07
_MOST_WITH_NUMBERS = 16
_UNDEFINED = "#d9dde4"


def write_similarity(folder: Path, found: Similarity) -> dict[str, Any]:
    """Write cka.npz and cka.png.

    Returns
    -------
    figures of `Similarity.describe`, for the record of the run
    """
    found.write(folder / "cka.npz")
    with written_beside(folder / "cka.png") as temporary:
        temporary.write_bytes(to_png(similarity_figure(found)))
    return found.describe()


def most_similar(found: Similarity) -> pd.DataFrame:
    """For each layer of a, the layer of b that is most like it.

    Returns
    -------
    layer_a, layer_b, cka (mean over the orders), low, high (over the orders), permuted (largest size of the same with
    images exchanged); layers of a without any CKA are left out
    """
    defined = np.flatnonzero(np.isfinite(found.mean).any(1))
    best = np.nanargmax(found.mean[defined], 1)
    of_orders = found.cka[:, defined, best]
    return pd.DataFrame(
        {
            "layer_a": np.array(found.layers_a, dtype=object)[defined],
            "layer_b": np.array(found.layers_b, dtype=object)[best],
            "cka": of_orders.mean(0),
            "low": of_orders.min(0),
            "high": of_orders.max(0),
            "permuted": np.abs(found.permuted[:, defined, best]).max(0),
        }
    )


def similarity_figure(found: Similarity) -> Figure:
    """Matrix of all pairs of layers, and beside each row its largest value, in each order, with that of chance.

    Layers without CKA are grey. Where more layers than lines of text have room, every second or third is named.
    """
    n_a, n_b = found.mean.shape
    cell = min(_CELL if max(n_a, n_b) > _MOST_WITH_NUMBERS else 2 * _CELL, _LONGEST / max(n_a, n_b))
    names = [_LETTER * max(map(len, layers)) for layers in (found.layers_a, found.layers_b)]
    height = max(2.2, cell * n_a) + names[1] + 1.2
    figure = blank_figure(max(4.0, cell * n_b) + names[0] + 3.6, height)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(4.0, cell * n_b), 2.2])
    shown = left.imshow(np.ma.masked_invalid(found.mean), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    left.set_facecolor(_UNDEFINED)
    _name(left, found, cell)
    if max(n_a, n_b) <= _MOST_WITH_NUMBERS:
        _number(left, found.mean)
    bar = figure.colorbar(shown, ax=left, label="CKA", pad=0.02, extend="min", fraction=0.03, aspect=30)
    bar.outline.set_visible(False)
    _draw_best(right, found)
    n_orders = len(found.cka)
    seen = f"{found.n_images:,} images, mean of {n_orders} order{'s' if n_orders > 1 else ''}"
    title = "\n".join(_plain([f"a: {found.labels[0]}", f"b: {found.labels[1]}", seen]))
    figure.suptitle(title, fontsize=8, color=INK, x=0.01, ha="left")
    return figure


def _name(axes: Axes, found: Similarity, cell: float) -> None:
    step = math.ceil(_LINE / cell)
    for axis, layers, label in (
        (axes.yaxis, found.layers_a, "layers of a"),
        (axes.xaxis, found.layers_b, "layers of b"),
    ):
        axis.set_ticks(range(0, len(layers), step), _plain(layers[::step]))
        axis.set_label_text(label, fontsize=9, color=INK)
    axes.tick_params(axis="x", labelrotation=90)
    axes.tick_params(labelsize=7, color=QUIET, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _plain(names: Sequence[str]) -> list[str]:
    # matplotlib would set what stands between two of them as a formula.
    return [name.replace("$", r"\$") for name in names]


def _number(axes: Axes, mean: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(mean):
        if np.isfinite(value):
            colour = "white" if value < 0.5 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _draw_best(axes: Axes, found: Similarity) -> None:
    plain_axes(axes)
    table = most_similar(found).set_index("layer_a")
    rows = [found.layers_a.index(name) for name in table.index]
    axes.hlines(rows, table["low"], table["high"], color=PALETTE[4], linewidth=1.4)
    axes.plot(table["cka"], rows, "o", markersize=3.5, color=PALETTE[4], label="most similar layer of b")
    axes.plot(table["permuted"], rows, "|", markersize=5, color=PALETTE[5], label="images permuted")
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.set(xlim=(-0.05, 1.05), xlabel="CKA (mean and range)")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
