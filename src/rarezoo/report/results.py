"""All that a class search leaves behind for people: tables, montages, figures and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.clustering.classes import class_means, class_table, galaxy_table
from rarezoo.clustering.cohesion import column_cohesion, striking_columns
from rarezoo.clustering.decisions import Decided, Decisions, decide, read_decisions, write_template
from rarezoo.clustering.evidence import Evidence, warnings_of, weigh
from rarezoo.clustering.grouping import group_classes
from rarezoo.clustering.pipeline import Announce
from rarezoo.clustering.search import ClassSearch, search_classes
from rarezoo.clustering.settings import ClusterSettings, GroupSettings
from rarezoo.clustering.stages import StageStore
from rarezoo.embeddings import Embeddings
from rarezoo.provenance import made_with, sha256_of_file, sweep_of, written_beside
from rarezoo.report.figures import class_map, class_sizes, cut_waterfall, recovery_chart, to_png
from rarezoo.report.montage import ClassMontage, class_montages
from rarezoo.report.page import Report, write_report
from rarezoo.report.tables import write_tables
from rarezoo.report.truth import RECOVERY, compare, read_truth

# Text with more different values than this names galaxies rather than kinds of them.
_MOST_KINDS = 100
_TEMPLATE = "classes.example.yaml"
_PAGE = "report.html"
OUTPUTS = (_PAGE, "classes.parquet", "galaxies.parquet", "montages")


@dataclass(frozen=True)
class Given:
    """What a person gives to a search beside its settings, read and checked.

    Attributes
    ----------
    decisions : on the classes
    truth : known classes, as from `read_truth`
    warnings : sentences on how the truth fits the embeddings
    applied : hashes of the files
    """

    decisions: Decisions
    truth: pd.DataFrame | None
    warnings: list[str]
    applied: dict[str, str]


@dataclass(frozen=True)
class Results:
    """What was written, as tables.

    Attributes
    ----------
    classes : see `class_table`, with what `weigh` measured, the astronomer's names and notes, groups, and where the
        medoids lie
    galaxies : see `galaxy_table`
    cuts : see `Selection`
    recovery : see `compare`, with class_name for class; None without a known truth
    montages : class -> its montage
    tables : name -> file
    figures : name -> file of the map, the cuts, the sizes of the classes and, with a known truth, its recovery
    summary : figures of the run
    """

    classes: pd.DataFrame
    galaxies: pd.DataFrame
    cuts: pd.DataFrame
    recovery: pd.DataFrame | None
    montages: Mapping[int, ClassMontage]
    tables: Mapping[str, Path]
    figures: Mapping[str, Path]
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """A search after decisions, and what was measured of it; `columns` as from `column_cohesion`."""

    search: ClassSearch
    decided: Decided
    evidence: Evidence
    classes: pd.DataFrame
    galaxies: pd.DataFrame
    columns: pd.DataFrame


def read_given(settings: ClusterSettings, embeddings: Embeddings) -> Given:
    """Read the decisions and the known truth, so that a fault in them is found before any work.

    Raises
    ------
    UserError
        naming the file and what is wrong with it
    """
    truth, warnings = (None, []) if settings.truth is None else read_truth(settings.truth, embeddings)
    return Given(read_decisions(settings.decisions), truth, warnings, _applied(settings))


def search_and_write(
    folder: Path,
    embeddings: Embeddings,
    settings: ClusterSettings,
    given: Given,
    inputs: Mapping[str, str],
    announce: Announce,
) -> Results:
    """Search for classes, weigh them, and write tables, montages, figures and report.html.

    Tables are galaxies and classes, each in four formats, columns.parquet on the catalog's own columns, and, with a
    known truth, which the search does not see, recovery.parquet.

    Parameters
    ----------
    folder : for the files
    given : as from `read_given`
    inputs : name -> content hash, for the page
    announce : called with the name of each stage
    """
    store = StageStore(settings.stages)
    found = _find(embeddings, settings, given.decisions, store, announce)
    # The page is written last: while it is missing, what stands here is of no one search.
    for name in (_PAGE, RECOVERY):
        (folder / name).unlink(missing_ok=True)
    made_from = {"config": settings.decisive(), "inputs": inputs, **made_with()}
    tables = write_tables(folder, found.classes, found.galaxies, made_from)
    tables["columns.parquet"] = _write_parquet(folder / "columns.parquet", found.columns)
    write_template(folder / _TEMPLATE, found.classes)
    of_search = {**found.search.summary(), **found.evidence.quality, **store.summary()}
    summary: dict[str, Any] = {"n_galaxies": len(embeddings), **of_search, "applied": given.applied}
    recovered = None
    if given.truth is not None:
        recovered, summary["recovery"] = compare(found.galaxies, given.truth)
        tables[RECOVERY] = _write_parquet(folder / RECOVERY, recovered)
        recovered = recovered.rename(columns={"class": "class_name"})
    announce("montages and report")
    cuts, montages = found.search.selection.steps, _write_montages(folder, found.galaxies, settings)
    figures = _write_figures(folder, cuts, found.galaxies, found.classes, recovered)
    results = Results(found.classes, found.galaxies, cuts, recovered, montages, tables, figures, summary)
    told = [*warnings_of(found.search, settings.search, found.evidence.quality), *given.warnings]
    write_report(folder / _PAGE, _page(folder, results, found, embeddings, settings, inputs, told))
    return results


def _find(
    embeddings: Embeddings, settings: ClusterSettings, decisions: Decisions, store: StageStore, announce: Announce
) -> _Found:
    search = search_classes(embeddings, settings.search, store, announce)
    decided = decide(search.tree, search.catalog["id_str"].to_numpy(object), decisions)
    evidence = weigh(search, decided.tree, settings.trust, announce)
    announce("cohesion and tables")
    galaxies = galaxy_table(search.catalog, decided.tree, search.view, decided.found)
    columns = column_cohesion(decided.tree.labels, _unseen(search.catalog))
    classes = _classes(search, decided, evidence, settings.groups, embeddings, galaxies["id_str"].tolist())
    classes = classes.assign(unseen=striking_columns(columns, len(classes)), **medoid_positions(classes, galaxies))
    return _Found(search, decided, evidence, classes, galaxies, columns)


def _page(
    folder: Path,
    results: Results,
    found: _Found,
    embeddings: Embeddings,
    settings: ClusterSettings,
    inputs: Mapping[str, str],
    warnings: Sequence[str],
) -> Report:
    files = {**results.tables, **results.figures}
    return Report(
        title=settings.name,
        settings=settings.decisive(),
        provenance={**made_with(), "inputs": inputs, "seed": settings.layout.seed},
        n_catalog=len(embeddings),
        cuts=results.cuts,
        classes=results.classes,
        galaxies=results.galaxies,
        montages=results.montages,
        map_png=results.figures["map"].read_bytes(),
        recovery=results.recovery,
        n_failed=int(embeddings.attributes["n_failed"]),
        n_excluded=len(found.decided.excluded),
        warnings=[*warnings, *found.decided.unmatched],
        quality=found.evidence.quality,
        files={name: str(path.relative_to(folder)) for name, path in files.items()},
        sweep=None if sweep_of(folder) is None else "../sweep.html",
    )


def is_up_to_date(folder: Path, settings: ClusterSettings, summary: Mapping[str, Any]) -> bool:
    """Whether all that a complete run wrote is still there, and of today's decisions and truth.

    Parameters
    ----------
    summary : that `search_and_write` gave
    """
    expected = OUTPUTS if settings.truth is None else (*OUTPUTS, RECOVERY)
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
    tree, x, rows = decided.tree, search.representation, search.selection.rows
    fractions = embeddings.vote_fractions(rows)
    classes = class_table(tree, x, search.neighbours_as_embedded(), fractions, embeddings.label_cols, ids)
    said = decided.classes.drop(columns="cluster")
    table = pd.concat([classes, evidence.classes, said], axis=1)
    if groups.tree is None and groups.similarity is None:
        return table
    means = class_means(tree.labels, x, tree.n_classes) - x.mean(axis=0, dtype=np.float64)
    return table.assign(group=group_classes(tree, means, groups.tree, groups.similarity))


def medoid_positions(classes: pd.DataFrame, galaxies: pd.DataFrame) -> dict[str, NDArray]:
    """Where the medoids of classes lie on the sky, by which other catalogs can be matched.

    Parameters
    ----------
    classes : with medoid_row
    galaxies : with ra and dec (degrees) where the catalog has them

    Returns
    -------
    medoid_ra, medoid_dec : degrees; nothing where the galaxies have no positions
    """
    if not {"ra", "dec"} <= set(galaxies):
        return {}
    return {f"medoid_{axis}": galaxies[axis].to_numpy()[classes["medoid_row"]] for axis in ("ra", "dec")}


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


def _write_parquet(path: Path, table: pd.DataFrame) -> Path:
    with written_beside(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path
