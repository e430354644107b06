"""HDBSCAN's tree of candidate classes, and the classes chosen from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.clustering.spanning import SpanningTree, check_tree_option

_CONDENSED = ("parent", "child", "lambda_val", "child_size")


@dataclass(frozen=True)
class ClassTree:
    """Classes of galaxies and where they stand in HDBSCAN's condensed tree.

    Class 0 is the most persistent; equally persistent ones are in order of size, then of their node.

    Attributes
    ----------
    labels : (N,) int32, class of each galaxy, -1 for none
    probabilities : (N,) float32, how firmly it belongs to its class, 0 for none
    outlier_scores : (N,) float32, GLOSH, 0 to 1
    persistence : (K,) float64, of each class, 0 to 1
    nodes : (K,) int64, node of each class in the condensed tree
    parents : (K,) int64, the node above it: classes that share it were one at a lower density
    condensed : columns parent, child, lambda_val (1 / distance), child_size; a child below N is a galaxy. Galaxies at
        one place, whose density is infinite, have the largest lambda_val of the others
    """

    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    outlier_scores: NDArray[np.float32]
    persistence: NDArray[np.float64]
    nodes: NDArray[np.int64]
    parents: NDArray[np.int64]
    condensed: pd.DataFrame

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.nodes)

    def sizes(self) -> NDArray[np.int64]:
        """(K,) number of galaxies in each class."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.n_classes)

    def births(self) -> NDArray[np.float64]:
        """(K,) lambda at which each class parts from its surroundings."""
        return self._branches().births[self.nodes - len(self.labels)]

    def deaths(self) -> NDArray[np.float64]:
        """(K,) lambda at which each class splits, or its last galaxies leave it."""
        return self._branches().deaths[self.nodes - len(self.labels)]

    def to_arrays(self) -> dict[str, NDArray]:
        """All of it as named arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return arrays | {f"condensed_{name}": self.condensed[name].to_numpy() for name in _CONDENSED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> ClassTree:
        """What `to_arrays` took apart."""
        condensed = pd.DataFrame({name: np.array(arrays[f"condensed_{name}"]) for name in _CONDENSED})
        return cls(**{name: np.array(arrays[name]) for name in _ARRAYS}, condensed=condensed)

    def _branches(self) -> _Branches:
        return _Branches.of({name: self.condensed[name].to_numpy() for name in _CONDENSED}, len(self.labels))


_ARRAYS = ("labels", "probabilities", "outlier_scores", "persistence", "nodes", "parents")


@dataclass(frozen=True)
class _Branches:
    """The condensed tree's M nodes, its root in place 0 and every node after the one above it.

    Attributes
    ----------
    above : (M,) place of the node above; the root's is its own
    births, deaths : (M,) lambda at which it parts from that, and the largest at which anything leaves it
    sizes : (M,) galaxies
    stability : (M,) excess of mass, the sum over its galaxies of how much lambda they stay with it
    branch : (N,) place of the node that each galaxy leaves
    leaving : (N,) lambda at which it does
    """

    above: NDArray[np.int64]
    births: NDArray[np.float64]
    deaths: NDArray[np.float64]
    sizes: NDArray[np.int64]
    stability: NDArray[np.float64]
    branch: NDArray[np.int64]
    leaving: NDArray[np.float64]

    @classmethod
    def of(cls, condensed: Mapping[str, NDArray], n_rows: int) -> _Branches:
        """Sort the rows of a condensed tree of N galaxies into nodes and galaxies."""
        parent, child, lambda_val, child_size = (condensed[name] for name in _CONDENSED)
        place, is_node = parent - n_rows, child >= n_rows
        n_nodes = 1 + int(np.count_nonzero(is_node))
        below, rows = child[is_node] - n_rows, child[~is_node]
        above, births = np.zeros(n_nodes, dtype=np.int64), np.zeros(n_nodes)
        sizes = np.full(n_nodes, n_rows, dtype=np.int64)
        above[below], births[below], sizes[below] = place[is_node], lambda_val[is_node], child_size[is_node]
        deaths = np.zeros(n_nodes)
        np.maximum.at(deaths, place, lambda_val)
        stability = np.bincount(place, weights=(lambda_val - births[place]) * child_size, minlength=n_nodes)
        branch, leaving = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows)
        branch[rows], leaving[rows] = place[~is_node], lambda_val[~is_node]
        return cls(above, births, deaths, sizes, stability.astype(np.float64), branch, leaving)

    def persistence(self) -> NDArray[np.float64]:
        """(M,) stability for each galaxy, as a share of the largest lambda of all: hdbscan's cluster_persistence_."""
        highest = self.deaths.max()
        # Where nothing is at any finite distance, hdbscan calls all persistent.
        return self.stability / (self.sizes * highest) if highest else np.ones(len(self.sizes))

    def outlier_scores(self) -> NDArray[np.float64]:
        """(N,) GLOSH: how much less dense each galaxy is than the densest of the node that it leaves."""
        deepest, above = self.deaths.tolist(), self.above.tolist()
        for node in range(len(above) - 1, 0, -1):
            deepest[above[node]] = max(deepest[above[node]], deepest[node])
        highest = np.array(deepest)
        return _share(highest[self.branch] - self.leaving, highest[self.branch], where_none=0.0)


