"""The spanning tree that HDBSCAN's classes are read off: which galaxies join at which distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from rarezoo.cli import UserError
from rarezoo.clustering.graph import NeighbourGraph

# SciPy takes an edge of length 0 for no edge.
_NEAREST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class SpanningTree:
    """At which mutual reachability distance groups of galaxies become one: N - 1 joins, the nearest first.

    Mutual reachability distances are core distances more often than not, so many edges are equally long, many spanning
    trees are equally short, and which of them a search returns depends on its threads and on the order of the rows.
    What joins at which distance does not, and that is what is kept: all that join at one distance do so at once, as in
    HDBSCAN's definition (Campello, Moulavi & Sander 2013, Alg. 1: in case of ties, edges are removed simultaneously):
    the largest of them takes up the others, the smallest last. Thus none of them is a class on the ground that it came
    first, and a galaxy that is equally far from two classes is in neither. Only the engine hdbscan leaves ties in the
    order that it happened upon.

    Attributes
    ----------
    rows : (N - 1, 2) int32, a row of each of two groups that become one, the lowest where they join at once
    distances : (N - 1,) float64, ascending; infinity between parts of a neighbour graph that no edge joins
    """

    rows: NDArray[np.int32]
    distances: NDArray[np.float64]

    @property
    def n_rows(self) -> int:
        """Number of galaxies, N."""
        return len(self.distances) + 1

    def to_arrays(self) -> dict[str, NDArray]:
        """All of it as named arrays."""
        return {"rows": self.rows, "distances": self.distances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> SpanningTree:
        """What `to_arrays` took apart."""
        return cls(rows=np.array(arrays["rows"]), distances=np.array(arrays["distances"]))


def spanning_tree(
    layout: NDArray[np.floating], min_samples: int, engine: Literal["fast_hdbscan", "hdbscan"] = "fast_hdbscan"
) -> SpanningTree:
    """Minimum spanning tree of the mutual reachability distances of a layout, exact with either engine.

    The mutual reachability distance of two galaxies is the largest of their distance and their two core distances.

    Parameters
    ----------
    layout : (N, d)
    min_samples : a galaxy's core distance is that to its min_samples-th neighbour, itself not counted. 300 in Walmsley
        & Scaife 2023, Sec. 3, for 632,000 galaxies; groups of fewer members hardly show.
    engine : fast_hdbscan computes in float32 on all of numba's threads, NUMBA_NUM_THREADS or else all cores, and gives
        the same tree on any number and for any order of the rows. hdbscan is for results like those of that package,
        ties included: it computes in float64 and is slower, with as many processes as cores for the core distances and
        one thread for the rest

    Raises
    ------
    UserError
        if there are no more galaxies than `min_samples`
    """
    check_tree_option("min_samples", min_samples, len(layout))
    edges = (_fast_edges if engine == "fast_hdbscan" else _hdbscan_edges)(layout, min_samples)
    rows, distances = edges[:, :2].astype(np.int32), np.asarray(edges[:, 2], dtype=np.float64)
    return SpanningTree(rows, distances) if engine == "hdbscan" else _joined_at_once(rows, distances)


def graph_spanning_tree(graph: NeighbourGraph, min_samples: int) -> SpanningTree:
    """Minimum spanning tree of the mutual reachability distances along the edges of a neighbour graph.

    It clusters the representation itself, without a layout. Parts of the graph that no edge joins become one at
    infinite distance, so that they part first.

    Parameters
    ----------
    graph : of N galaxies, each its own first neighbour
    min_samples : as for `spanning_tree`; at most the width of the graph - 1, which the galaxy itself is part of

    Raises
    ------
    UserError
        if the graph holds too few neighbours
    """
    n_rows, width = graph.indices.shape
    check_tree_option("min_samples", min_samples, n_rows)
    if min_samples >= width:
        raise UserError(
            f"tree.min_samples={min_samples}, but the neighbour graph holds each galaxy and {width - 1} neighbours "
            f"(neighbours.width={width}): without a layout, min_samples is at most neighbours.width - 1. Lower "
            f"tree.min_samples, or set neighbours.width={min_samples + 1} or more."
        )
    core = graph.distances[:, min_samples]
    reach = np.maximum(np.maximum(graph.distances, core[:, None]), core[graph.indices]).astype(np.float64)
    np.maximum(reach, _NEAREST, out=reach)
    starts = np.arange(n_rows + 1, dtype=np.int64) * width
    edges = csr_array((reach.ravel(), graph.indices.ravel(), starts), shape=(n_rows, n_rows))
    forest = minimum_spanning_tree(edges, overwrite=True).tocoo()
    distances = np.where(forest.data > _NEAREST, forest.data, 0.0)
    # One galaxy of each part is enough to join them.
    _, apart = np.unique(connected_components(forest, directed=False)[1], return_index=True)
    joins = np.column_stack([np.full(len(apart) - 1, apart[0]), apart[1:]])
    rows = np.concatenate([np.column_stack([forest.row, forest.col]), joins]).astype(np.int32)
    return _joined_at_once(rows, np.concatenate([distances, np.full(len(joins), np.inf)]))


def check_tree_option(option: str, value: int, n_rows: int) -> None:
    """Refuse a number of galaxies that no tree of so few can have.

    Raises
    ------
    UserError
        naming the option
    """
    if value >= n_rows:
        raise UserError(
            f"tree.{option}={value}, but {n_rows} galaxies were selected: it must be smaller. "
            f"Lower tree.{option}, or loosen selection.cuts."
        )


def _fast_edges(layout: NDArray[np.floating], min_samples: int) -> NDArray[np.float64]:
    # The import takes seconds, and half a minute where nothing is in numba's cache yet.
    from fast_hdbscan.boruvka import parallel_boruvka
    from fast_hdbscan.numba_kdtree import build_kdtree
    from numba import get_num_threads

    # Its compute_minimum_spanning_tree turns to approximate neighbours above 30 columns.
    places = np.ascontiguousarray(layout, dtype=np.float32)
    # Rows that lie together are searched one after the other, from the processor's cache: a third of the time less.
    order = np.array(build_kdtree(places).idx_array)
    edges: NDArray[np.float64] = parallel_boruvka(
        build_kdtree(places[order]), get_num_threads(), min_samples, np.empty(1, dtype=np.float32), False
    )[0]
    edges[:, :2] = order[edges[:, :2].astype(np.int64)]
    return edges


def _hdbscan_edges(layout: NDArray[np.floating], min_samples: int) -> NDArray[np.float64]:
    from hdbscan import HDBSCAN

    # Its default is an approximation that saves no time and gives other classes.
    search = HDBSCAN(min_samples=min_samples, approx_min_span_tree=False, gen_min_span_tree=True, core_dist_n_jobs=-1)
    edges: NDArray[np.float64] = search.fit(np.array(layout, dtype=np.float64)).minimum_spanning_tree_.to_numpy()
    return edges


def _joined_at_once(rows: NDArray[np.int32], distances: NDArray[np.float64]) -> SpanningTree:
    """The one tree that any of the minimum spanning trees of the same distances comes to."""
    order = np.argsort(distances, kind="stable")
    rows, distances = rows[order], distances[order]
    before, sizes, after = _compiled_joins()(rows, distances)
    # Each end of an edge is a group that takes part in a join, and may be that of several edges.
    group, size = before.ravel(), sizes.ravel()
    distance, joined = np.repeat(distances, 2), np.repeat(after, 2)
    order = np.lexsort((group, -size, joined, distance))
    group, joined, distance = group[order], joined[order], distance[order]
    same_join = (joined[1:] == joined[:-1]) & (distance[1:] == distance[:-1])
    first = np.concatenate([[True], ~same_join])
    largest = group[np.maximum.accumulate(np.where(first, np.arange(len(group)), 0))]
    taken = ~first & np.concatenate([[True], group[1:] != group[:-1]])
    return SpanningTree(np.column_stack([largest, group])[taken], distance[taken])


@cache
def _compiled_joins() -> Any:
    from numba import njit

    return njit(_joins, cache=True)


def _joins(
    rows: NDArray[np.int32], distances: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Groups at the two ends of each edge, by their lowest rows, before and after all edges of its length are drawn.

    Parameters
    ----------
    rows : (N - 1, 2) ends of the edges of a spanning tree
    distances : (N - 1,) ascending

    Returns
    -------
    before (N - 1, 2); how many rows each of these holds (N - 1, 2); after (N - 1,)
    """
    n_edges = len(distances)
    above = np.arange(n_edges + 1, dtype=np.int32)
    held = np.ones(n_edges + 1, dtype=np.int32)
    before, sizes, after = np.empty_like(rows), np.empty_like(rows), np.empty(n_edges, dtype=np.int32)

    def lowest(row: Any) -> Any:
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    start = 0
    while start < n_edges:
        stop = start
        while stop < n_edges and distances[stop] == distances[start]:
            for end in range(2):
                before[stop, end] = lowest(rows[stop, end])
                sizes[stop, end] = held[before[stop, end]]
            stop += 1
        for edge in range(start, stop):
            one, other = lowest(before[edge, 0]), lowest(before[edge, 1])
            above[max(one, other)] = min(one, other)
            held[min(one, other)] += held[max(one, other)]
        for edge in range(start, stop):
            after[edge] = lowest(before[edge, 0])
        start = stop
    return before, sizes, after
