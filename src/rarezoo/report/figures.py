"""Figures of a class search, for papers and logs: each function returns a matplotlib Figure, and no state is kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe & Ito 2008 (Color Universal Design), without black: told apart by people with any colour vision.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
INK = "#22262e"
QUIET = "#8a919e"
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_DENSITY_BINS = 260
_SCATTER_BELOW = 30_000


def class_map(galaxies: pd.DataFrame, classes: pd.DataFrame) -> Figure:
    """The 2-d map: the bulk as a grey density, the classes in colour, numbered at their medoids.

    Parameters
    ----------
    galaxies : table with `x`, `y`, `cluster` (-1 = none), `id_str`; rows without finite x and y are left out
    classes : table with `cluster`, `size`, `medoid_id` and optionally `name`, which is written beside the number
    """
    figure, axes = _figure(8.0, 7.2)
    placed = galaxies[np.isfinite(galaxies["x"]) & np.isfinite(galaxies["y"])]
    bulk, members = placed[placed["cluster"] < 0], placed[placed["cluster"] >= 0]
    _draw_bulk(axes, bulk["x"].to_numpy(float), bulk["y"].to_numpy(float))
    centres = class_centres(placed, classes)
    colours = dict(zip(centres.index, neighbour_colours(centres.to_numpy()), strict=True))
    point_area = float(np.clip(6000 / max(len(members), 1), 1.5, 14))
    axes.scatter(
        members["x"],
        members["y"],
        s=point_area,
        c=[colours.get(cluster, QUIET) for cluster in members["cluster"]],
        linewidths=0,
    )
    numbered = _number_classes(axes, centres, class_names(classes))
    axes.set_aspect("equal", adjustable="datalim")
    note = "" if numbered == len(centres) else f"  (numbers that would overlap are left out: {numbered} shown)"
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1" + note, ylabel="UMAP 2")
    axes.set_title(f"{len(placed):,} galaxies, {len(members):,} of them in {len(centres)} classes", loc="left")
    return figure


def class_sizes(classes: pd.DataFrame) -> Figure:
    """Size of each class against its persistence, coloured by cohesion where the table has it.

    Parameters
    ----------
    classes : table with `cluster`, `size`, `persistence` and optionally `cohesion` (0 to 1); rows without a
        finite persistence are left out
    """
    figure, axes = _figure(7.0, 5.0)
    shown = classes[np.isfinite(classes["persistence"].astype(float))]
    cohesion = shown["cohesion"].to_numpy(float) if "cohesion" in shown else None
    colour: dict[str, Any] = {} if cohesion is None else {"c": cohesion, "cmap": "cividis", "vmin": 0, "vmax": 1}
    points = axes.scatter(shown["size"], shown["persistence"], s=42, edgecolors="white", linewidths=0.6, **colour)
    if colour and len(shown):
        figure.colorbar(points, ax=axes, label="cohesion", pad=0.02).outline.set_visible(False)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_THOUSANDS)
    _number_points(axes, shown.sort_values("persistence", ascending=False, kind="stable"))
    axes.set(xlabel="members", ylabel="persistence")
    axes.set_title("Size and persistence of the classes", loc="left")
    return figure


def cut_waterfall(cuts: pd.DataFrame) -> Figure:
    """What each cut removed and what it left, from the catalog to the selection.

    Parameters
    ----------
    cuts : the steps of a `Selection`: `cut`, `removed`, `left`, the first of which is the catalog
    """
    figure, axes = _figure(7.0, 1.3 + 0.45 * len(cuts))
    left, removed = cuts["left"].to_numpy(float), cuts["removed"].to_numpy(float)
    positions = np.arange(len(cuts))
    axes.barh(positions, left, color="#56B4E9", label="left")
    axes.barh(positions, removed, left=left, color="#d9dde4", label="removed")
    for position, kept, gone in zip(positions, left, removed, strict=True):
        text = f"{kept:,.0f}" + (f"  (−{gone:,.0f})" if position else "")
        axes.annotate(text, (kept + gone, position), (5, 0), textcoords="offset points", va="center", fontsize=8)
    _name_rows(axes, cuts["cut"].astype(str).tolist())
    axes.set_xlim(0, max(left[0], 1) * 1.3)
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.set_xlabel("galaxies")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title("Selection", loc="left")
    return figure


def recovery_chart(recovery: pd.DataFrame) -> Figure:
    """How well each planted class was found: purity, completeness and F1 of the class that matches it best.

    Parameters
    ----------
    recovery : table with `class_name`, `members`, `selected`, `f1`, `purity`, `completeness` (0 to 1)
    """
    figure, axes = _figure(7.0, 1.5 + 0.34 * len(recovery))
    ordered = recovery.sort_values("f1", ascending=False, na_position="last", kind="stable")
    positions = np.arange(len(ordered))
    axes.hlines(
        positions, ordered[["purity", "completeness"]].min(axis=1), ordered[["purity", "completeness"]].max(axis=1),
        color="#c4c9d2", linewidth=1.5, zorder=1,
    )  # fmt: skip
    for column, colour, marker in (("purity", "#0072B2", "o"), ("completeness", "#D55E00", "s"), ("f1", INK, "D")):
        size = 24 if column == "f1" else 36
        label = "F1" if column == "f1" else column
        axes.scatter(ordered[column], positions, s=size, color=colour, marker=marker, label=label, zorder=2)
    for position in positions[ordered["f1"].isna()]:
        axes.text(0, position, "not found", fontsize=8, color=QUIET, va="center")
    counts = zip(ordered["class_name"], ordered["selected"], ordered["members"], strict=True)
    _name_rows(axes, [f"{name}  ({selected:,} of {members:,})" for name, selected, members in counts])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(ordered) - 0.4, -0.6))
    axes.axvline(0.5, color="#e3e6eb", zorder=0)
    axes.set_xlabel("purity, completeness, F1  (in brackets: members that passed the selection)")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    axes.set_title("Planted classes", loc="left")
    return figure


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Encode a figure as PNG of its size in inches times `dpi` pixels."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def class_centres(galaxies: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """Where each class stands on the map: at its medoid, or at its members' median where that is not on the map.

    Returns
    -------
    table indexed by cluster with columns x, y, the largest class first; classes without a place are left out
    """
    members = galaxies[(galaxies["cluster"] >= 0) & np.isfinite(galaxies["x"]) & np.isfinite(galaxies["y"])]
    medians = members.groupby("cluster")[["x", "y"]].median()
    order = classes.sort_values("size", ascending=False, kind="stable").set_index("cluster")["medoid_id"]
    order = order[order.index.isin(medians.index)]
    medoids = members.drop_duplicates("id_str").set_index("id_str")[["x", "y"]].reindex(order.to_numpy())
    centres: pd.DataFrame = medoids.set_index(order.index).fillna(medians.loc[order.index])
    return centres.astype(float)


def class_names(classes: pd.DataFrame) -> dict[int, str]:
    """Names that the astronomer gave, of those classes that have one."""
    if "name" not in classes:
        return {}
    named = classes[classes["name"].notna() & (classes["name"] != "")]
    return {int(cluster): str(name) for cluster, name in zip(named["cluster"], named["name"], strict=True)}


def neighbour_colours(centres: np.ndarray, palette: Sequence[str] = PALETTE) -> list[str]:
    """Give each point a colour of the palette such that its nearest points have others, as on a political map.

    Parameters
    ----------
    centres : (n, 2), finite
    """
    colours = np.zeros(len(centres), dtype=np.int64)
    for index, centre in enumerate(centres):
        nearest = np.full(len(palette), np.inf)
        np.minimum.at(nearest, colours[:index], np.linalg.norm(centres[:index] - centre, axis=1))
        # The first of equals: while there are fresh colours, a few classes use the palette in its order.
        colours[index] = nearest.argmax()
    return [palette[colour] for colour in colours.tolist()]


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose panels arrange themselves."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain_axes(axes: Axes) -> Axes:
    """Axes in the style of these figures: two spines, quiet ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=8, color=QUIET)
    return axes


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = blank_figure(width, height)
    return figure, plain_axes(figure.add_subplot())


