"""What the page says of each class: its figures, what sets it apart, its montage, and the group it stands in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from rarezoo.report.figures import class_names
from rarezoo.report.map_data import data_uri
from rarezoo.report.montage import ClassMontage, embedded_copies

# Of all montages in the page together, see `map_data`.
MONTAGE_BYTES = 7_000_000
_NO_COLOUR = "#8b95a7"
NOTHING = "–"
_AS_THEY_ARE = ("share", "persistence", "cohesion", "medoid_id", "note", "unseen", "grade")


@dataclass(frozen=True)
class ClassFigure:
    """A number that a class may have: its column, how the page calls it, what it means, and its format."""

    column: str
    label: str
    meaning: str
    form: str = ".2f"


FIGURES = (
    ClassFigure(
        "persistence",
        "persistence",
        "how long the class lasts while the density threshold rises, from 0 to 1; a bump by chance soon ends",
        ".3f",
    ),
    ClassFigure(
        "cohesion",
        "cohesion",
        "share of the members' nearest neighbours in the representation itself that are members too; in brackets, "
        "that of a random set of the same size",
    ),
    ClassFigure("mean_probability", "probability", "how firmly members belong to the class, mean; 1 is its core"),
    ClassFigure("mean_outlier_score", "outlier score", "GLOSH: how far members stand out of their surroundings, mean"),
    ClassFigure(
        "stability_seeds",
        "stable: seeds",
        "overlap (Jaccard) with the nearest class when only the seed of the layout is another, mean",
    ),
    ClassFigure(
        "stability_samples",
        "stable: samples",
        "overlap (Jaccard) with the nearest class when a random sample of the galaxies is searched, mean",
    ),
    ClassFigure("validity", "DBCV", "how much sparser the gap to other classes is than the class itself, from -1 to 1"),
    ClassFigure("birth_lambda", "birth λ", "density (1 / distance) at which the class parts from the rest", ".3g"),
    ClassFigure(
        "control_exceeded",
        "by chance",
        "(1 + classes of the control searches, which chance alone made, of at least its contrast) / (1 + all of them)",
        ".1%",
    ),
)


@dataclass(frozen=True)
class CardGroup:
    """Classes that stand together: those of one group, or, with number None, one that is alone in its group."""

    number: int | None
    cards: list[dict[str, Any]]


def class_cards(
    classes: pd.DataFrame, montages: Mapping[int, ClassMontage], colours: Mapping[int, str], folder: Path | None
) -> list[CardGroup]:
    """Cards of all classes in the order of the table, a group at the place of its first.

    Parameters
    ----------
    classes : cluster, size, medoid_id, and optionally share, parent, answers (what sets it apart: mappings with answer,
        mean, others and optionally effect), name, note, unseen, group, cohesion_random, nearest (numbers of classes),
        grade, and the columns of `FIGURES`
    montages : as from `class_montages`
    colours : of the classes that are on the map
    folder : of the page, for its links to the montage files; None leaves them out
    """
    rows, copies, names = records(classes), embedded_copies(montages, MONTAGE_BYTES), class_names(classes)
    sizes = Counter(row.get("group") for row in rows)
    siblings = _siblings(rows)
    groups: dict[tuple[str, int], CardGroup] = {}
    for row in rows:
        cluster, group = int(row["cluster"]), row.get("group")
        number = int(group) if group is not None and sizes[group] > 1 else None
        montage = montages.get(cluster)
        card = {
            "cluster": cluster,
            "name": names.get(cluster, ""),
            "colour": colours.get(cluster, _NO_COLOUR),
            "size": int(row["size"]),
            "on_map": cluster in colours,
            **{
                name: row.get(name)
                for name in ("share", "persistence", "cohesion", "medoid_id", "note", "unseen", "grade")
            },
            "figures": _figures(row),
            "answers": [] if row.get("answers") is None else list(row["answers"]),
            "nearest": [] if row.get("nearest") is None else [int(other) for other in row["nearest"]],
            "kin": [other for other in siblings.get(row.get("parent"), []) if other != cluster],
            "montage": None if montage is None else _montage(montage, copies.get(cluster), folder),
        }
        key = ("class", cluster) if number is None else ("group", number)
        groups.setdefault(key, CardGroup(number, [])).cards.append(card)
    return list(groups.values())


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, missing values as None."""
    return [
        {str(name): None if _is_missing(value) else value for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))


def _figures(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and a remark of each number that the table has a column for."""
    found = []
    for figure in FIGURES:
        if figure.column in row:
            value = row[figure.column]
            remark = ""
            if figure.column == "cohesion" and row.get("cohesion_random") is not None:
                remark = f"({row['cohesion_random']:.2g})"
            found.append((figure.label, NOTHING if value is None else format(float(value), figure.form), remark))
    return found


def _siblings(rows: list[dict[str, Any]]) -> dict[int | None, list[int]]:
    """Classes that split from each branch of the condensed tree."""
    found: dict[int | None, list[int]] = {}
    for row in rows:
        if row.get("parent") is not None:
            found.setdefault(row["parent"], []).append(int(row["cluster"]))
    return found


def _montage(montage: ClassMontage, copy: bytes | None, folder: Path | None) -> dict[str, Any]:
    with Image.open(montage.path) as image:
        width, height = image.size
    linked = folder is not None and montage.path.is_relative_to(folder)
    return {
        "source": None if copy is None else data_uri(copy, "image/jpeg"),
        "file": quote(montage.path.relative_to(folder).as_posix()) if folder is not None and linked else None,
        "width": width,
        "height": height,
        "shown": list(montage.shown),
        "n_shown": len(montage.shown),
        "members": montage.members,
        "columns": montage.columns,
        "thumbnail": montage.thumbnail,
    }
