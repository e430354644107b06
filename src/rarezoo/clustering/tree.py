"""HDBSCAN's tree of candidate classes, and the classes chosen from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from hdbscan import HDBSCAN
from numpy.typing import NDArray

from rarezoo.cli import UserError

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
    condensed : columns parent, child, lambda_val (1 / distance), child_size; a child below N is a galaxy
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

    def to_arrays(self) -> dict[str, NDArray]:
        """All of it as named arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return arrays | {f"condensed_{name}": self.condensed[name].to_numpy() for name in _CONDENSED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> ClassTree:
        """What `to_arrays` took apart."""
        condensed = pd.DataFrame({name: np.array(arrays[f"condensed_{name}"]) for name in _CONDENSED})
        return cls(**{name: np.array(arrays[name]) for name in _ARRAYS}, condensed=condensed)


_ARRAYS = ("labels", "probabilities", "outlier_scores", "persistence", "nodes", "parents")


def build_tree(
    layout: NDArray[np.floating],
    min_samples: int,
    min_cluster_size: int,
    method: Literal["leaf", "eom"] = "leaf",
    epsilon: float = 0.0,
    max_cluster_size: int = 0,
) -> ClassTree:
    """Cluster a layout with HDBSCAN on an exact spanning tree.

    Parameters
    ----------
    layout : (N, d)
    min_samples : the distance to this neighbour is a galaxy's core distance. 300 in Walmsley & Scaife 2023, Sec. 3, for
        632,000 galaxies; groups of fewer members hardly show.
    min_cluster_size : least size of a class; 10 in Sec. 3
    method : leaf takes the leaves of the condensed tree (Sec. 3), eom the nodes of greatest excess of mass
    epsilon : classes that part at a smaller distance than this are kept as one
    max_cluster_size : eom descends into classes larger than this; 0 sets no limit

    Raises
    ------
    UserError
        if there are too few galaxies
    """
    check_tree_size(len(layout), min_samples, min_cluster_size)
    # hdbscan's default spanning tree is an approximation that saves no time and gives other classes.
    found = HDBSCAN(
        min_samples=min_samples,
        min_cluster_size=min_cluster_size,
        cluster_selection_method=method,
        cluster_selection_epsilon=float(epsilon),
        max_cluster_size=max_cluster_size,
        approx_min_span_tree=False,
        core_dist_n_jobs=-1,
    ).fit(np.array(layout, dtype=np.float64))
    condensed = found.condensed_tree_.to_pandas()
    nodes = _nodes_of(found.labels_, condensed)
    order = np.lexsort((nodes, -_sizes(found.labels_, len(nodes)), -found.cluster_persistence_))
    parent_of = condensed.set_index("child")["parent"]
    return ClassTree(
        labels=_relabelled(found.labels_, order),
        probabilities=found.probabilities_.astype(np.float32),
        # Galaxies at infinite density, as many equal rows are, come out as infinity over infinity: no outliers.
        outlier_scores=np.nan_to_num(found.outlier_scores_, nan=0.0).astype(np.float32),
        persistence=np.asarray(found.cluster_persistence_, dtype=np.float64)[order],
        nodes=nodes[order],
        parents=parent_of.reindex(nodes[order]).to_numpy(dtype=np.int64),
        condensed=condensed,
    )


def check_tree_size(n_rows: int, min_samples: int, min_cluster_size: int) -> None:
    """Refuse sizes that no tree of so few galaxies can have.

    Raises
    ------
    UserError
        naming the option
    """
    for option, value in (("min_samples", min_samples), ("min_cluster_size", min_cluster_size)):
        if value >= n_rows:
            raise UserError(
                f"tree.{option}={value}, but {n_rows} galaxies were selected: it must be smaller. "
                f"Lower tree.{option}, or loosen selection.cuts."
            )


def _nodes_of(labels: NDArray[np.integer], condensed: pd.DataFrame) -> NDArray[np.int64]:
    """Condensed node of each label: the node above any member that holds as many galaxies as carry the label."""
    above = dict(zip(condensed["child"], condensed["parent"], strict=True))
    held = dict(zip(condensed["child"], condensed["child_size"], strict=True))
    found, first_members, sizes = np.unique(labels, return_index=True, return_counts=True)
    nodes: list[int] = []
    for member, size in zip(first_members[found >= 0], sizes[found >= 0], strict=True):
        node = above[member]
        while held[node] != size:
            node = above[node]
        nodes.append(node)
    return np.array(nodes, dtype=np.int64)


def _sizes(labels: NDArray[np.integer], n_classes: int) -> NDArray[np.int64]:
    return np.bincount(labels[labels >= 0], minlength=n_classes)


def _relabelled(labels: NDArray[np.integer], order: NDArray[np.integer]) -> NDArray[np.int32]:
    # The last place, which -1 reads, keeps galaxies without a class without one.
    new = np.full(len(order) + 1, -1, dtype=np.int32)
    new[order] = np.arange(len(order))
    relabelled: NDArray[np.int32] = new[labels]
    return relabelled
