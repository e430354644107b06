"""All that a class search leaves behind for people: tables, montages, the page, the comparison with a known truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarezoo.cli import UserError, did_you_mean
from rarezoo.clustering.classes import class_means, class_table, galaxy_table
from rarezoo.clustering.cohesion import column_cohesion, striking_columns
from rarezoo.clustering.decisions import Decided, decide, read_decisions, write_template
from rarezoo.clustering.evidence import Evidence, warnings_of, weigh
from rarezoo.clustering.grouping import group_classes
from rarezoo.clustering.pipeline import Announce
from rarezoo.clustering.scores import FOUND, kind_agreement, recovery
from rarezoo.clustering.scores import summary as recovery_summary
from rarezoo.clustering.search import ClassSearch, search_classes
from rarezoo.clustering.settings import ClusterSettings, GroupSettings
from rarezoo.clustering.stages import StageStore
from rarezoo.data.tables import read_table
from rarezoo.embeddings import Embeddings
from rarezoo.provenance import made_with, sha256_of_file, sweep_of, written_beside
from rarezoo.report.figures import class_map, class_sizes, cut_waterfall, recovery_chart, to_png
from rarezoo.report.montage import ClassMontage, class_montages
from rarezoo.report.page import Report, write_report
from rarezoo.report.tables import write_tables

_TRUTH_COLUMNS = ("id_str", "rare_class")
# Fewer say nothing of whether kinds separate: the cuts of a search for galaxies leave a handful.
_ENOUGH_ARTIFACTS = 30
_RECOVERY_SHOWN = ["class", "members", "selected", "cluster", "f1", "purity", "completeness"]
# Text with more different values than this names galaxies rather than kinds of them.
_MOST_KINDS = 100
_TEMPLATE = "classes.example.yaml"
_RECOVERY = "recovery.parquet"
_PAGE = "report.html"
OUTPUTS = (_PAGE, "classes.parquet", "galaxies.parquet", "montages")


@dataclass(frozen=True)
class Results:
    """What was written, as tables.

    Attributes
    ----------
    classes : see `class_table`, with what `weigh` measured, the astronomer's names and notes, and groups
    galaxies : see `galaxy_table`
    cuts : see `Selection`
    montages : class -> its montage
    figures : name -> file of the map, the cuts, the sizes of the classes and, with a known truth, its recovery
    summary : figures of the run
    unmatched : decisions that fit no class of this search
    """

    classes: pd.DataFrame
    galaxies: pd.DataFrame
    cuts: pd.DataFrame
    montages: Mapping[int, ClassMontage]
    figures: Mapping[str, Path]
    summary: dict[str, Any]
    unmatched: list[str]


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
    table["id_str"] = table["id_str"].astype(str)
    if table["id_str"].duplicated().any():
        twice = table.loc[table["id_str"].duplicated(), "id_str"].iloc[0]
        raise UserError(f"{path}: column 'id_str' has '{twice}' more than once. Keep one row a galaxy.")
    return table.set_index("id_str")


def search_and_write(
    folder: Path, embeddings: Embeddings, settings: ClusterSettings, inputs: Mapping[str, str], announce: Announce
) -> Results:
    """Search for classes, weigh them, and write tables, montages, figures and report.html.

    Tables are galaxies and classes, each in four formats, columns.parquet on the catalog's own columns, and, with a
    known truth, which the search does not see, recovery.parquet.

    Parameters
    ----------
    folder : for the files
    inputs : name -> content hash, for the page
    announce : called with the name of each stage
    """
    truth, decisions, applied = read_truth(settings.truth), read_decisions(settings.decisions), _applied(settings)
    store = StageStore(settings.stages)
    search = search_classes(embeddings, settings.search, store, announce)
    catalog = embeddings.to_pandas(search.selection.rows)
    decided = decide(search.tree, catalog["id_str"].to_numpy(object), decisions)
    evidence = weigh(search, decided.tree, settings.trust, announce)
    announce("tables")
    # The page is written last: while it is missing, what stands here is of no one search.
    for name in (_PAGE, _RECOVERY):
        (folder / name).unlink(missing_ok=True)
    galaxies = galaxy_table(catalog, decided.tree, search.view, decided.found)
    columns = column_cohesion(decided.tree.labels, _unseen(catalog))
    classes = _classes(search, decided, evidence, settings.groups, embeddings, galaxies["id_str"].tolist())
    classes = classes.assign(unseen=striking_columns(columns, len(classes)))
    files = write_tables(folder, classes, galaxies, {"config": settings.decisive(), "inputs": inputs, **made_with()})
    files["columns.parquet"] = _write_parquet(folder / "columns.parquet", columns)
    write_template(folder / _TEMPLATE, classes)
    summary: dict[str, Any] = {"n_galaxies": len(embeddings), **search.summary(), **evidence.quality, **store.summary()}
    summary["applied"] = applied
    recovered = None
    if truth is not None:
        recovered, summary["recovery"] = compare(galaxies, truth)
        files[_RECOVERY] = _write_parquet(folder / _RECOVERY, recovered)
        recovered = recovered.rename(columns={"class": "class_name"})
    announce("montages and report")
    montages = _write_montages(folder, galaxies, settings)
    figures = _write_figures(folder, search.selection.steps, galaxies, classes, recovered)
    page = Report(
        title=settings.name,
        settings=settings.decisive(),
        provenance={**made_with(), "inputs": inputs, "seed": settings.layout.seed},
        n_catalog=len(embeddings),
        cuts=search.selection.steps,
        classes=classes,
        galaxies=galaxies,
        montages=montages,
        recovery=recovered,
        n_failed=int(embeddings.attributes["n_failed"]),
        n_excluded=len(decided.excluded),
        warnings=[*warnings_of(search, settings.search, evidence.quality), *decided.unmatched],
        quality=evidence.quality,
        files={name: str(path.relative_to(folder)) for name, path in {**files, **figures}.items()},
        sweep=None if sweep_of(folder) is None else "../sweep.html",
    )
    write_report(folder / _PAGE, page)
    return Results(classes, galaxies, search.selection.steps, montages, figures, summary, decided.unmatched)


def is_up_to_date(folder: Path, settings: ClusterSettings, summary: Mapping[str, Any]) -> bool:
    """Whether all that a complete run wrote is still there, and of today's decisions and truth.

    Parameters
    ----------
    summary : that `search_and_write` gave
    """
    expected = OUTPUTS if settings.truth is None else (*OUTPUTS, _RECOVERY)
    return summary.get("applied") == _applied(settings) and all((folder / name).exists() for name in expected)


def _applied(settings: ClusterSettings) -> dict[str, str]:
    """Hashes of the files that are applied to what a search found, and may change without another search."""
    files = {"decisions": settings.decisions, "truth": settings.truth}
    return {name: sha256_of_file(path) for name, path in files.items() if path is not None and path.is_file()}


def _classes(
    search: ClassSearch,
    decided: Decided,
    evidence: Evidence,
    groups: GroupSettings,
    embeddings: Embeddings,
    ids: list[str],
) -> pd.DataFrame:
    tree, x, rows = decided.tree, search.pipeline.x, search.selection.rows
    fractions = embeddings.vote_fractions(rows)
    classes = class_table(tree, x, search.graph.indices, fractions, embeddings.label_cols, ids)
    said = decided.classes.drop(columns="cluster")
    table = pd.concat([classes, evidence.classes, said], axis=1)
    if groups.tree is None and groups.similarity is None:
        return table
    means = class_means(tree.labels, x, tree.n_classes) - x.mean(axis=0, dtype=np.float64)
    return table.assign(group=group_classes(tree, means, groups.tree, groups.similarity))


def _unseen(catalog: pd.DataFrame) -> pd.DataFrame:
    """Columns of the catalog that say something of a galaxy and that no training saw."""
    own = catalog.drop(columns=["id_str", "file_loc", "ra", "dec"], errors="ignore")
    kept = [
        name for name, column in own.items() if pd.api.types.is_numeric_dtype(column) or column.nunique() <= _MOST_KINDS
    ]
    return own[kept]


def _write_montages(folder: Path, galaxies: pd.DataFrame, settings: ClusterSettings) -> dict[int, ClassMontage]:
    with written_beside(folder / "montages") as temporary:
        temporary.mkdir()
        drawn = class_montages(temporary, galaxies, **settings.report.model_dump())
    return {cluster: replace(found, path=folder / "montages" / found.path.name) for cluster, found in drawn.items()}


def _write_figures(
    folder: Path, cuts: pd.DataFrame, galaxies: pd.DataFrame, classes: pd.DataFrame, recovered: pd.DataFrame | None
) -> dict[str, Path]:
    figures = {
        "map": class_map(galaxies, classes),
        "cuts": cut_waterfall(cuts),
        "class_sizes": class_sizes(classes),
    }
    if recovered is not None:
        figures["recovery"] = recovery_chart(recovered)
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / "figures" / f"{name}.png"
        with written_beside(paths[name]) as temporary:
            temporary.write_bytes(to_png(figure))
    return paths


def read_recovery(folder: Path) -> pd.DataFrame:
    """The comparison with a known truth that `search_and_write` left in a folder, as far as a terminal shows it."""
    return pd.read_parquet(folder / _RECOVERY, columns=_RECOVERY_SHOWN)


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


def _write_parquet(path: Path, table: pd.DataFrame) -> Path:
    with written_beside(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path
