"""The graph of nearest neighbours, and what exact copies make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Their neighbours then fit into a cache, which halves the time.
_ROWS_AT_ONCE = 128


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


def distances_to(
    queries: NDArray[np.float32], x: NDArray[np.float32], indices: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Distances of queries (M, D) to rows (M, k) of `x`, by subtraction: exactly 0 to an equal row."""
    distances = np.empty(indices.shape, dtype=np.float32)
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        apart = x[indices[part]] - queries[part, None]
        distances[part] = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart))
    return distances


def graph_of_found(x: NDArray[np.float32], indices: NDArray[np.integer]) -> NeighbourGraph:
    """Nearest first and each row itself in column 0, also where as many other rows equal it as there are columns.

    Parameters
    ----------
    x : (N, D)
    indices : (N, n_neighbors) rows found for each, in any order; changed in place where a row was not found itself
    """
    graph = NeighbourGraph(np.empty(indices.shape, dtype=np.int32), np.empty(indices.shape, dtype=np.float32))
    for start in range(0, len(x), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        near, apart = indices[part], distances_to(x[part], x, indices[part])
        rows = np.arange(start, start + len(near), dtype=np.int32)
        missing = ~(near == rows[:, None]).any(axis=1)
        farthest = apart.argmax(axis=1)
        near[missing, farthest[missing]] = rows[missing]
        apart[missing, farthest[missing]] = 0
        order = np.argsort(np.where(near == rows[:, None], np.float32(-1), apart), axis=1, kind="stable")
        graph.indices[part] = np.take_along_axis(near, order, axis=1)
        graph.distances[part] = np.take_along_axis(apart, order, axis=1)
    return graph


def draw_among_copies(graph: NeighbourGraph, x: NDArray[np.float32]) -> None:
    """Of rows that equal more others than there are neighbours, draw which of these they have, in place.

    Searches give whole blocks of such rows the same few, and a layout tears the blocks apart. Rows in a circle, with
    the next one and those at random distances along it as neighbours, stay in one piece however few are kept.
    """
    n_neighbors = graph.indices.shape[1]
    among_copies = np.flatnonzero(graph.distances[:, -1] == 0)
    if not len(among_copies):
        return
    rng = np.random.default_rng(0)
    _, place = np.unique(x[among_copies], axis=0, return_inverse=True)
    for number in np.flatnonzero(np.bincount(place.ravel()) > n_neighbors):
        circle = rng.permutation(among_copies[place.ravel() == number])
        along = np.append(1, 2 + rng.choice(len(circle) - 2, n_neighbors - 2, replace=False))
        graph.indices[circle, 1:] = circle[(np.arange(len(circle))[:, None] + along) % len(circle)]
