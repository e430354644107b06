"""Which cluster stands for which known class, and how often chance does as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from rarezoo.clustering.scores.known import Known, members_by_class, one_hot

FOUND, WELL_FOUND = 0.5, 0.8


def recovery(
    labels: NDArray[np.integer], truth: Known, n_total_per_class: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """Best cluster for each known class.

    Of a class of n members, a cluster of m galaxies and s that are in both, purity is s / m, completeness s / n, and
    F1, their harmonic mean, 2 s / (m + n).

    Parameters
    ----------
    labels : (M,) cluster of each selected galaxy, -1 for none
    truth : (M,) known class of each selected galaxy, compared as text; None, NaN, "" and -1 mean none. Or, for classes
        that overlap, an (M, K) table of bool, one column a class.
    n_total_per_class : members of each class in the whole catalog. Those that the selection removed count as missed.
        None counts the selected only, which flatters the search.

    Returns
    -------
    One row a class that has members, the largest first: class; members (in the whole catalog); selected; cluster of the
    highest F1 (the lowest number of equals; -1 where no cluster holds a member); cluster_size; overlap; f1 and
    completeness (both against all members); purity. A cluster may be the best of several classes: its purity then says
    so.

    Raises
    ------
    ValueError
        if the lengths differ, a class has more selected galaxies than members, or a column of a table is not bool
    """
    overlaps = _overlaps(labels, truth, n_total_per_class)
    f1 = overlaps.f1()
    best = f1.argmax(axis=1)
    each = np.arange(len(best))
    overlap, sizes = overlaps.shared[each, best], overlaps.sizes[best]
    return pd.DataFrame(
        {
            "class": overlaps.names,
            "members": overlaps.members,
            "selected": overlaps.selected,
            "cluster": overlaps.clusters[best],
            "cluster_size": sizes,
            "overlap": overlap,
            "f1": f1[each, best],
            "purity": overlap / np.maximum(sizes, 1),
            "completeness": overlap / overlaps.members,
        }
    )


def summary(table: pd.DataFrame, labels: NDArray[np.integer], truth: Known) -> dict[str, int | float]:
    """One line about a recovery.

    Parameters
    ----------
    table : what `recovery` gave
    labels, truth : what it was given

    Returns
    -------
    planted (classes); found_f1_50 and found_f1_80, classes with F1 of at least 0.5 and 0.8; mean_f1; median_purity and
    median_completeness of those found at 0.5 (NaN if none); clusters; clusters_of_no_class, of whose galaxies no known
    class makes half; false_per_true, clusters of no class over classes found at 0.5 (NaN if none); share_in_clusters.
    """
    found = table[table["f1"] >= FOUND]
    overlaps = _overlaps(labels, truth, None)
    sizes, largest = overlaps.sizes[1:], overlaps.shared[:, 1:].max(axis=0, initial=0)
    of_no_class = int((largest < 0.5 * sizes).sum())
    return {
        "planted": len(table),
        "found_f1_50": len(found),
        "found_f1_80": int((table["f1"] >= WELL_FOUND).sum()),
        "mean_f1": float(table["f1"].mean()),
        "median_purity": float(found["purity"].median()),
        "median_completeness": float(found["completeness"].median()),
        "clusters": len(sizes),
        "clusters_of_no_class": of_no_class,
        "false_per_true": of_no_class / len(found) if len(found) else float("nan"),
        "share_in_clusters": float(sizes.sum() / len(labels)),
    }


def chance_recovery(
    labels: NDArray[np.integer],
    truth: Known,
    n_total_per_class: Mapping[str, int] | None = None,
    n_times: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """What `recovery` gives by chance: as many clusters, of the same sizes, of galaxies drawn at random.

    The labels are dealt out anew among the selected galaxies, so that a class keeps how often it overlaps others, and
    what the selection removed is missed by chance as well.

    Parameters
    ----------
    labels, truth, n_total_per_class : as `recovery` takes them
    n_times : deals
    seed : of the deals

    Returns
    -------
    One row a class, in the order of `recovery`: class; chance_f1, mean over the deals of the best cluster's F1;
    chance_f1_highest, of any deal; chance_found, share of the deals with F1 of at least 0.5. Where the search's F1 is
    above chance_f1_highest, a permutation test gives p = 1 / (n_times + 1).

    Raises
    ------
    ValueError
        as for `recovery`
    """
    overlaps = _overlaps(labels, truth, n_total_per_class)
    rng = np.random.default_rng(seed)
    best = np.array([overlaps.of_labels(rng.permutation(labels)).f1().max(axis=1) for _ in range(n_times)])
    return pd.DataFrame(
        {
            "class": overlaps.names,
            "chance_f1": best.mean(axis=0),
            "chance_f1_highest": best.max(axis=0),
            "chance_found": (best >= FOUND).mean(axis=0),
        }
    )


@dataclass(frozen=True)
class _Overlaps:
    """Galaxies that each known class (K) shares with each cluster (C).

    Cluster -1 comes first and is empty: it stands for a class of which no cluster holds a member.
    """

    names: list[str]
    members: NDArray[np.int64]
    membership: csr_array
    clusters: NDArray[np.integer]
    sizes: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def selected(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self.membership.sum(axis=0)
        return counts

    def of_labels(self, labels: NDArray[np.integer]) -> _Overlaps:
        """The same classes and other clusters."""
        return _Overlaps(self.names, self.members, self.membership, *_shared(self.membership, labels))

    def f1(self) -> NDArray[np.float64]:
        """(K, C) F1 of each cluster for each class."""
        f1: NDArray[np.float64] = 2 * self.shared / (self.sizes + self.members[:, None])
        return f1


def _overlaps(labels: NDArray[np.integer], truth: Known, n_total_per_class: Mapping[str, int] | None) -> _Overlaps:
    if len(labels) != len(truth):
        raise ValueError(f"{len(labels)} labels and {len(truth)} known classes")
    names, membership = members_by_class(truth)
    selected = dict(zip(names, membership.sum(axis=0).tolist(), strict=True))
    totals = selected if n_total_per_class is None else {str(name): int(n) for name, n in n_total_per_class.items()}
    if lacking := [name for name, n in selected.items() if n > totals.get(name, 0)]:
        raise ValueError(f"class '{lacking[0]}': {selected[lacking[0]]} selected, {totals.get(lacking[0], 0)} in all")
    ordered = sorted((name for name, n in totals.items() if n), key=lambda name: (-totals[name], name))
    # A class of which the selection left nothing has members all the same, and a column of zeros.
    place = {name: column for column, name in enumerate(ordered)}
    moved = one_hot(np.array([place.get(name, -1) for name in names], dtype=np.int64), len(ordered))
    members = np.array([totals[name] for name in ordered], dtype=np.int64)
    membership = membership @ moved
    return _Overlaps(ordered, members, membership, *_shared(membership, labels))


def _shared(
    membership: csr_array, labels: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """Clusters (C,), of which the first is -1 and empty, their sizes (C,), and members of each class in each (K, C)."""
    clusters = np.concatenate([[-1], np.unique(labels[labels >= 0])])
    assigned = one_hot(np.where(labels >= 0, np.searchsorted(clusters, labels), -1), len(clusters))
    return clusters, assigned.sum(axis=0), (membership.T @ assigned).toarray()