def _draw_bulk(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) < _SCATTER_BELOW:
        axes.scatter(x, y, s=float(np.clip(12_000 / max(len(x), 1), 0.8, 6)), color="#c6cbd4", linewidths=0)
        return
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=_DENSITY_BINS)
    density = np.ma.masked_equal(counts.T, 0)
    # Ends in a light grey, so that the classes stand out where the bulk is densest.
    axes.pcolormesh(x_edges, y_edges, density, cmap="Greys", norm=LogNorm(0.2, counts.max() ** 2), rasterized=True)


def _number_classes(axes: Axes, centres: pd.DataFrame, names: Mapping[int, str]) -> int:
    """Write numbers and names above the centres, the largest class first; return how many had room."""
    outline = [withStroke(linewidth=2.2, foreground="white")]
    size = 9 if len(centres) <= 30 else 7
    span = max(np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim()))
    labels = np.array([f"{cluster} {names.get(cluster, '')}".strip() for cluster in centres.index], dtype=object)
    widths = span * size * (0.0004 + 0.0013 * np.array([len(label) for label in labels], float))
    apart = with_room(centres["x"].to_numpy(), centres["y"].to_numpy(), widths, span * size * 0.0022)
    for label, (x, y) in zip(labels[apart], centres[apart].to_numpy(), strict=True):
        # Names come from users: a dollar sign in one is not the start of a formula.
        axes.annotate(
            label, (x, y), (0, 7), textcoords="offset points", fontsize=size, fontweight="bold", color=INK,
            ha="center", va="center", path_effects=outline, zorder=5, parse_math=False,
        )  # fmt: skip
    return int(apart.sum())


def _number_points(axes: Axes, shown: pd.DataFrame) -> None:
    x, y = np.log10(shown["size"].to_numpy(float)), shown["persistence"].to_numpy(float)
    width, height = np.ptp(np.log10(axes.get_xlim())), np.ptp(axes.get_ylim())
    apart = with_room(x, y, 0.04 * width, 0.03 * height)
    for cluster, size, persistence in shown.loc[apart, ["cluster", "size", "persistence"]].itertuples(index=False):
        axes.annotate(str(cluster), (size, persistence), (4, 3), textcoords="offset points", fontsize=7, color=INK)


def with_room(x: np.ndarray, y: np.ndarray, width: float | np.ndarray, height: float) -> np.ndarray:
    """Which of some labels can be written without one covering another, the first having precedence.

    Parameters
    ----------
    x, y : (n,) places of the labels
    width : room that all labels, or each of the (n,), take, in the units of x
    height : of all labels, in those of y

    Returns
    -------
    (n,) boolean
    """
    kept, widths = np.zeros(len(x), bool), np.broadcast_to(width, len(x))
    for index in range(len(x)):
        wide = (widths[kept] + widths[index]) / 2
        covered = (np.abs(x[kept] - x[index]) < wide) & (np.abs(y[kept] - y[index]) < height)
        kept[index] = not covered.any()
    return kept


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    # Names come from users: a dollar sign in one is not the start of a formula.
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
