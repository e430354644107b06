"""How the predicted vote fractions of a survey are spread, answer by answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rarezoo.embeddings import Embeddings, open_embeddings
from rarezoo.provenance import written_beside
from rarezoo.report.figures import QUIET, blank_figure, to_png
from rarezoo.report.wandb import TrackedRun
from rarezoo.votes import Schema

N_BINS = 50
_ROWS_AT_ONCE = 262_144
_MOST_ANSWERS = 120


def count_fractions(embeddings: Embeddings, n_bins: int = N_BINS) -> NDArray[np.int64]:
    """Galaxies by their predicted fraction of each answer.

    Returns
    -------
    (answers, n_bins), equal bins from 0 to 1
    """
    counts = np.zeros((len(embeddings.label_cols), n_bins), np.int64)
    offsets = n_bins * np.arange(len(counts))
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        fractions = embeddings.vote_fractions(slice(start, start + _ROWS_AT_ONCE))
        bins = np.clip((fractions * n_bins).astype(np.int64), 0, n_bins - 1) + offsets
        counts += np.bincount(bins.ravel(), minlength=counts.size).reshape(counts.shape)
    return counts


def fractions_figure(counts: NDArray[np.int64], schema: Schema) -> Figure:
    """One line of shades for each answer, grouped by question: how many galaxies have which predicted fraction.

    Parameters
    ----------
    counts : (answers, bins) of `count_fractions`; of more than 120 answers, the first are shown
    """
    names = schema.label_cols[:_MOST_ANSWERS]
    shown = counts[: len(names)]
    figure = blank_figure(8.0, 1.2 + 0.19 * len(names))
    axes = figure.add_subplot()
    shades = axes.pcolormesh(
        np.linspace(0, 1, counts.shape[1] + 1),
        np.arange(len(names) + 1),
        np.ma.masked_equal(shown, 0),
        norm=LogNorm(1, max(2, int(shown.max()))),
        cmap="cividis",
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    axes.invert_yaxis()
    first_answers = np.cumsum([len(question.answers) for question in schema.questions])
    axes.hlines(first_answers[first_answers < len(names)], 0, 1, colors=QUIET, linewidths=0.6)
    axes.set(xlabel="predicted vote fraction", xlim=(0, 1))
    axes.tick_params(length=0)
    figure.colorbar(shades, ax=axes, label="galaxies", pad=0.02, fraction=0.04).outline.set_visible(False)
    return figure


def write_fractions(path: Path, folder: Path, tracked: TrackedRun) -> dict[str, Path]:
    """Draw `predicted_fractions.png` of a file of embeddings, and log it with a histogram of each answer.

    Returns
    -------
    {"fractions": path of the figure}; {} where the file has no votes
    """
    with open_embeddings(path) as embeddings:
        if not embeddings.label_cols:
            return {}
        counts = count_fractions(embeddings)
        figure = to_png(fractions_figure(counts, embeddings.schema))
    with written_beside(folder / "predicted_fractions.png") as temporary:
        temporary.write_bytes(figure)
    edges = np.linspace(0, 1, counts.shape[1] + 1)
    tracked.log_images({"predicted_fractions": figure})
    tracked.log_histograms(
        {f"fraction/{name}": (row, edges) for name, row in zip(embeddings.label_cols, counts, strict=True)}
    )
    return {"fractions": folder / "predicted_fractions.png"}
