"""Does a narrow representation cost anything? Test losses of one network with bottlenecks of several widths.

Walmsley & Scaife 2023, Sec. 3: networks of 1280 and 1024 features are retrained with 128 "without any measurable
performance loss". Here that is a claim with an error bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from scipy import stats

from rarezoo.cli import console, print_table
from rarezoo.provenance import written_beside
from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, plain_axes, to_png

DIM = "bottleneck.dim"
PAPER_DIM = 128
TOLERANCE = 0.5
_CONFIDENCE = 0.90
_PAIRS_NEEDED = 2


def compare_bottlenecks(
    table: pd.DataFrame, metric: str = "test/loss", paired_by: Sequence[str] = ("seed",)
) -> tuple[pd.DataFrame, str]:
    """Compare each width with no bottleneck, seed by seed.

    The split of the data, the order of the batches and the views follow the seed, so that two runs of one seed differ
    in the width alone; what the seeds have in common drops out of the difference. Its interval is Student's t over
    seeds.

    Parameters
    ----------
    table : one row per run with `bottleneck.dim` (missing for none) and the metric, lower is better
    paired_by : columns in which two runs of a pair agree: the seed, and whatever else was swept

    Returns
    -------
    table : per width, none first: dim (text), n_seeds (runs), mean, sem (standard error of the mean), n_pairs,
        difference (in per cent of the loss without a bottleneck, mean over the seeds that both have), difference_sem,
        low, high (its 90% interval; NaN for fewer than two pairs)
    verdict : whether a width of 128 is within 0.5% of none, in one sentence
    """
    known = table[table[metric].notna()]
    width_of = known[DIM].astype("Float64").fillna(np.inf).astype(float)
    pair_of = known.groupby(list(paired_by), dropna=False).ngroup() if len(paired_by) else 0
    flat = pd.DataFrame({"pair": pair_of, "width": width_of, "loss": known[metric].astype(float)})
    losses = flat.pivot_table(index="pair", columns="width", values="loss")
    rows = [_compare(losses, width) for width in sorted(losses.columns.to_numpy(float), reverse=True)]
    compared = pd.DataFrame(rows)
    return compared, _verdict(compared)


def write_bottlenecks(
    folder: Path, table: pd.DataFrame, metric: str = "test/loss", paired_by: Sequence[str] = ("seed",)
) -> dict[str, Path]:
    """Write bottleneck.csv and bottleneck.png, and say on the terminal what they show.

    Parameters
    ----------
    table, paired_by : of `compare_bottlenecks`
    """
    compared, verdict = compare_bottlenecks(table, metric, paired_by)
    paths = {"bottleneck.csv": folder / "bottleneck.csv", "bottleneck.png": folder / "bottleneck.png"}
    with written_beside(paths["bottleneck.csv"]) as temporary:
        compared.to_csv(temporary, index=False)
    with written_beside(paths["bottleneck.png"]) as temporary:
        temporary.write_bytes(to_png(bottleneck_figure(compared, verdict, metric)))
    print_table(compared, f"{metric} by width of the bottleneck (difference to none in %, paired by seed)")
    console.print(verdict, markup=False)
    return paths


def bottleneck_figure(compared: pd.DataFrame, verdict: str, metric: str = "test/loss") -> Figure:
    """Loss by width, and its difference to no bottleneck with the tolerance that the verdict is about.

    Parameters
    ----------
    compared, verdict : of `compare_bottlenecks`
    """
    figure = blank_figure(9.0, 3.9)
    left, right = (plain_axes(axes) for axes in figure.subplots(1, 2))
    positions = np.arange(len(compared))
    names = [f"D = {dim}" if dim != "none" else "none" for dim in compared["dim"]]
    style: dict[str, Any] = {"color": PALETTE[4], "marker": "o", "markersize": 5, "linestyle": "none", "capsize": 3}
    left.errorbar(positions, compared["mean"], yerr=compared["sem"].fillna(0), **style)
    left.set_ylabel(metric + " (nats)", parse_math=False)
    left.set_title("mean and standard error over seeds", loc="left", fontsize=9)
    others = compared[(compared["dim"] != "none") & compared["difference"].notna()]
    spread = np.stack([others["difference"] - others["low"], others["high"] - others["difference"]])
    right.axhspan(-TOLERANCE, TOLERANCE, color="#e3e6eb", zorder=0, label=f"±{TOLERANCE}%")
    right.axhline(0, color=QUIET, linewidth=0.8)
    right.errorbar(others.index, others["difference"], yerr=np.nan_to_num(spread), **style)
    # Linear around the tolerance, so that a width that is far off does not squeeze it.
    right.set_yscale("symlog", linthresh=2 * TOLERANCE)
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.set_ylabel("difference to none (%)")
    right.set_title(f"paired by seed, {_CONFIDENCE:.0%} interval", loc="left", fontsize=9)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (left, right):
        axes.set_xticks(positions, names)
        axes.set_xlim(-0.5, len(compared) - 0.5)
    figure.suptitle(verdict, fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def _compare(losses: pd.DataFrame, width: float) -> dict[str, object]:
    own = losses[width].dropna()
    found: dict[str, object] = {
        "dim": "none" if np.isinf(width) else f"{width:.0f}",
        "n_seeds": len(own),
        "mean": own.mean(),
        "sem": own.sem(),
    }
    pairs = np.empty(0)
    if np.inf in losses and not np.isinf(width):
        pairs = (100 * (losses[width] / losses[np.inf] - 1)).dropna().to_numpy(float)
    n_pairs = len(pairs)
    sem = stats.sem(pairs) if n_pairs >= _PAIRS_NEEDED else np.nan
    reach = stats.t.ppf(0.5 + _CONFIDENCE / 2, n_pairs - 1) * sem if n_pairs >= _PAIRS_NEEDED else np.nan
    mean = pairs.mean() if n_pairs else np.nan
    return {
        **found,
        "n_pairs": n_pairs,
        "difference": mean,
        "difference_sem": sem,
        "low": mean - reach,
        "high": mean + reach,
    }


def _verdict(compared: pd.DataFrame) -> str:
    rows = compared[compared["dim"] == str(PAPER_DIM)]
    if rows.empty or not rows["n_pairs"].iloc[0]:
        return f"D = {PAPER_DIM} cannot be compared with none: no seed has both yet."
    row = rows.iloc[0]
    if row["n_pairs"] < _PAIRS_NEEDED:
        return f"D = {PAPER_DIM} differs from none by {row['difference']:+.2f}% in one seed: more seeds are needed."
    if row["low"] > -TOLERANCE and row["high"] < TOLERANCE:
        answer = f"is within {TOLERANCE}% of none"
    elif row["low"] > TOLERANCE:
        answer = f"is worse than none by more than {TOLERANCE}%"
    elif row["high"] < -TOLERANCE:
        answer = f"is better than none by more than {TOLERANCE}%"
    else:
        answer = f"may or may not be within {TOLERANCE}% of none: more seeds are needed"
    interval = f"{_CONFIDENCE:.0%} interval {row['low']:+.2f} to {row['high']:+.2f}%"
    return f"D = {PAPER_DIM} {answer} ({row['difference']:+.2f}%, {interval}, {row['n_pairs']} seeds)."
