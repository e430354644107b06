"""Comparison of the classes found with known ones, which the search does not see."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rarezoo.cli import UserError, did_you_mean
from rarezoo.clustering.scores import FOUND, kind_agreement, recovery
from rarezoo.clustering.scores import summary as recovery_summary
from rarezoo.data.tables import read_table
from rarezoo.embeddings import Embeddings

RECOVERY = "recovery.parquet"
_COLUMNS = ("id_str", "rare_class")
# Fewer say nothing of whether kinds separate: the cuts of a search for galaxies leave a handful.
_ENOUGH_ARTIFACTS = 30
_SHOWN = ["class", "members", "selected", "cluster", "f1", "purity", "completeness"]

log = logging.getLogger(__name__)


def read_truth(path: Path, embeddings: Embeddings) -> tuple[pd.DataFrame, list[str]]:
    """Known classes of the galaxies that were embedded.

    Parameters
    ----------
    path : table of id_str, rare_class ('' or null for none) and optionally artifact, one row a galaxy
    embeddings : to be searched

    Returns
    -------
    the table by id_str; and a sentence with the numbers, which is logged too, where some of its galaxies were not
    embedded, or some embedded galaxies are not in it

    Raises
    ------
    UserError
        if the file is not there, is no table, lacks a column, has an id twice, or none of the embedded galaxies
    """
    if not path.is_file():
        raise UserError(f"truth={path}: there is no such file. Give truth=null to search without a comparison.")
    table = read_table(path)
    for column in _COLUMNS:
        if column not in table:
            raise UserError(f"{path}: has no column '{column}'. {did_you_mean(column, table.columns)}")
    table["id_str"] = table["id_str"].astype(str)
    if table["id_str"].duplicated().any():
        twice = table.loc[table["id_str"].duplicated(), "id_str"].iloc[0]
        raise UserError(f"{path}: column 'id_str' has '{twice}' more than once. Keep one row a galaxy.")
    told = _misfit(path, pd.Index(table["id_str"], dtype=object), embeddings)
    for sentence in told:
        log.warning("%s", sentence)
    return table.set_index("id_str"), told


def _misfit(path: Path, known: pd.Index, embeddings: Embeddings) -> list[str]:
    embedded = pd.Index(embeddings.ids, dtype=object)
    absent = known[~known.isin(embedded)]
    if len(absent) == len(known):
        here, there = (f"such as '{ids[0]}'" if len(ids) else "none" for ids in (known, embedded))
        raise UserError(
            f"{path}: column 'id_str' ({here}) has none of the galaxies of {embeddings.path} ({there}). Give the table "
            "of the catalog that was embedded, or truth=null to search without a comparison."
        )
    n_unknown = len(embedded) - int(embedded.isin(known).sum())
    told = []
    if len(absent):
        told.append(
            f"{len(absent)} of its {len(known)} galaxies (first: '{absent[0]}') were not embedded, and count as missed"
        )
    if n_unknown:
        told.append(f"{n_unknown} of {len(embedded)} embedded galaxies are not in it, and count as of no known class")
    return [f"{path.name}: {'; '.join(told)}."] if told else []


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


def read_recovery(folder: Path) -> pd.DataFrame:
    """The comparison that a search left in a folder, as far as a terminal shows it."""
    return pd.read_parquet(folder / RECOVERY, columns=_SHOWN)


def recovery_sentence(facts: Mapping[str, Any]) -> str:
    """One sentence on how many planted classes were found, how pure and how complete, from the summary of a run."""
    found = f"Found {facts['found_f1_50']} of {facts['planted']} planted classes"
    quality = f"median purity {facts['median_purity']:.2f}, completeness {facts['median_completeness']:.2f}"
    others = f"{facts['clusters_of_no_class']} of {facts['clusters']} clusters match none of them"
    return f"{found} (best cluster's F1 >= {FOUND}; {quality}); {others}."
