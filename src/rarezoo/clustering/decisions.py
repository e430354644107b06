"""What the astronomer decides of the classes found: names, merges, exclusions and notes, kept in a YAML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator
from pydantic_core import ErrorDetails

from rarezoo.cli import UserError, did_you_mean
from rarezoo.clustering.tree import ClassTree
from rarezoo.provenance import written_beside
from rarezoo.votes.tree_files import NoRepeats

_HEADER = """\
# What you decide of the classes found. Copy this file to classes.yaml (option decisions) and edit the copy: every later
# run of cluster.py applies it. Classes are known by their galaxies, since their numbers change from search to search:
# an entry is for the class that holds the galaxy `medoid`, or at least half of all those of `members`. It may have
#   name: one-armed spirals        the class's name, in the tables and on the page
#   note: as in Arp's atlas
#   merge_into: one-armed spirals  instead of a name: it is one class with the entry of this name
#   exclude: true                  its galaxies are in no class
# An entry with none of these decides nothing.
"""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decision(_Part):
    """What is decided of one class, which is the one that holds a galaxy, or at least half of several.

    Attributes
    ----------
    medoid : id_str of a galaxy of the class
    members : id_str of several, in place of medoid. All of them count, also those in no class or not searched: one
        galaxy that happens to be left of them does not decide what becomes of a class
    name : of the class
    note : free text
    merge_into : name of the entry whose class it is one with, in place of a name of its own
    exclude : its galaxies are in no class; that of a name holds for all classes that are merged into it
    """

    medoid: str | None = Field(default=None, min_length=1)
    members: list[str] | None = Field(default=None, min_length=1)
    name: str | None = Field(default=None, min_length=1)
    note: str | None = None
    merge_into: str | None = Field(default=None, min_length=1)
    exclude: StrictBool = False

    @model_validator(mode="after")
    def _agrees(self) -> Decision:
        if (self.medoid is None) == (self.members is None):
            raise ValueError("give either medoid, the id_str of a galaxy of the class, or members, a list of them")
        if self.merge_into is not None and (self.name is not None or self.exclude):
            raise ValueError("merge_into gives the class the name and the lot of another entry: drop name and exclude")
        return self

    @property
    def galaxies(self) -> list[str]:
        """Ids by which the class is known."""
        return [self.medoid] if self.medoid is not None else list(dict.fromkeys(self.members or []))

    @property
    def lot(self) -> str | None:
        """Name of the class that it comes to."""
        return self.name or self.merge_into

    @property
    def decides(self) -> bool:
        """Whether anything is decided."""
        return bool(self.lot or self.note or self.exclude)


class Decisions(_Part):
    """Entries of a file of decisions, in its order."""

    classes: list[Decision] = Field(default_factory=list)


@dataclass(frozen=True)
class Decided:
    """A search's classes after decisions.

    Attributes
    ----------
    tree : the classes that remain, in their order; of one that was merged, persistence, node and parent are those of
        its most persistent part. Galaxies of excluded classes are in none.
    found : (N,) int32, class of each galaxy as found
    classes : one row a class that remains: cluster, name, note ('' where there is none), found_clusters (list of the
        numbers under which it was found)
    excluded : numbers of the classes, as found, that were excluded
    unmatched : sentences on the entries that could not be applied to this search
    """

    tree: ClassTree
    found: NDArray[np.int32]
    classes: pd.DataFrame
    excluded: list[int]
    unmatched: list[str]


def read_decisions(path: Path) -> Decisions:
    """Decisions of a file; none where there is no file.

    Raises
    ------
    UserError
        if it is not YAML or not of this form, two entries have one name or one medoid, or one merges into no entry's
        name; names cannot merge in a circle, since an entry that merges has no name of its own
    """
    if not path.exists():
        return Decisions()
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), NoRepeats)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: is not readable as YAML ({error}). Repair the file.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}. Write classes: and below it a list of entries.")
    try:
        decisions = Decisions.model_validate({name: value for name, value in content.items() if value is not None})
    except ValidationError as error:
        reasons = dict.fromkeys(_explained(details, content) for details in error.errors())
        raise UserError("\n".join(f"{path}: {reason}" for reason in reasons)) from error
    _check(path, decisions.classes)
    return decisions


def _explained(details: ErrorDetails, content: dict[str, Any]) -> str:
    place, kind, value = details["loc"], details["type"], details["input"]
    if len(place) == 1 and kind == "extra_forbidden":
        return f"has '{place[0]}'. {did_you_mean(str(place[0]), Decisions.model_fields)}"
    if len(place) < 2:
        return "classes is no list. Write each entry with a dash: '- medoid: ...'."
    where = f"entry {int(place[1]) + 1}"
    if len(place) == 2:
        fault = details["msg"].removeprefix("Value error, ") if kind == "value_error" else "write it as 'medoid: ...'"
        return f"{where}: {fault} (found {value!r})."
    field = ".".join(str(part) for part in place[2:])
    if kind == "extra_forbidden":
        return f"{where} has '{field}'. {did_you_mean(field, Decision.model_fields)}"
    if kind == "string_type":
        return f"{where}: {field} is {value!r}, read as {type(value).__name__}. Put it in quotes."
    return f"{where}: {field} is {value!r}: {details['msg']}."


def _check(path: Path, entries: Sequence[Decision]) -> None:
    names: dict[str, str] = {}
    medoids: dict[str, str] = {}
    for number, entry in enumerate(entries):
        where = _entry(number, entry)
        for kind, value, seen in (("name", entry.name, names), ("medoid", entry.medoid, medoids)):
            if value is not None and value in seen:
                fix = f"Write merge_into: {value}" if kind == "name" else "Make them one"
                raise UserError(f"{path}: {where} has the {kind} '{value}' of {seen[value]}. {fix}.")
            if value is not None:
                seen[value] = where
    for number, entry in enumerate(entries):
        if entry.merge_into is not None and entry.merge_into not in names:
            raise UserError(
                f"{path}: {_entry(number, entry)} merges into '{entry.merge_into}', the name of no entry. "
                + (did_you_mean(entry.merge_into, names) or "Give an entry this name.")
            )


def _entry(number: int, entry: Decision) -> str:
    return f"entry {number + 1} ({entry.galaxies[0]})"


def decide(tree: ClassTree, ids: Sequence[str] | NDArray[np.object_], decisions: Decisions) -> Decided:
    """Apply decisions to the classes of a search.

    Of several entries for one class the first is applied. One that cannot be applied to this search is told of and left
    out: with other settings the same file may fit.

    Parameters
    ----------
    tree : K classes of N galaxies
    ids : (N,) id_str of the galaxies
    decisions : as from `read_decisions`
    """
    applied, unmatched = _matched(tree.labels, ids, decisions.classes)
    banned = {entry.name for entry in decisions.classes if entry.exclude and entry.name}
    excluded = [c for c, (entry, _) in sorted(applied.items()) if entry.exclude or entry.lot in banned]
    lots = {c: applied[c][0].lot if c in applied else None for c in range(tree.n_classes) if c not in excluded}
    first_of: dict[str, int] = {}
    parts: dict[int, list[int]] = {}
    for cluster, lot in lots.items():
        first = cluster if lot is None else first_of.setdefault(lot, cluster)
        parts.setdefault(first, []).append(cluster)
    notes = ["; ".join(note for c in found if c in applied for note in applied[c][1]) for found in parts.values()]
    classes = pd.DataFrame(
        {
            "cluster": np.arange(len(parts), dtype=np.int32),
            "name": pd.Series([lots[first] or "" for first in parts], dtype=object),
            "note": pd.Series(notes, dtype=object),
            "found_clusters": pd.Series(list(parts.values()), dtype=object),
        }
    )
    return Decided(_regrouped(tree, list(parts.values())), tree.labels, classes, excluded, unmatched)


def _matched(
    labels: NDArray[np.integer], ids: Sequence[str] | NDArray[np.object_], entries: Sequence[Decision]
) -> tuple[dict[int, tuple[Decision, list[str]]], list[str]]:
    """Class -> the entry that is applied to it and the notes on it; and why other entries are not applied."""
    wanted = list(dict.fromkeys(galaxy for entry in entries for galaxy in entry.galaxies))
    places = pd.Index(wanted, dtype=object).get_indexer(pd.Index(ids, dtype=object))
    rows = np.flatnonzero(places >= 0)
    class_of = {wanted[places[row]]: int(labels[row]) for row in rows if labels[row] >= 0}
    applied: dict[int, tuple[Decision, list[str]]] = {}
    unmatched: list[str] = []
    for number, entry in enumerate(entries):
        if not entry.decides:
            continue
        named = entry.galaxies
        counts = Counter(class_of[galaxy] for galaxy in named if galaxy in class_of)
        best, most = min(counts.items(), key=lambda item: (-item[1], item[0]), default=(-1, 0))
        if not counts:
            unmatched.append(f"{_entry(number, entry)}: none of its galaxies is in a class of this search.")
        elif 2 * most < len(named):
            unmatched.append(
                f"{_entry(number, entry)}: no class of this search holds half of its {len(named)} galaxies (class "
                f"{best} has {most}, and {len(named) - counts.total()} are in none)."
            )
        elif best not in applied:
            applied[best] = (entry, [entry.note] if entry.note else [])
        elif entry.lot is not None and entry.lot == applied[best][0].lot:
            applied[best][1].extend([entry.note] if entry.note else [])
        else:
            other = entries.index(applied[best][0])
            unmatched.append(f"{_entry(number, entry)}: {_entry(other, entries[other])} is for the same class.")
    return applied, unmatched


def _regrouped(tree: ClassTree, parts: list[list[int]]) -> ClassTree:
    """The classes put together from some of a tree, each of which has the lowest number first."""
    # The last place, which -1 reads, keeps galaxies without a class without one.
    new = np.full(tree.n_classes + 1, -1, dtype=np.int32)
    for cluster, found in enumerate(parts):
        new[found] = cluster
    labels = new[tree.labels]
    first = np.array([found[0] for found in parts], dtype=np.int64)
    return replace(
        tree,
        labels=labels,
        probabilities=np.where(labels >= 0, tree.probabilities, np.float32(0)),
        persistence=tree.persistence[first],
        nodes=tree.nodes[first],
        parents=tree.parents[first],
    )


def write_template(path: Path, classes: pd.DataFrame) -> None:
    """Write a file of decisions to start from: it lists the classes and decides nothing.

    Parameters
    ----------
    path : not that of the decisions themselves, since an existing file is replaced
    classes : table with cluster, size, medoid_id, and optionally distinguishing and name
    """
    lines = [_HEADER, "classes:\n" if len(classes) else "classes: []\n"]
    for row in classes.to_dict(orient="records"):
        marks = " ".join(str(row.get("distinguishing") or "").split())
        lines.append(f"  # class {row['cluster']}, {row['size']} galaxies{': ' if marks else ''}{marks}\n")
        lines.append(f"  - medoid: {_quoted(str(row['medoid_id']))}\n")
        lines.append(f"    name: {_quoted(str(row['name'])) if row.get('name') else ''}".rstrip() + "\n")
    with written_beside(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _quoted(text: str) -> str:
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return quoted.rstrip("\n")
