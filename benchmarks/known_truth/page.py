"""One page with all scores, which needs no network, and the same tables in markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from known_truth.tables import SHOWN, TextTable, by_abundance, ranked_methods, survey_tables
from rarezoo.clustering.scores import LOOKED_AT
from rarezoo.provenance import written_beside
from rarezoo.report.figures import INK, PALETTE, blank_figure, plain_axes, to_png
from rarezoo.report.html import FOLDER, page_environment

TEMPLATE = "recovery_page.html.jinja"
# Drawn whatever they reach, one of each kind; the best of the others join them.
_ALWAYS = (
    *SHOWN,
    *("min-samples-5", "k-means-recommended", "votes-recommended", "evoc-finest-whitened"),
    *("local-outlier-factor-150", "paper", "random-order"),
)
_MOST_DRAWN = 10
_HEADINGS = {
    "planted": "rare classes planted in a simulated survey",
    "attributes": "real galaxies, with attributes that training never saw",
    "injected": "real images of one survey, injected into another",
}


@dataclass(frozen=True)
class Section:
    """All about one survey."""

    name: str
    heading: str
    lead: str
    tables: Sequence[TextTable]
    figures: Mapping[str, bytes]

    def pictures(self) -> dict[str, str]:
        """Figures as data URIs, by title."""
        return {title: f"data:image/png;base64,{base64.b64encode(png).decode()}" for title, png in self.figures.items()}


def write_page(
    scores: pd.DataFrame, facts: Mapping[str, str], left_out: Sequence[str], folder: Path
) -> dict[str, Path]:
    """Write recovery.html, recovery.md, and the figures of the page as PNG files.

    Parameters
    ----------
    scores : as `gather` gives them
    facts : about the run, name -> text
    left_out : methods that could not run, with the reason
    folder : to write to

    Returns
    -------
    what -> path

    Raises
    ------
    UserError
        if a file cannot be written
    """
    sections = [section_of(str(name), part) for name, part in scores.groupby("survey", sort=False)]
    texts = {
        "page": ("recovery.html", render_page(sections, facts, left_out)),
        "markdown": ("recovery.md", render_markdown(sections, facts)),
    }
    for name, text in texts.values():
        with written_beside(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for section in sections:
        for shown, png in zip(("found", "discovered"), section.figures.values(), strict=True):
            with written_beside(folder / "figures" / f"{quote(section.name, safe=' ')}_{shown}.png") as temporary:
                temporary.write_bytes(png)
    return {what: folder / name for what, (name, _) in texts.items()} | {"figures": folder / "figures"}


def render_page(sections: Sequence[Section], facts: Mapping[str, str], left_out: Sequence[str]) -> str:
    """HTML of the page; all that comes from users is escaped."""
    environment = page_environment()
    environment.loader = FileSystemLoader(Path(__file__).parent)
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(style=style, sections=sections, facts=facts, left_out=left_out)


def render_markdown(sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The tables of the page."""
    parts = ["; ".join(f"{name}: {text}" for name, text in facts.items()) + "\n"]
    for section in sections:
        parts += [f"## {section.name}: {section.heading}\n", section.lead + "\n"]
        parts += [table.as_markdown() for table in section.tables]
    return "\n".join(parts)


def section_of(name: str, scores: pd.DataFrame) -> Section:
    """Tables and figures about one survey, from its rows."""
    runs, classes = scores[scores["row"] == "run"], scores[scores["row"] == "class"]
    order = ranked_methods(runs)
    seeds = sorted(scores["seed"].unique())
    lead = (
        f"{scores['galaxies'].max():,} galaxies, of which {_span(scores['searched'])} are searched; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    )
    always = [method for method in _ALWAYS if method in order]
    drawn = [*always, *(method for method in order if method not in always)][:_MOST_DRAWN]
    figures = {
        "Share of the known classes found (F1 ≥ 0.5), against how rare they are": abundance_figure(classes, drawn),
        "Known classes discovered, against montages looked at": discovery_figure(classes, drawn),
    }
    pngs = {title: to_png(figure) for title, figure in figures.items()}
    return Section(name, _HEADINGS[scores["truth"].iloc[0]], lead, survey_tables(scores, order), pngs)


def abundance_figure(classes: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Share found in each bin of abundance, with its interval; methods that make no classes are left out.

    Parameters
    ----------
    classes : rows of one survey
    methods : which to draw
    """
    figure, axes = _figure()
    for place, method in enumerate(methods):
        of_method = classes[classes["method"] == method]
        bins = by_abundance(of_method)
        bins = bins[bins["classes"] > 0]
        if bins.empty:
            continue
        # Where the classes of a bin are, and not its middle: the outer bins are open.
        centres = _mean_abundances(of_method, bins) * (1 + 0.012 * (place - len(methods) / 2))
        share = bins["share_f1_50"].to_numpy()
        ends = np.abs(bins[["share_f1_50_low", "share_f1_50_high"]].to_numpy().T - share)
        axes.errorbar(centres, share, ends, marker="o", ms=4, lw=1.4, elinewidth=0.8, label=method, **_style(place))
    axes.set(xscale="log", xlabel="abundance", ylabel="share of classes found", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=2))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes)
    return figure


def discovery_figure(classes: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Classes discovered within so many montages, mean over the seeds.

    Parameters
    ----------
    classes : rows of one survey
    methods : which to draw
    """
    figure, axes = _figure()
    looked_at = np.arange(LOOKED_AT[-1] + 1)
    for place, method in enumerate(methods):
        of_method = classes[classes["method"] == method]
        found_at = of_method["discovered_at"].to_numpy(float)
        discovered = (found_at[:, None] <= looked_at).sum(axis=0) / of_method["seed"].nunique()
        axes.step(looked_at, discovered, where="post", lw=1.6, label=method, **_style(place))
    axes.set(xlabel="montages looked at", ylabel="known classes discovered", xlim=(0, LOOKED_AT[-1]))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def _mean_abundances(classes: pd.DataFrame, bins: pd.DataFrame) -> np.ndarray:
    abundance = classes["abundance"].to_numpy()
    edges = zip(bins["abundance_from"], bins["abundance_to"], strict=True)
    return np.array([abundance[(abundance >= low) & (abundance < high)].mean() for low, high in edges])


def _figure() -> tuple[Figure, Axes]:
    figure = blank_figure(7.8, 4.0)
    return figure, plain_axes(figure.add_subplot())


def _style(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place % len(PALETTE)], "ls": "-" if place < len(PALETTE) else "--"}


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        # Beside the axes: ten methods' lines leave no room between them.
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.01, 1))


def _span(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
