"""Nearest neighbours of every galaxy in the representation."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from rarezoo.cli import UserError
from rarezoo.clustering.graph import NeighbourGraph, distances_to, draw_among_copies, graph_of_found
from rarezoo.clustering.select import check_finite

Method = Literal["exact", "ivf", "pynndescent", "cuml"]
Searching = Literal["exact", "ivf", "cuml"]
# Queries (M, D) -> (M, n_neighbors) rows of what is searched.
Search = Callable[[NDArray[np.float32]], NDArray[np.integer]]

# Approximate searches are judged on this many rows, and should have found this share.
N_QUERIES = 1000
LEAST_RECALL = 0.99
# faiss looks into more cells until it finds this much more of other rows. Shares found of two such samples differ by
# about 0.001 (standard deviation), and no less than `LEAST_RECALL` should be recorded.
_MARGIN = 0.004

_QUERIES_AT_ONCE = 2**16
# faiss warns below 39 rows a cell; 64 a cell to place its centre on are enough, and cost a third of the search.
_ROWS_PER_CELL, _TRAINED_ON_PER_CELL = 39, 64


def resolve_method(method: Method | Literal["auto"], n_rows: int, exact_below: int) -> Method:
    """The method that `auto` stands for.

    Exact below `exact_below` rows, where it costs little beside the layout; above, cuml where it is installed and sees
    a GPU, and ivf elsewhere. Machines with and without a GPU then do not share stages: name a method where they should.
    """
    return automatic_method(n_rows, exact_below) if method == "auto" else method


def automatic_method(n_rows: int, exact_below: int) -> Searching:
    """See `resolve_method`."""
    if n_rows < exact_below:
        return "exact"
    return "cuml" if find_spec("cuml") and _sees_gpu() else "ivf"


def graph_width(width: int, n_neighbors: int, n_rows: int) -> int:
    """Neighbours to find: those that the layout needs, and up to `width` where there are as many galaxies."""
    return max(n_neighbors, min(width, n_rows - 1))


def find_neighbours(
    x: NDArray[np.float32], n_neighbors: int, method: Method = "exact", seed: int | None = 0
) -> tuple[NeighbourGraph, dict[str, float]]:
    """Find the nearest neighbours of every row, itself included.

    Distances are computed again by subtraction, whatever the search's own formula. With the same seed and number of
    threads (OMP_NUM_THREADS), the graph of exact and of ivf is the same from run to run. Of another number of threads,
    exact may give other ones of rows that lie equally far, and ivf misses other neighbours, just as few. Of a row with
    more copies than neighbours, the neighbours are copies drawn at random.

    Parameters
    ----------
    x : (N, D) representation
    n_neighbors : neighbours a row, itself included, as umap-learn counts them
    method : exact (brute force in float64), ivf (faiss, cells around k-means centres of which as many are searched as
        `LEAST_RECALL` takes and a little more), pynndescent, or cuml (brute force in float32 on a GPU)
    seed : of ivf and pynndescent; None is 0 for ivf

    Returns
    -------
    the graph; its recall (see `recall`; 1 for exact) and, of ivf, n_cells and those searched for each row, n_probe

    Raises
    ------
    UserError
        if `x` is not finite, all its rows are equal, it has no more than `n_neighbors` rows, or there is no GPU
    """
    if n_neighbors >= len(x):
        raise UserError(
            f"layout.n_neighbors={n_neighbors}, but {len(x)} galaxies were selected: there must be more galaxies than "
            "neighbours. Lower layout.n_neighbors, or loosen selection.cuts."
        )
    check_representation(x)
    x = np.ascontiguousarray(x, dtype=np.float32)
    facts: dict[str, float] = {}
    if method == "pynndescent":
        indices = _pynndescent(x, n_neighbors, seed)
    else:
        search, facts = prepared_search(x, n_neighbors, method, seed)
        indices = _all_found(search, x, n_neighbors)
    graph = graph_of_found(x, indices)
    draw_among_copies(graph, x)
    return graph, {"recall": 1.0 if method == "exact" else recall(graph, x), **facts}


def prepared_search(
    x: NDArray[np.float32], n_neighbors: int, method: Searching, seed: int | None = 0
) -> tuple[Search, dict[str, float]]:
    """Prepare to search the rows of `x` for the neighbours of others.

    Parameters
    ----------
    x : (N, D) float32, C-contiguous
    n_neighbors : neighbours that each query is given, at most N

    Returns
    -------
    the search; of ivf, n_cells and n_probe
    """
    if method == "ivf":
        return _ivf(x, n_neighbors, seed)
    # Not faiss's flat index: it expands |x - y|^2 in float32, and loses half of the neighbours in tight groups and far
    # from the origin. scikit-learn expands in float64.
    nearest = _cuml if method == "cuml" else NearestNeighbors
    fitted = nearest(n_neighbors=n_neighbors, algorithm="brute").fit(x)
    return lambda queries: fitted.kneighbors(queries, return_distance=False), {}


def recall(graph: NeighbourGraph, x: NDArray[np.float32], n_queries: int = N_QUERIES, seed: int = 0) -> float:
    """Share of the true nearest neighbours that a graph holds, the row itself not counted.

    A neighbour counts as true if it is no farther than the last of the exact ones, so that ties cost nothing.

    Parameters
    ----------
    graph : the graph to judge
    x : (N, D) representation that it was made from
    n_queries : rows drawn at random and searched exactly; all rows if there are fewer
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    rows, radii = _sample(x, graph.indices.shape[1], n_queries, seed)
    return _share_found(x, rows, graph.indices[rows], radii)