def class_tree(
    spanning: SpanningTree,
    min_cluster_size: int,
    method: Literal["leaf", "eom"] = "leaf",
    epsilon: float = 0.0,
    max_cluster_size: int = 0,
    min_lambda: float = 0.0,
    min_persistence: float = 0.0,
) -> ClassTree:
    """Read the classes off a spanning tree as HDBSCAN does; it takes a hundredth of the time that the tree took.

    Galaxies at one place are infinitely dense. They count as being as dense as the densest others: else any one pair of
    them would make all classes equally persistent and decide the excess of mass alone, as it does in hdbscan.

    Parameters
    ----------
    spanning : of N galaxies
    min_cluster_size : least size of a class; 10 in Walmsley & Scaife 2023, Sec. 3
    method : leaf takes the leaves of the condensed tree (Sec. 3), eom the nodes of greatest excess of mass
    epsilon : classes that part at a smaller distance than this are kept as one
    max_cluster_size : eom descends into classes larger than this, unless epsilon keeps them as one; 0 sets no limit
    min_lambda : a class that parts from its surroundings at a smaller lambda (1 / distance) is none
    min_persistence : a class of smaller persistence is none. With leaf and with epsilon, the galaxies of what is left
        out are in no class. With eom, a node that may not be chosen gives way to those below it and has no weight
        against the one above it, so that a class is not torn into parts that would be left out.

    Raises
    ------
    UserError
        if there are too few galaxies
    """
    check_tree_option("min_cluster_size", min_cluster_size, spanning.n_rows)
    condensed = _condensed(spanning, min_cluster_size)
    branches = _Branches.of(condensed, spanning.n_rows)
    persistence = branches.persistence()
    counts = (branches.births >= min_lambda) & (persistence >= min_persistence)
    counts[0] = False
    if method == "eom":
        eligible = counts & (branches.sizes <= max_cluster_size) if max_cluster_size else counts
        chosen = _most_excess_of_mass(branches, eligible)
    else:
        chosen = np.ones(len(counts), dtype=bool)
        chosen[branches.above] = False
    if epsilon:
        chosen = _kept_as_one(branches, chosen, epsilon)
    places = np.flatnonzero(chosen & counts)
    return _classes(branches, places[np.lexsort((places, -branches.sizes[places], -persistence[places]))], condensed)


def check_tree_size(n_rows: int, min_samples: int, min_cluster_size: int) -> None:
    """Refuse sizes that no tree of so few galaxies can have.

    Raises
    ------
    UserError
        naming the option
    """
    check_tree_option("min_samples", min_samples, n_rows)
    check_tree_option("min_cluster_size", min_cluster_size, n_rows)


def _condensed(spanning: SpanningTree, min_cluster_size: int) -> dict[str, NDArray]:
    # The import takes seconds, and half a minute where nothing is in numba's cache yet.
    from fast_hdbscan.cluster_trees import condense_tree, mst_to_linkage_tree

    linkage = mst_to_linkage_tree(np.column_stack([spanning.rows, spanning.distances]))
    parent, child, lambda_val, child_size = condense_tree(linkage, min_cluster_size)
    finite = np.isfinite(lambda_val)
    return {
        "parent": parent.astype(np.int32),
        "child": child.astype(np.int32),
        "lambda_val": np.where(finite, lambda_val, lambda_val[finite].max(initial=0.0)),
        "child_size": child_size.astype(np.int32),
    }


def _most_excess_of_mass(branches: _Branches, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The eligible nodes that together have the greatest excess of mass, none of them below another."""
    chosen, stability, above = eligible.tolist(), branches.stability.tolist(), branches.above.tolist()
    below = [0.0] * len(chosen)
    for node in range(len(chosen) - 1, 0, -1):
        chosen[node] = chosen[node] and below[node] <= stability[node]
        below[above[node]] += stability[node] if chosen[node] else below[node]
    found = np.array(chosen)
    found[found[_nearest(found, branches.above)[branches.above]]] = False
    return found


def _kept_as_one(branches: _Branches, chosen: NDArray[np.bool_], epsilon: float) -> NDArray[np.bool_]:
    """Instead of each chosen node, the first that parts at `epsilon` or more, itself or above it, short of the root."""
    far = (branches.births * epsilon <= 1) | (branches.above == 0)
    kept = np.zeros_like(chosen)
    kept[_nearest(far, branches.above)[chosen]] = True
    return kept


def _nearest(stop: NDArray[np.bool_], above: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) for each node, the first that `stop` holds for, itself or above it; the root where there is none."""
    found = np.where(stop, np.arange(len(above)), above)
    while not np.array_equal(further := found[found], found):
        found = further
    return found


def _classes(branches: _Branches, places: NDArray[np.int64], condensed: dict[str, NDArray]) -> ClassTree:
    """Number the chosen nodes in the order of `places` and find their galaxies."""
    n_rows, n_nodes = len(branches.branch), len(branches.above)
    label_of = np.full(n_nodes, -1, dtype=np.int32)
    label_of[places] = np.arange(len(places))
    home = _nearest(label_of >= 0, branches.above)[branches.branch]
    labels, densest = label_of[home], branches.deaths[home]
    probabilities = _share(np.minimum(branches.leaving, densest), densest, where_none=1.0)
    return ClassTree(
        labels=labels,
        probabilities=np.where(labels >= 0, probabilities, 0.0).astype(np.float32),
        outlier_scores=branches.outlier_scores().astype(np.float32),
        persistence=branches.persistence()[places],
        nodes=places + n_rows,
        parents=branches.above[places] + n_rows,
        condensed=pd.DataFrame(condensed),
    )


def _share(part: NDArray[np.float64], whole: NDArray[np.float64], where_none: float) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), where_none), where=whole > 0)
    return share
