"""The page: one HTML file that shows what a class search found and asks for nothing from outside itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from rarezoo.provenance import flat, written_beside
from rarezoo.report.cards import FIGURES, NOTHING, class_cards, records
from rarezoo.report.html import FOLDER, page_environment, script_hash
from rarezoo.report.map_data import data_uri, map_data
from rarezoo.report.montage import GAP, ClassMontage

_SCRIPTS = ("map.js", "page.js")


@dataclass(frozen=True)
class Report:
    """What the page tells.

    Attributes
    ----------
    title : name of the search
    n_catalog : galaxies in the catalog
    cuts : the steps of a `Selection`: cut, answer, of (fraction or joint), at_least, below (either may be missing),
        removed, left
    classes : one row a class: cluster, size, medoid_id, and optionally the columns that `class_cards` names; all but
        the first two may hold missing values
    galaxies : one row a galaxy that passed the cuts: id_str, file_loc (a path that can be opened, '' for no image),
        cluster (-1 = none), probability, x, y and optionally ra, dec (degrees)
    montages : as from `class_montages`
    map_png : `class_map`, for paper and where no script runs
    recovery : comparison with planted classes, one row each: class_name, members, selected, cluster, f1, purity,
        completeness; None where the truth is not known
    settings, provenance : JSON-like, shown as they are
    n_failed : images that could not be read
    n_excluded : classes that were found and that a person excluded
    warnings : sentences, shown before all else
    quality : figures of the search as a whole by name; None is not known
    files : label -> path of a file, relative to the page
    sweep : path of the page that compares this search with others, relative to the page
    """

    title: str
    n_catalog: int
    cuts: pd.DataFrame
    classes: pd.DataFrame
    galaxies: pd.DataFrame
    montages: Mapping[int, ClassMontage]
    map_png: bytes
    recovery: pd.DataFrame | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    n_failed: int = 0
    n_excluded: int = 0
    warnings: Sequence[str] = ()
    quality: Mapping[str, float | int | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    sweep: str | None = None


def write_report(path: Path, report: Report) -> None:
    """Write the page: a self-contained HTML file with its images, whole or not at all.

    It takes less than 30 MB for up to some 3,000 classes among any number of galaxies.

    Raises
    ------
    UserError
        if the file cannot be written
    """
    html = render(report, path.parent)
    with written_beside(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(report: Report, folder: Path | None = None) -> str:
    """HTML text of the page. All that comes from users is escaped, and only the page's own script may run.

    Parameters
    ----------
    folder : of the page, for its links to the montage files; None leaves them out
    """
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    data = map_data(report.galaxies, report.classes)
    data["montage_gap"] = GAP
    colours = {entry["cluster"]: entry["colour"] for entry in data["classes"]}
    groups = class_cards(report.classes, report.montages, colours, folder)
    environment = page_environment()
    environment.filters |= {"count": _count, "decimal": _decimal, "percent": _percent, "figure": _figure}
    return environment.get_template("page.html.jinja").render(
        title=report.title,
        facts=_facts(report),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=script_hash(script),
        data=data,
        static_map=data_uri(report.map_png, "image/png"),
        groups=groups,
        any_group=any(group.number is not None for group in groups),
        figures=[figure for figure in FIGURES if figure.column in report.classes],
        has_grades="grade" in report.classes,
        cuts=_cut_rows(report),
        recovery=[] if report.recovery is None else records(report.recovery),
        advice=_advice(report) if report.classes.empty else [],
        warnings=report.warnings,
        quality=report.quality,
        files={label: quote(path) for label, path in report.files.items()},
        sweep=None if report.sweep is None else quote(report.sweep),
        settings=flat(report.settings).items(),
        provenance=flat(report.provenance).items(),
    )


def _facts(report: Report) -> dict[str, int]:
    in_classes = int((report.galaxies["cluster"] >= 0).sum())
    return {
        "catalog": report.n_catalog,
        "failed": report.n_failed,
        "selected": len(report.galaxies),
        "classes": len(report.classes),
        "excluded": report.n_excluded,
        "in_classes": in_classes,
        "without_image": int((report.galaxies["file_loc"] == "").sum()),
    }


def _cut_rows(report: Report) -> list[dict[str, Any]]:
    """The funnel, whose first row is what there was; nothing where nothing was cut."""
    rows = records(report.cuts)
    if not any(row["answer"] for row in rows):
        return []
    total = max((row["left"] + row["removed"] for row in rows), default=0) or 1
    return [{**row, "left_share": row["left"] / total, "removed_share": row["removed"] / total} for row in rows]


def _advice(report: Report) -> list[tuple[str, str, str]]:
    """What to change where no class was found: option, its present value where the settings have it, and why."""
    reasons = {
        "tree.min_samples": "lower it: it smooths the density, and groups of fewer galaxies vanish in the bulk",
        "tree.min_cluster_size": "lower it: smaller groups are not counted as classes",
        "selection.cuts": "widen the selection: fewer or milder cuts leave more galaxies to form groups",
        "layout.n_neighbors": "lower it: a small group is torn apart by neighbours that do not belong to it",
    }
    present = flat(report.settings)
    return [(name, present.get(name, ""), why) for name, why in reasons.items()]


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{int(value):,}"


def _decimal(value: float | None, places: int = 2) -> str:
    return NOTHING if value is None else f"{float(value):.{places}f}"


def _percent(value: float | None) -> str:
    if value is None:
        return NOTHING
    digits = 2 if 0 < value < 0.001 else 1
    return re.sub(r"\.0+$", "", f"{100 * value:.{digits}f}") + "%"


def _figure(value: float | None) -> str:
    """A number of either kind: whole ones with thousands apart, others with three figures."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, Integral) else f"{value:.3g}"
