"""What the redundancy of a network's features looks like: a table and a figure of its principal components."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from rarezoo.cli import print_table
from rarezoo.embeddings.redundancy import SHARES, FeatureMoments, Spectrum, components_for, spectrum
from rarezoo.provenance import written_beside
from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, plain_axes, to_png

# Of the bottleneck in Walmsley & Scaife 2023, Sec. 3.
PAPER_DIM = 128
# Components below hold rounding errors.
_SMALLEST_SHARE = 1e-9
_TICKS = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999)
_SHOWN = {
    "features": "width",
    "components_90": "90%",
    "components_95": "95%",
    "components_99": "99%",
    "participation_ratio": "PR",
    "effective_rank": "eff. rank",
    "mean_abs_correlation": "mean |r|",
}


def write_redundancy(folder: Path, moments: Mapping[str, FeatureMoments]) -> dict[str, Any]:
    """Write redundancy.parquet and redundancy.png of the spaces that moments were gathered of.

    Parameters
    ----------
    moments : space (features, representation) -> its moments

    Returns
    -------
    {"redundancy": {space: figures of `Spectrum.describe`}} for the record of the run; {} for no moments
    """
    if not moments:
        return {}
    spectra = {space: spectrum(gathered) for space, gathered in moments.items()}
    with written_beside(folder / "redundancy.parquet") as temporary:
        spectrum_table(spectra).to_parquet(temporary, index=False)
    with written_beside(folder / "redundancy.png") as temporary:
        temporary.write_bytes(to_png(redundancy_figure(spectra)))
    return {"redundancy": {space: found.describe() for space, found in spectra.items()}}


def say_redundancy(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Print a short table of what `write_redundancy` found, and give the paths of its files; {} where it did not run.

    Parameters
    ----------
    summary : of the run
    """
    if "redundancy" not in summary:
        return {}
    rows = [
        {"space": space, **{name: numbers[key] for key, name in _SHOWN.items()}}
        for space, numbers in summary["redundancy"].items()
    ]
    print_table(pd.DataFrame(rows), "Components for 90, 95 and 99% of the variance; participation ratio (PR)")
    return {"redundancy": folder / "redundancy.png", "components": folder / "redundancy.parquet"}


def spectrum_table(spectra: Mapping[str, Spectrum]) -> pd.DataFrame:
    """One row per space and component, from 1: variance_ratio, cumulative, and those of standardised features."""
    tables = [
        pd.DataFrame(
            {
                "space": space,
                "component": np.arange(1, len(found.variance_ratio) + 1),
                "variance_ratio": found.variance_ratio,
                "cumulative": found.cumulative,
                "variance_ratio_standardised": found.standardised_ratio,
                "cumulative_standardised": np.cumsum(found.standardised_ratio),
            }
        )
        for space, found in spectra.items()
    ]
    return pd.concat(tables, ignore_index=True)


def redundancy_figure(spectra: Mapping[str, Spectrum]) -> Figure:
    """Share of the variance by component, and its running sum with the number of components for 90, 95 and 99%.

    Solid lines are of the features as they are, dashed ones of standardised features.

    Parameters
    ----------
    spectra : space -> its spectrum, at least one
    """
    figure = blank_figure(10.0, 4.4)
    left, right = (plain_axes(axes) for axes in figure.subplots(1, 2))
    for colour, (space, found) in zip((PALETTE[4], PALETTE[5]), spectra.items(), strict=False):
        needed = ", ".join(str(components_for(found.variance_ratio, share)) for share in SHARES)
        for ratio, style, note in (
            (found.variance_ratio, "-", f"{space} ({len(found.variance_ratio)}): {needed}"),
            (found.standardised_ratio, "--", f"{space}, standardised"),
        ):
            components = np.arange(1, len(ratio) + 1)
            left.plot(components, _visible(ratio), style, color=colour, linewidth=1.4)
            right.plot(components, _visible(1 - np.cumsum(ratio)), style, color=colour, linewidth=1.4, label=note)
    left.set(yscale="log", xlabel="component", ylabel="share of the variance")
    left.set_title("Spectrum", loc="left")
    # Logarithmic in what is left over: a linear axis would press 90, 95 and 99% together.
    right.set(yscale="log", ylim=(1.3, 3e-4), xlabel="components", ylabel="share of the variance, summed")
    right.set_yticks([1 - share for share in _TICKS], [f"{100 * share:g}%" for share in _TICKS])
    right.minorticks_off()
    for share in SHARES:
        right.axhline(1 - share, color="#d9dde4", linewidth=0.8, zorder=0)
    right.set_title("Components for 90, 95 and 99%", loc="left")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    widest = max(len(found.variance_ratio) for found in spectra.values())
    for axes in (left, right):
        _number_components(axes, widest)
    return figure


def _visible(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(ratio > _SMALLEST_SHARE, ratio, np.nan)


def _number_components(axes: Axes, widest: int) -> None:
    axes.set(xscale="log", xlim=(0.9, 1.15 * widest))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if widest > PAPER_DIM:
        axes.axvline(PAPER_DIM, color=QUIET, linewidth=0.8, linestyle=":")
        place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(f"D = {PAPER_DIM}", (PAPER_DIM, 0.01), (-3, 0), fontsize=8, color=INK, ha="right", **place)
