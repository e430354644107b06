"""Example galaxies beside what the model expected of their volunteers, and what those said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import betabinom

from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, to_png
from rarezoo.votes import Schema, fraction_posterior

N_GALAXIES = 6
_LEVEL = 0.9
_COLUMNS = 2
_MOST_ROWS = 26
_LETTERS = 24
_STRETCH = (0.5, 99.7)
_MEAN, _SEEN = PALETTE[4], PALETTE[5]


@dataclass(frozen=True)
class _Row:
    """One line of a chart: the head of a question (index None), or an answer."""

    text: str
    index: int | None = None
    n_votes: float = 0.0
    total: float = 0.0


def predictions_figure(
    images: NDArray[np.uint8],
    concentrations: NDArray[np.floating],
    counts: NDArray[np.floating],
    schema: Schema,
    n: int = N_GALAXIES,
) -> bytes:
    """Up to n galaxies, each with the predicted and the observed vote fractions of the questions that were asked.

    Thick bars are 90% credible intervals of the fraction of volunteers in general, thin lines those of the fraction of
    as many volunteers as were asked, in which nine of ten observed fractions should lie.

    Parameters
    ----------
    images : (galaxies, channels, height, width); one channel is shown in grey, three as colours, and of any other
        number the mean, stretched between its percentiles
    concentrations, counts : (galaxies, answers) of the same galaxies
    schema : the tree of the answers
    n : galaxies shown; the first ones

    Returns
    -------
    PNG
    """
    if not len(images) == len(concentrations) == len(counts):
        raise ValueError(f"{len(images)} images, {len(concentrations)} concentrations and {len(counts)} counts")
    shown = min(n, len(images))
    charts = [_rows(counts[galaxy], concentrations[galaxy], schema) for galaxy in range(shown)]
    n_lines = max(1, -(-shown // _COLUMNS))
    heights = [max([6, *map(len, charts[line * _COLUMNS : (line + 1) * _COLUMNS])]) for line in range(n_lines)]
    figure = blank_figure(13.0, 0.7 + sum(0.155 * rows + 0.25 for rows in heights))
    grid = figure.add_gridspec(n_lines, 2 * _COLUMNS, width_ratios=(1, 1.5) * _COLUMNS, height_ratios=heights)
    posterior = fraction_posterior(concentrations[:shown], schema, _LEVEL) if shown else None
    for galaxy, rows in enumerate(charts):
        line, column = divmod(galaxy, _COLUMNS)
        _draw_galaxy(figure.add_subplot(grid[line, 2 * column]), images[galaxy])
        axes = figure.add_subplot(grid[line, 2 * column + 1])
        assert posterior is not None
        spans = np.stack([posterior.lower[galaxy], posterior.mean[galaxy], posterior.upper[galaxy]])
        axes.set(xlim=(-0.02, 1.02), ylim=(heights[line] - 0.4, -0.6))
        _draw_votes(axes, rows, spans, concentrations[galaxy], counts[galaxy])
    figure.suptitle(
        f"Blue: predicted vote fraction, {_LEVEL:.0%} interval of it (thick) and of that of as many volunteers as were "
        "asked (thin).  Orange: observed.",
        fontsize=9, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    return to_png(figure, dpi=110)


def _rows(counts: NDArray[np.floating], concentrations: NDArray[np.floating], schema: Schema) -> list[_Row]:
    """Lines of one galaxy's chart: whole questions in the order of the tree, as many as there is room for."""
    rows: list[_Row] = []
    asked = [question for question in schema.questions if counts[question.start : question.stop].sum() > 0]
    for position, question in enumerate(asked):
        columns = slice(question.start, question.stop)
        votes, total = float(counts[columns].sum()), float(concentrations[columns].sum())
        if rows and len(rows) + 1 + len(question.answers) > _MOST_ROWS:
            left = len(asked) - position
            return [*rows, _Row(f"and {left} more question{'s' if left > 1 else ''}")]
        rows.append(_Row(f"{question.name}  ({votes:g} votes)"))
        indices = range(question.start, question.stop)
        rows += [_Row(name, index, votes, total) for name, index in zip(question.answers, indices, strict=True)]
    return rows or [_Row("no votes")]


def _draw_galaxy(axes: Axes, image: NDArray[np.uint8]) -> None:
    if len(image) == 3:
        axes.imshow(image.transpose(1, 2, 0), interpolation="lanczos")
    elif len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
    else:
        mean = image.astype(float).mean(0)
        low, high = np.percentile(mean, _STRETCH)
        axes.imshow(mean, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="lanczos")
    axes.set_axis_off()
    axes.set_anchor("NE")


def _draw_votes(
    axes: Axes,
    rows: list[_Row],
    spans: NDArray[np.floating],
    concentrations: NDArray[np.floating],
    counts: NDArray[np.floating],
) -> None:
    for position, row in enumerate(rows):
        if row.index is None:
            axes.text(0, position, row.text, fontsize=8, fontweight="bold", color=INK, va="center", parse_math=False)
            continue
        lower, mean, upper = spans[:, row.index]
        axes.plot(_sampled(row, float(concentrations[row.index])), [position] * 2, color=_MEAN, linewidth=0.9)
        axes.plot([lower, upper], [position] * 2, color=_MEAN, linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(mean, position, "|", color=_MEAN, markersize=7, markeredgewidth=1.6)
        axes.plot(counts[row.index] / row.n_votes, position, "o", color=_SEEN, markersize=4, zorder=3)
    answers = [(position, row) for position, row in enumerate(rows) if row.index is not None]
    names = [row.text if len(row.text) <= _LETTERS else row.text[: _LETTERS - 1] + "…" for _, row in answers]
    axes.set_yticks([position for position, _ in answers], names, parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=7.5, colors=INK)
    axes.tick_params(axis="x", labelsize=7, color=QUIET, colors=QUIET)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.grid(axis="x", color="#eceef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _sampled(row: _Row, concentration: float) -> list[float]:
    """Central interval of the fraction of votes for one answer among whole votes."""
    n_votes = max(1, round(row.n_votes))
    rest = row.total - concentration
    if rest <= 0:
        return [1.0, 1.0]
    edges = betabinom.ppf([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], n_votes, concentration, rest)
    return [float(edge) / n_votes for edge in edges]
