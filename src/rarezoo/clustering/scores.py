"""How well a search recovers classes that are known, because they were planted or labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

FOUND, WELL_FOUND = 0.5, 0.8

_COLUMNS = ("class", "members", "selected", "cluster", "cluster_size", "overlap", "f1", "purity", "completeness")


def recovery(
    labels: NDArray[np.integer],
    truth: Sequence[object] | NDArray,
    n_total_per_class: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Best cluster for each known class.

    Parameters
    ----------
    labels : (M,) cluster of each selected galaxy, -1 for none
    truth : (M,) known class of each selected galaxy, compared as text; None, NaN, "" and -1 mean none
    n_total_per_class : members of each class in the whole catalog. Those that the selection removed count as missed.
        None counts the selected only, which flatters the search.

    Returns
    -------
    One row a class, the largest first: class; members (in the whole catalog); selected; cluster of the highest F1 (the
    lowest number of equals; -1 where no cluster holds a member); cluster_size; overlap; f1 and completeness (both
    against all members); purity. A cluster may be the best of several classes: its purity then says so.

    Raises
    ------
    ValueError
        if the lengths differ, or a class has more selected galaxies than members
    """
    overlaps = _overlaps(labels, truth)
    selected = dict(zip(overlaps.names, overlaps.selected, strict=True))
    members = selected if n_total_per_class is None else {str(name): n for name, n in n_total_per_class.items()}
    if lacking := [name for name, n in selected.items() if n > members.get(name, 0)]:
        raise ValueError(f"class '{lacking[0]}': {selected[lacking[0]]} selected, {members.get(lacking[0], 0)} in all")
    ordered = sorted((name for name, n in members.items() if n), key=lambda name: (-members[name], name))
    rows = [
        {"class": name, "members": members[name], "selected": selected.get(name, 0)}
        | _best_cluster(name, members[name], overlaps)
        for name in ordered
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def summary(
    table: pd.DataFrame, labels: NDArray[np.integer], truth: Sequence[object] | NDArray
) -> dict[str, int | float]:
    """One line about a recovery.

    Parameters
    ----------
    table : what `recovery` gave
    labels, truth : what it was given

    Returns
    -------
    planted (classes); found_f1_50 and found_f1_80, classes with F1 of at least 0.5 and 0.8; mean_f1; median_purity and
    median_completeness of those found at 0.5 (NaN if none); clusters; clusters_of_no_class, of whose galaxies no known
    class makes half; share_in_clusters.
    """
    found = table[table["f1"] >= FOUND]
    overlaps = _overlaps(labels, truth)
    largest = overlaps.counts.max(axis=0, initial=0)
    return {
        "planted": len(table),
        "found_f1_50": len(found),
        "found_f1_80": int((table["f1"] >= WELL_FOUND).sum()),
        "mean_f1": float(table["f1"].mean()),
        "median_purity": float(found["purity"].median()),
        "median_completeness": float(found["completeness"].median()),
        "clusters": len(overlaps.clusters),
        "clusters_of_no_class": int((largest < 0.5 * overlaps.sizes).sum()),
        "share_in_clusters": float(overlaps.sizes.sum() / len(labels)),
    }


def kind_agreement(labels: NDArray[np.integer], kinds: Sequence[object] | NDArray) -> dict[str, int | float]:
    """How far clusters follow kinds that the training labels do not name.

    Walmsley & Scaife 2023, Sec. 4 show it for kinds of artifact, which Galaxy Zoo's one answer 'artifact' does not tell
    apart.

    Parameters
    ----------
    labels : (M,) cluster of each galaxy, -1 for none
    kinds : (M,) known kind; None, NaN, "" and -1 mean none, and those rows do not count

    Returns
    -------
    n; share_in_clusters; ami, adjusted mutual information over all rows of a kind, those in no cluster taken as one
    group; ami_in_clusters, over those in clusters alone. 0 is chance, 1 is identity; NaN without rows.
    """
    known = _is_known(kinds)
    cluster, kind = labels[known], np.asarray(kinds, dtype=object)[known].astype(str)
    inside = cluster >= 0
    return {
        "n": int(known.sum()),
        "share_in_clusters": float(inside.mean()) if len(kind) else float("nan"),
        "ami": _ami(kind, cluster),
        "ami_in_clusters": _ami(kind[inside], cluster[inside]),
    }


@dataclass(frozen=True)
class _Overlaps:
    """Galaxies that each known class (K) shares with each cluster (C)."""

    names: list[str]
    selected: list[int]
    clusters: NDArray[np.integer]
    sizes: NDArray[np.integer]
    counts: NDArray[np.integer]


def _overlaps(labels: NDArray[np.integer], truth: Sequence[object] | NDArray) -> _Overlaps:
    if len(labels) != len(truth):
        raise ValueError(f"{len(labels)} labels and {len(truth)} known classes")
    # A row for the galaxies of no class and a column for those in no cluster, which are then left out.
    name_of = np.where(_is_known(truth), np.asarray(truth, dtype=object).astype(str), "")
    names, clusters = np.unique(name_of), np.unique(labels)
    counts = contingency_matrix(name_of, labels) if len(labels) else np.zeros((0, 0), dtype=np.int64)
    named, inside = names != "", clusters >= 0
    return _Overlaps(
        names=names[named].tolist(),
        selected=counts.sum(axis=1)[named].tolist(),
        clusters=clusters[inside],
        sizes=counts.sum(axis=0)[inside],
        counts=counts[named][:, inside],
    )


def _best_cluster(name: str, members: int, overlaps: _Overlaps) -> dict[str, int | float]:
    shared = overlaps.counts[overlaps.names.index(name)] if name in overlaps.names else np.zeros(0)
    if not shared.any():
        return {"cluster": -1, "cluster_size": 0, "overlap": 0, "f1": 0.0, "purity": 0.0, "completeness": 0.0}
    f1 = 2 * shared / (overlaps.sizes + members)
    best = int(f1.argmax())
    overlap, size = int(shared[best]), int(overlaps.sizes[best])
    return {
        "cluster": int(overlaps.clusters[best]),
        "cluster_size": size,
        "overlap": overlap,
        "f1": float(f1[best]),
        "purity": overlap / size,
        "completeness": overlap / members,
    }


def _ami(kind: NDArray, cluster: NDArray[np.integer]) -> float:
    return float(adjusted_mutual_info_score(kind, cluster)) if len(kind) else float("nan")


def _is_known(truth: Sequence[object] | NDArray) -> NDArray[np.bool_]:
    values = pd.Series(np.asarray(truth, dtype=object))
    return ~(values.isna() | values.isin(["", -1])).to_numpy(dtype=bool)
