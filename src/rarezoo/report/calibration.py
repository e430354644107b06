"""Whether predicted votes may be believed: a figure and a table of a `Calibration`, for trees of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, plain_axes, to_png
from rarezoo.votes import Calibration, Schema

Floats = NDArray[np.float64]

_LEVEL_SHOWN = 0.9
_WORST = 3
_WORST_COLOURS = (PALETTE[5], PALETTE[4], PALETTE[2])
_ROWS_SHOWN = 16
# The error of fewer galaxies is mostly noise: such questions are in the table, and not called the worst.
_ENOUGH_ASKED = 30
_LETTERS = 30


def question_table(losses: ArrayLike, calibration: Calibration, schema: Schema) -> pd.DataFrame:
    """Figures of each question, in the order of the tree.

    Parameters
    ----------
    losses : (questions,) mean negative log-likelihood over the galaxies that were asked, in nats
    calibration : of the same galaxies

    Returns
    -------
    table with question, n_asked, loss, ece (expected calibration error of the vote fractions), and coverage_90 (share
        of the vote counts in the 90% intervals, mean over the answers); NaN where nobody was asked
    """
    level = int(np.abs(calibration.levels - _LEVEL_SHOWN).argmin())
    asked = calibration.n_asked > 0
    return pd.DataFrame(
        {
            "question": [question.name for question in schema.questions],
            "n_asked": calibration.n_asked.astype(np.int64),
            "loss": np.where(asked, np.asarray(losses, dtype=float), np.nan),
            "ece": np.where(asked, calibration.ece, np.nan),
            f"coverage_{round(100 * calibration.levels[level])}": _by_question(calibration.coverage, schema)[:, level],
        }
    )


def calibration_figure(calibration: Calibration, schema: Schema) -> bytes:
    """Coverage, probability integral transform and reliability: all questions, their mean, and the three worst.

    The worst are those of the largest expected calibration error, in the same colours in all panels.

    Parameters
    ----------
    calibration : of the predictions; questions that nobody was asked are left out
    schema : the tree of its answers and questions

    Returns
    -------
    PNG
    """
    figure = blank_figure(15.0, 4.3)
    coverage, pit, reliability, listed = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.15))
    for axes in (coverage, pit, reliability):
        plain_axes(axes)
    worst = worst_questions(calibration)
    _draw_coverage(coverage, calibration, schema, worst)
    _draw_pit(pit, _by_question(calibration.pit, schema), worst)
    _draw_reliability(reliability, calibration, worst)
    _write_table(listed, calibration, schema, worst)
    return to_png(figure, dpi=110)


def worst_questions(calibration: Calibration) -> list[int]:
    """Indices of up to three questions of the largest expected calibration error, the worst first."""
    enough = calibration.n_asked >= min(_ENOUGH_ASKED, calibration.n_asked.max(initial=0))
    return [index for index in _by_error(calibration) if enough[index]][:_WORST]


def _by_error(calibration: Calibration) -> list[int]:
    asked = np.flatnonzero((calibration.n_asked > 0) & np.isfinite(calibration.ece))
    return [int(index) for index in asked[np.argsort(-calibration.ece[asked], kind="stable")]]


def _by_question(values: Floats, schema: Schema) -> Floats:
    """(questions, K) mean over the answers of (answers, K), NaN where no answer has a value."""
    return np.stack([_mean(values[question.start : question.stop]) for question in schema.questions])


def _mean(values: Floats, weights: Floats | None = None) -> Floats:
    """(K,) mean over the first axis of (n, K), of what is finite."""
    known = np.isfinite(values) * (np.ones_like(values) if weights is None else weights)
    total = known.sum(0)
    mean = (np.nan_to_num(values) * known).sum(0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, np.nan)


def _draw_coverage(axes: Axes, calibration: Calibration, schema: Schema, worst: Sequence[int]) -> None:
    found = _by_question(calibration.coverage, schema)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    _draw_all(axes, calibration.levels, found, worst)
    axes.plot(calibration.levels, _mean(found), "o-", color=INK, markersize=4, linewidth=1.6, zorder=4, label="mean")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the interval", ylabel="share of the vote counts inside")
    axes.set_title("Coverage of predicted vote counts", loc="left", fontsize=10)
    _note(axes, 0.04, 0.96, "above the line: too wide\nbelow: too narrow, or biased", "left")
    _note(axes, 0.97, 0.12, "black: mean of the questions\ngrey: each of them", "right")


def _draw_pit(axes: Axes, found: Floats, worst: Sequence[int]) -> None:
    density = found * found.shape[1]
    edges = np.linspace(0, 1, found.shape[1] + 1)
    mean = _mean(density)
    axes.axhline(1, color=QUIET, linewidth=0.8, linestyle=":")
    axes.stairs(np.nan_to_num(mean), edges, fill=True, color="#d9dde4")
    axes.stairs(np.nan_to_num(mean), edges, baseline=None, color=INK, linewidth=1.6)
    for colour, index in zip(_WORST_COLOURS, worst, strict=False):
        axes.stairs(np.nan_to_num(density[index]), edges, baseline=None, color=colour, linewidth=1.2)
    axes.set(xlim=(0, 1), xlabel="probability integral transform of the count", ylabel="density")
    highest = np.nan_to_num(np.vstack([mean, density[list(worst)]])).max()
    axes.set_ylim(0, max(2.0, 1.25 * highest))
    _note(axes, 0.04, 0.96, "heaps at both ends: too narrow, or biased\nheap in the middle: too wide", "left")
    axes.set_title("PIT of the counts: flat where right", loc="left", fontsize=10)


def _draw_reliability(axes: Axes, calibration: Calibration, worst: Sequence[int]) -> None:
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    shown = np.where(calibration.weight > 0, calibration.observed, np.nan)
    for index, (predicted, observed) in enumerate(zip(calibration.predicted, shown, strict=True)):
        if index not in worst:
            axes.plot(predicted, observed, color="#c6cbd4", linewidth=0.7)
    for colour, index in zip(_WORST_COLOURS, worst, strict=False):
        axes.plot(calibration.predicted[index], shown[index], ".-", color=colour, linewidth=1.2, markersize=4)
    weight = calibration.weight.sum(0)
    area = 8 + 60 * weight / max(weight.max(initial=0), 1)
    predicted, observed = _mean(calibration.predicted, calibration.weight), _mean(shown, calibration.weight)
    axes.plot(predicted, observed, color=INK, linewidth=1.6, zorder=4)
    axes.scatter(predicted, observed, s=area, color=INK, linewidths=0, zorder=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted vote fraction", ylabel="observed vote fraction")
    axes.set_title("Reliability (size: votes)", loc="left", fontsize=10)


def _draw_all(axes: Axes, x: Floats, lines: Floats, worst: Sequence[int]) -> None:
    for index, line in enumerate(lines):
        if index not in worst:
            axes.plot(x, line, color="#c6cbd4", linewidth=0.7)
    for colour, index in zip(_WORST_COLOURS, worst, strict=False):
        axes.plot(x, lines[index], ".-", color=colour, linewidth=1.2, markersize=4)


def _note(axes: Axes, x: float, y: float, text: str, side: Literal["left", "right"]) -> None:
    axes.text(x, y, text, transform=axes.transAxes, fontsize=8, color=QUIET, ha=side, va="top")


def _write_table(axes: Axes, calibration: Calibration, schema: Schema, worst: Sequence[int]) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(_ROWS_SHOWN + 2.2, -0.6))
    order = [*worst, *(index for index in _by_error(calibration) if index not in worst)]
    level = int(np.abs(calibration.levels - _LEVEL_SHOWN).argmin())
    coverage = _by_question(calibration.coverage, schema)[:, level]
    heads = ("question", "asked", "ECE", f"in {calibration.levels[level]:.0%}")
    places, sides = (0.0, 0.74, 0.87, 1.0), ("left", "right", "right", "right")
    rows: list[tuple[str, ...]] = [heads]
    for index in order[:_ROWS_SHOWN]:
        name = schema.questions[index].name
        name = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        rows.append(
            (name, f"{calibration.n_asked[index]:,}", f"{calibration.ece[index]:.3f}", f"{coverage[index]:.0%}")
        )
    for number, row in enumerate(rows):
        of_worst = 0 < number <= len(worst)
        colour = _WORST_COLOURS[number - 1] if of_worst else (INK if number else QUIET)
        for text, place, side in zip(row, places, sides, strict=True):
            axes.text(place, number, text, fontsize=8, color=colour, ha=side, va="center", parse_math=False,
                      fontweight="bold" if of_worst else "normal")  # fmt: skip
    notes = [f"and {len(order) - _ROWS_SHOWN} better ones"] if len(order) > _ROWS_SHOWN else []
    unasked = len(schema.questions) - len(order)
    notes += [f"{unasked} that nobody was asked"] if unasked else []
    axes.text(0, len(rows) + 0.2, "; ".join(notes), fontsize=8, color=QUIET, va="center")
    axes.set_title("Questions by expected calibration error", loc="left", fontsize=10)
