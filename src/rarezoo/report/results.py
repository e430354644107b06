"""All that a class search leaves behind for people: tables, montages, the page, the comparison with a known truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rarezoo.cli import UserError, did_you_mean
from rarezoo.clustering.classes import class_table, galaxy_table
from rarezoo.clustering.scores import FOUND, kind_agreement, recovery
from rarezoo.clustering.scores import summary as recovery_summary
from rarezoo.clustering.search import Announce, search_classes
from rarezoo.clustering.settings import ClusterSettings
from rarezoo.clustering.stages import StageStore
from rarezoo.data.tables import read_table
from rarezoo.embeddings import Embeddings
from rarezoo.provenance import made_with, written_beside
from rarezoo.report.montage import ClassMontage, class_montages
from rarezoo.report.page import Report, write_report

_TRUTH_COLUMNS = ("id_str", "rare_class")
# Fewer say nothing of whether kinds separate: the cuts of a search for galaxies leave a handful.
_ENOUGH_ARTIFACTS = 30
_RECOVERY_SHOWN = ["class", "members", "selected", "cluster", "f1", "purity", "completeness"]


@dataclass(frozen=True)
class Results:
    """What was written, as tables.

    Attributes
    ----------
    classes : see `class_table`
    galaxies : see `galaxy_table`
    montages : class -> its montage
    recovery : see `recovery`; None where no truth was given
    summary : figures for the end of the run
    """

    classes: pd.DataFrame
    galaxies: pd.DataFrame
    montages: Mapping[int, ClassMontage]
    recovery: pd.DataFrame | None
    summary: dict[str, Any]


def read_truth(path: Path | None) -> pd.DataFrame | None:
    """Table of known classes: id_str, rare_class ('' or null for none) and optionally artifact; None for no path.

    Raises
    ------
    UserError
        if the file is not there, is no table, or lacks a column
    """
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"truth={path}: there is no such file. Give truth=null to search without a comparison.")
    table = read_table(path)
    for column in _TRUTH_COLUMNS:
        if column not in table:
            raise UserError(f"{path}: has no column '{column}'. {did_you_mean(column, table.columns)}")
    if table["id_str"].duplicated().any():
        twice = table.loc[table["id_str"].duplicated(), "id_str"].iloc[0]
        raise UserError(f"{path}: column 'id_str' has '{twice}' more than once. Keep one row a galaxy.")
    return table.set_index("id_str")


def search_and_write(
    folder: Path, embeddings: Embeddings, settings: ClusterSettings, inputs: Mapping[str, str], announce: Announce
) -> Results:
    """Search for classes and write galaxies.parquet, classes.parquet, montages/ and report.html.

    With a known truth, which the search does not see, also recovery.parquet.

    Parameters
    ----------
    folder : for the files
    inputs : name -> content hash, for the page
    announce : called with the name of each stage
    """
    truth = read_truth(settings.truth)
    search = search_classes(embeddings, settings.search, StageStore(settings.stages), announce)
    rows = search.selection.rows
    galaxies = galaxy_table(embeddings.to_pandas(rows), search.tree, search.view)
    classes = class_table(
        search.tree,
        embeddings.representation[rows],
        search.graph.indices,
        embeddings.vote_fractions(rows),
        embeddings.label_cols,
        galaxies["id_str"].tolist(),
    )
    _write_parquet(folder / "galaxies.parquet", galaxies)
    _write_parquet(folder / "classes.parquet", classes)
    with written_beside(folder / "montages") as temporary:
        temporary.mkdir()
        drawn = class_montages(temporary, galaxies, **settings.report.model_dump())
    montages = {cluster: _moved(found, folder / "montages") for cluster, found in drawn.items()}
    summary: dict[str, Any] = {"n_galaxies": len(embeddings), **search.summary()}
    recovered = None
    if truth is not None:
        recovered, compared = compare(galaxies, truth)
        _write_parquet(folder / "recovery.parquet", recovered)
        summary["recovery"] = compared
    announce("report")
    page = Report(
        title=settings.name,
        settings=settings.decisive(),
        provenance={**made_with(), "inputs": inputs, "seed": settings.layout.seed},
        n_catalog=len(embeddings),
        cuts=search.selection.steps,
        classes=classes,
        galaxies=galaxies,
        montages=montages,
        recovery=None if recovered is None else recovered.rename(columns={"class": "class_name"}),
        n_failed=int(embeddings.attributes["n_failed"]),
    )
    write_report(folder / "report.html", page)
    return Results(classes, galaxies, montages, recovered, summary)


def read_recovery(folder: Path) -> pd.DataFrame:
    """The comparison with a known truth that `search_and_write` left in a folder, as far as a terminal shows it."""
    return pd.read_parquet(folder / "recovery.parquet", columns=_RECOVERY_SHOWN)


def recovery_sentence(facts: Mapping[str, Any]) -> str:
    """One sentence on how many planted classes were found, how pure and how complete, from the summary of a run."""
    found = f"Found {facts['found_f1_50']} of {facts['planted']} planted classes"
    quality = f"median purity {facts['median_purity']:.2f}, completeness {facts['median_completeness']:.2f}"
    others = f"{facts['clusters_of_no_class']} of {facts['clusters']} clusters match none of them"
    return f"{found} (best cluster's F1 >= {FOUND}; {quality}); {others}."


def compare(galaxies: pd.DataFrame, truth: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Compare the classes found with those known.

    Parameters
    ----------
    galaxies : selected galaxies with id_str and cluster
    truth : known classes of the whole catalog by id_str

    Returns
    -------
    table of `recovery`, and its summary
    """
    names = truth["rare_class"].fillna("").astype(str)
    known = names.reindex(galaxies["id_str"]).fillna("").to_numpy(object)
    labels = galaxies["cluster"].to_numpy()
    totals = {str(name): int(n) for name, n in names[names != ""].value_counts().items()}
    table = recovery(labels, known, totals)
    facts = {
        name: value for name, value in recovery_summary(table, labels, known).items() if name != "share_in_clusters"
    }
    if "artifact" in truth:
        kinds = truth["artifact"].fillna("").reindex(galaxies["id_str"]).fillna("").to_numpy(object)
        agreement = kind_agreement(labels, kinds)
        if agreement["n"] >= _ENOUGH_ARTIFACTS:
            facts |= {"artifacts_selected": agreement["n"], "artifact_kinds_ami": agreement["ami"]}
    return table, facts


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    with written_beside(path) as temporary:
        table.to_parquet(temporary, index=False)


def _moved(montage: ClassMontage, folder: Path) -> ClassMontage:
    return ClassMontage(folder / montage.path.name, montage.shown, montage.members, montage.columns, montage.thumbnail)
