"""The page: one HTML file that shows what a class search found and asks for nothing from outside itself."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from rarezoo.provenance import flat, written_beside
from rarezoo.report.figures import class_map, to_png
from rarezoo.report.map_data import data_uri, map_data
from rarezoo.report.montage import GAP, ClassMontage

_FOLDER = Path(__file__).parent
_PRINT_DPI = 110
NOTHING = "–"


@dataclass(frozen=True)
class Report:
    """What the page tells.

    Attributes
    ----------
    title : name of the search
    n_catalog : galaxies in the catalog
    cuts : one row a cut: cut, answer, threshold, removed, left; may be empty
    classes : one row a class: cluster, size, medoid_id, and optionally share, persistence, cohesion, parent, answers
        (what sets it apart: mappings with answer, mean, others); all but the first two may hold missing values
    galaxies : one row a galaxy that passed the cuts: id_str, file_loc (a path that can be opened, '' for no image),
        cluster (-1 = none), probability, x, y and optionally ra, dec (degrees)
    montages : as from `class_montages`
    recovery : comparison with planted classes, one row each: class_name, members, selected, cluster, f1, purity,
        completeness; None where the truth is not known
    settings, provenance : JSON-like, shown as they are
    n_failed : images that could not be read
    """

    title: str
    n_catalog: int
    cuts: pd.DataFrame
    classes: pd.DataFrame
    galaxies: pd.DataFrame
    montages: Mapping[int, ClassMontage]
    recovery: pd.DataFrame | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    n_failed: int = 0


def write_report(path: Path, report: Report) -> None:
    """Write the page: a self-contained HTML file with its images, whole or not at all.

    Raises
    ------
    UserError
        if the file cannot be written
    """
    html = render(report)
    with written_beside(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(report: Report) -> str:
    """HTML text of the page. All that comes from users is escaped, and only the page's own script may run."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    data = map_data(report.galaxies, report.classes)
    data["montage_gap"] = GAP
    colours = {entry["cluster"]: entry["colour"] for entry in data["classes"]}
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=report.title,
            facts=_facts(report),
            style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=_content_hash(script),
            data=data,
            static_map=data_uri(to_png(class_map(report.galaxies, report.classes), _PRINT_DPI), "image/png"),
            cards=[_card(row, report, colours) for row in _records(report.classes)],
            cuts=_cut_rows(report),
            recovery=[] if report.recovery is None else _records(report.recovery),
            advice=_advice(report) if report.classes.empty else [],
            settings=flat(report.settings).items(),
            provenance=flat(report.provenance).items(),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"count": _count, "decimal": _decimal, "percent": _percent}
    return environment


def _content_hash(script: str) -> str:
    """Hash by which the page's content security policy knows its one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(report: Report) -> dict[str, int]:
    in_classes = int((report.galaxies["cluster"] >= 0).sum())
    return {
        "catalog": report.n_catalog,
        "failed": report.n_failed,
        "selected": len(report.galaxies),
        "classes": len(report.classes),
        "in_classes": in_classes,
        "without_image": int((report.galaxies["file_loc"] == "").sum()),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, missing values as None."""
    return [
        {str(name): None if _is_missing(value) else value for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))


def _card(row: Mapping[str, Any], report: Report, colours: Mapping[int, str]) -> dict[str, Any]:
    cluster = int(row["cluster"])
    montage = report.montages.get(cluster)
    return {
        "cluster": cluster,
        "colour": colours.get(cluster, "#8b95a7"),
        "size": int(row["size"]),
        **{name: row.get(name) for name in ("share", "persistence", "cohesion", "medoid_id")},
        "answers": [] if row.get("answers") is None else list(row["answers"]),
        "kin": _kin(row, report.classes),
        "montage": None if montage is None else _embedded(montage),
    }


def _kin(row: Mapping[str, Any], classes: pd.DataFrame) -> list[int]:
    """Classes that split from the same branch of the condensed tree."""
    if row.get("parent") is None:
        return []
    same = classes.loc[(classes["parent"] == row["parent"]) & (classes["cluster"] != row["cluster"]), "cluster"]
    return [int(cluster) for cluster in same]


def _embedded(montage: ClassMontage) -> dict[str, Any]:
    with Image.open(montage.path) as image:
        width, height = image.size
    return {
        "source": data_uri(montage.path.read_bytes(), "image/jpeg"),
        "width": width,
        "height": height,
        "shown": list(montage.shown),
        "n_shown": len(montage.shown),
        "members": montage.members,
        "columns": montage.columns,
        "thumbnail": montage.thumbnail,
    }


def _cut_rows(report: Report) -> list[dict[str, Any]]:
    rows = _records(report.cuts)
    total = max((row["left"] + row["removed"] for row in rows), default=0) or 1
    return [{**row, "left_share": row["left"] / total, "removed_share": row["removed"] / total} for row in rows]


def _advice(report: Report) -> list[tuple[str, str, str]]:
    """What to change where no class was found: option, its present value where the settings have it, and why."""
    reasons = {
        "tree.min_samples": "lower it: it smooths the density, and groups of fewer galaxies vanish in the bulk",
        "tree.min_cluster_size": "lower it: smaller groups are not counted as classes",
        "selection.cuts": "widen the selection: fewer cuts, or higher thresholds, leave more galaxies to form groups",
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
