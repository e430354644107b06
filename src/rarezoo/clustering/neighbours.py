"""Nearest neighbours of every galaxy in the representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from rarezoo.cli import UserError

Method = Literal["exact", "approximate"]

_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class NeighbourGraph:
    """The nearest neighbours of every row, nearest first, the row itself in column 0 at distance 0.

    Attributes
    ----------
    indices : (N, n_neighbors) int32
    distances : (N, n_neighbors) float32, Euclidean
    """

    indices: NDArray[np.int32]
    distances: NDArray[np.float32]

    def sliced(self, n_neighbors: int) -> NeighbourGraph:
        """The graph of fewer neighbours, in arrays of its own."""
        if n_neighbors > self.indices.shape[1]:
            raise ValueError(f"the graph holds {self.indices.shape[1]} neighbours, {n_neighbors} were asked for")
        return NeighbourGraph(
            np.array(self.indices[:, :n_neighbors], dtype=np.int32, order="C"),
            np.array(self.distances[:, :n_neighbors], dtype=np.float32, order="C"),
        )


def resolve_method(method: Literal["auto", "exact", "approximate"], n_rows: int, exact_below: int) -> Method:
    """The method that `auto` stands for: exact below `exact_below` rows, where it is the faster one."""
    if method == "auto":
        return "exact" if n_rows < exact_below else "approximate"
    return method


def neighbour_graph(
    x: NDArray[np.float32],
    n_neighbors: int,
    method: Literal["auto", "exact", "approximate"] = "auto",
    exact_below: int = 40_000,
    seed: int | None = 0,
) -> NeighbourGraph:
    """Find the nearest neighbours of every row, itself included.

    Parameters
    ----------
    x : (N, D) representation
    n_neighbors : neighbours a row, itself included, as umap-learn counts them
    method : exact (brute force in bounded memory), approximate (pynndescent), or auto
    exact_below : number of rows below which auto is exact
    seed : of the approximate search; the exact one needs none

    Raises
    ------
    UserError
        if `x` is not finite or has no more than `n_neighbors` rows
    """
    check_representation(x)
    if n_neighbors >= len(x):
        raise UserError(
            f"layout.n_neighbors={n_neighbors}, but {len(x)} galaxies were selected: there must be more galaxies than "
            "neighbours. Lower layout.n_neighbors, or loosen selection.cuts."
        )
    x = np.ascontiguousarray(x, dtype=np.float32)
    if resolve_method(method, len(x), exact_below) == "exact":
        indices = _exact(x, x, n_neighbors)
    else:
        indices = _approximate(x, n_neighbors, seed)
    return _self_first(indices, _distances(x, np.arange(len(x)), indices))


def recall(graph: NeighbourGraph, x: NDArray[np.float32], n_queries: int = 1000, seed: int = 0) -> float:
    """Share of the true nearest neighbours that a graph holds, the row itself not counted.

    A neighbour counts as true if it is no farther than the last of the exact ones, so that ties cost nothing.

    Parameters
    ----------
    graph : the graph to judge
    x : (N, D) representation that it was made from
    n_queries : rows drawn at random and searched exactly; all rows if there are fewer
    """
    k = graph.indices.shape[1]
    rows = np.random.default_rng(seed).choice(len(x), min(n_queries, len(x)), replace=False)
    x = np.ascontiguousarray(x, dtype=np.float32)
    radius = _distances(x, rows, _exact(x, x[rows], k)).max(axis=1)
    found = graph.indices[rows]
    near = _distances(x, rows, found) <= radius[:, None] * (1 + 1e-5)
    hits = [len(np.setdiff1d(found[i, near[i]], [row])) for i, row in enumerate(rows)]
    return float(np.mean(np.minimum(hits, k - 1)) / (k - 1))


def check_representation(x: NDArray[np.floating]) -> None:
    """Refuse a representation that holds NaN or infinity.

    Raises
    ------
    UserError
        naming the first row that does
    """
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise UserError(
            f"representation: {len(bad)} of {len(x)} selected galaxies hold values that are not finite (first: row "
            f"{bad[0]} of the selection). The model diverged or ran at too low a precision: embed again in full "
            "precision, or train again."
        )


def _exact(x: NDArray[np.float32], queries: NDArray[np.float32], n_neighbors: int) -> NDArray[np.int32]:
    search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(x)
    return np.asarray(search.kneighbors(queries, return_distance=False), dtype=np.int32)


def _approximate(x: NDArray[np.float32], n_neighbors: int, seed: int | None) -> NDArray[np.int32]:
    # It compiles for a minute on import and first use, which the exact search need not wait for.
    from pynndescent import NNDescent

    # umap-learn's own settings: a wide beam, since real representations are harder than they look in tests.
    index = NNDescent(
        x,
        n_neighbors=n_neighbors,
        n_trees=min(64, 5 + round(len(x) ** 0.5 / 20)),
        n_iters=max(5, round(np.log2(len(x)))),
        max_candidates=60,
        random_state=seed,
    )
    indices = np.array(index.neighbor_graph[0], dtype=np.int32)
    # -1 stands where the search came up short of neighbours.
    short = np.flatnonzero((indices < 0).any(axis=1))
    if len(short):
        indices[short] = _exact(x, x[short], n_neighbors)
    return indices


def _distances(x: NDArray[np.float32], rows: NDArray[np.integer], indices: NDArray[np.int32]) -> NDArray[np.float32]:
    """Distances by subtraction: exactly 0 between equal rows, where the searches' own formula rounds."""
    distances = np.empty(indices.shape, dtype=np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        apart = x[indices[part]] - x[rows[part], None]
        distances[part] = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart))
    return distances


def _self_first(indices: NDArray[np.int32], distances: NDArray[np.float32]) -> NeighbourGraph:
    """Nearest first and each row itself in column 0, also where as many other rows equal it as there are columns."""
    rows = np.arange(len(indices), dtype=np.int32)
    missing = ~(indices == rows[:, None]).any(axis=1)
    farthest = distances.argmax(axis=1)
    indices[missing, farthest[missing]] = rows[missing]
    distances[missing, farthest[missing]] = 0
    order = np.argsort(np.where(indices == rows[:, None], np.float32(-1), distances), axis=1, kind="stable")
    return NeighbourGraph(np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1))