def check_representation(x: NDArray[np.floating]) -> None:
    """Refuse a representation that holds NaN or infinity, or is the same for all galaxies.

    Raises
    ------
    UserError
        naming the first row that is not finite, or the value that all rows have
    """
    check_finite(x, "selected")
    check_varied(x)


def check_varied(x: NDArray[np.floating]) -> None:
    """Refuse a representation that is the same for all galaxies.

    Raises
    ------
    UserError
        naming the value that all rows have
    """
    # Rows that differ do so in the first two nearly always, which spares comparing all.
    if len(x) > 1 and (x[1] == x[0]).all() and (x == x[0]).all():
        shown = ", ".join(f"{value:.4g}" for value in x[0, :3])
        raise UserError(
            f"representation: is the same for all {len(x)} selected galaxies ({shown}, ...), so that none is nearer "
            "than another. The model collapsed or was never trained: train again, say with a lower optim.lr, and embed "
            "with the new checkpoint."
        )


def _ivf(x: NDArray[np.float32], n_neighbors: int, seed: int | None) -> tuple[Search, dict[str, float]]:
    # faiss brings an OpenMP of its own, which searches that do not need it are spared.
    import faiss

    n_cells = max(1, min(round(4 * len(x) ** 0.5), len(x) // _ROWS_PER_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(x.shape[1]), x.shape[1], n_cells)
    index.cp.seed = (seed or 0) % 2**31
    index.cp.max_points_per_centroid = _TRAINED_ON_PER_CELL
    index.train(x)
    index.add(x)
    # Other rows than those that `recall` judges the outcome by.
    rows, radii = _sample(x, n_neighbors, N_QUERIES, seed=1)
    index.nprobe = min(8, n_cells)
    while index.nprobe < n_cells:
        if _share_found(x, rows, index.search(x[rows], n_neighbors)[1], radii) >= LEAST_RECALL + _MARGIN:
            break
        index.nprobe = min(2 * index.nprobe, n_cells)
    facts = {"n_cells": float(n_cells), "n_probe": float(index.nprobe)}
    return lambda queries: _completed(index.search(queries, n_neighbors)[1], queries, x), facts


def _sees_gpu() -> bool:
    # cuml brings numba's, and torch is slow to import.
    from numba import cuda

    return bool(cuda.is_available())


def _cuml(**options: Any) -> Any:
    if not _sees_gpu():
        raise UserError(
            "neighbours.method=cuml: needs an NVIDIA GPU, and none is visible. Choose neighbours.method=ivf."
        )
    try:
        from cuml.neighbors import NearestNeighbors as OnGpu
    except ImportError as error:
        raise UserError(
            f"neighbours.method=cuml: cuml cannot be imported ({error}). Install it (https://docs.rapids.ai/install), "
            "or choose neighbours.method=ivf."
        ) from error
    return OnGpu(output_type="numpy", **options)


def _pynndescent(x: NDArray[np.float32], n_neighbors: int, seed: int | None) -> NDArray[np.integer]:
    # It compiles for a minute on import and first use, which the other searches need not wait for.
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
    return _completed(np.array(index.neighbor_graph[0], dtype=np.int32), x, x)


def _all_found(search: Search, x: NDArray[np.float32], n_neighbors: int) -> NDArray[np.integer]:
    indices = np.empty((len(x), n_neighbors), dtype=np.int32)
    for start in range(0, len(x), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        indices[part] = search(x[part])
    return indices


def _completed(
    indices: NDArray[np.integer], queries: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.integer]:
    """Search exactly where a search came up short of neighbours, which it marks by -1."""
    short = np.flatnonzero((indices < 0).any(axis=1))
    if len(short):
        indices[short] = prepared_search(x, indices.shape[1], "exact")[0](queries[short])
    return indices


def _sample(
    x: NDArray[np.float32], n_neighbors: int, n_queries: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows drawn at random, and how far the last of their true neighbours is."""
    rows = np.random.default_rng(seed).choice(len(x), min(n_queries, len(x)), replace=False)
    true = prepared_search(x, n_neighbors, "exact")[0](x[rows])
    return rows, distances_to(x[rows], x, true).max(axis=1)


def _share_found(
    x: NDArray[np.float32], rows: NDArray[np.int64], found: NDArray[np.integer], radii: NDArray[np.float32]
) -> float:
    k = found.shape[1]
    near = (found >= 0) & (distances_to(x[rows], x, found) <= radii[:, None] * (1 + 1e-5))
    hits = [len(np.setdiff1d(found[i, near[i]], [row])) for i, row in enumerate(rows)]
    return float(np.mean(np.minimum(hits, k - 1)) / (k - 1))
