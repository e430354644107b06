"""UMAP of the representation: few dimensions in which density shows structure.

umap-learn's own steps, one by one, so that layouts which differ in what a later step takes share the earlier ones: the
fuzzy graph of a number of neighbours, a start, the optimisation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.utils import check_random_state

from rarezoo.cli import UserError
from rarezoo.clustering.graph import NeighbourGraph

Init = Literal["auto", "spectral", "pca", "random"]

# Eigenvectors of the graph take a quarter of the layout's own time from about here on, and at 632,000 galaxies did not
# come at all. PCA takes seconds and, on planted groups of 20,000 and 50,000, leads to layouts searched as well.
SPECTRAL_BELOW = 20_000
# umap-learn has 200 epochs from 10,000 rows on. With half of them, classes of simulated surveys and planted groups were
# found as well (docs/class_search_speed.md), and the layout is most of what a search of many galaxies takes.
FEWER_EPOCHS_FROM, FEWER_EPOCHS = 20_000, 100
# Walmsley & Scaife 2023 cluster in 5 dimensions, and 2 are shown: one start serves both.
SHARED_COMPONENTS = 5

# umap.UMAP's defaults.
_SPREAD, _LEARNING_RATE, _REPULSION, _NEGATIVE_SAMPLES = 1.0, 1.0, 1.0, 5
_DENSMAP = {"lambda": 2.0, "frac": 0.3, "var_shift": 0.1}


@dataclass(frozen=True)
class FuzzyGraph:
    """How strongly galaxies hold each other: the fuzzy union of each one's neighbourhood.

    Attributes
    ----------
    weights : (N, N) symmetric, float32, in (0, 1], nothing on the diagonal
    """

    weights: csr_matrix

    def to_arrays(self) -> dict[str, NDArray]:
        """Plain arrays, to be stored."""
        return {name: getattr(self.weights, name) for name in ("data", "indices", "indptr")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> FuzzyGraph:
        """The graph that `to_arrays` took apart."""
        n_rows = len(arrays["indptr"]) - 1
        return cls(csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(n_rows, n_rows)))


class _Distances:
    """Distances between rows, as umap-learn looks them up for densMAP.

    Its own table of them is a dictionary, of tens of millions of entries for 632,000 galaxies.
    """

    def __init__(self, x: NDArray[np.float32]) -> None:
        self._x = x

    def __getitem__(self, pair: tuple[int, int]) -> np.float32:
        apart = self._x[pair[0]] - self._x[pair[1]]
        return np.float32(np.sqrt(np.einsum("i,i->", apart, apart)))


def fuzzy_graph(graph: NeighbourGraph, n_neighbors: int) -> FuzzyGraph:
    """Weigh the edges of a neighbour graph as UMAP does; the same from run to run.

    Parameters
    ----------
    graph : with at least `n_neighbors` neighbours
    n_neighbors : neighbours that hold a galaxy, itself included; 50 in Walmsley & Scaife 2023, Sec. 3
    """
    # Compiles for ten seconds on import, which the rest of the package need not wait for.
    from umap.umap_ import fuzzy_simplicial_set

    held = graph.sliced(n_neighbors)
    # On one thread as of a seeded UMAP: the mean of all distances, which it needs where copies lie, is summed by all.
    with _numba_threads(1):
        # Of the data, only the length is read where neighbours are given.
        weights, _, _ = fuzzy_simplicial_set(
            held.indices,
            n_neighbors,
            None,
            "euclidean",
            knn_indices=held.indices,
            knn_dists=held.distances,
        )
    weights = csr_matrix(weights, dtype=np.float32)
    weights.sort_indices()
    return FuzzyGraph(weights)


def initial_layout(
    x: NDArray[np.float32], fuzzy: FuzzyGraph, n_components: int, init: Init = "auto", seed: int | None = 0
) -> NDArray[np.float32]:
    """Where the galaxies start.

    The first columns of a start are the start of fewer components, up to the eigensolver's tolerance and 1e-5 of noise,
    where `start_components` says so.

    Parameters
    ----------
    x : (N, D) representation
    fuzzy : of `x`
    n_components : columns to make; see `start_components`
    init : spectral (eigenvectors of the graph; pieces of a disconnected one are arranged by umap-learn, and a random
        start with a warning stands in where they do not converge), pca, random, or auto: spectral below
        `SPECTRAL_BELOW` rows and PCA from there on
    seed : of the noise, of a random start, and of the pieces' arrangement

    Returns
    -------
    (N, n_components) float32, within about 10 of the origin

    Raises
    ------
    UserError
        if PCA cannot give as many components, or the eigensolver needs more rows
    """
    from umap.spectral import spectral_layout
    from umap.umap_ import noisy_scale_coords

    init = resolve_init(init, len(x))
    check_layout_size(x.shape, 2, n_components, init)
    random_state = check_random_state(seed)
    if init == "random":
        return np.asarray(random_state.uniform(-10, 10, size=(len(x), n_components)), dtype=np.float32)
    if init == "pca":
        # The one solver whose first columns do not depend on how many are asked for.
        start = PCA(n_components, svd_solver="covariance_eigh").fit_transform(x)
    else:
        with warnings.catch_warnings():
            # Said of the arrangement of the pieces of a disconnected graph, which nobody need act on.
            warnings.filterwarnings("ignore", message="Graph is not fully connected")
            start = spectral_layout(x, fuzzy.weights, n_components, random_state)
    return np.asarray(noisy_scale_coords(start, random_state, max_coord=10, noise=0.0001), dtype=np.float32)


def start_components(fuzzy: FuzzyGraph, shape: tuple[int, ...], n_components: int, init: Init) -> int:
    """Columns to make of a start, so that the layouts of `n_components` and of `SHARED_COMPONENTS` share it.

    They do not share that of a disconnected graph, whose pieces umap-learn arranges otherwise in each dimension.

    Parameters
    ----------
    shape : (N, D) of the representation
    n_components : of the layout
    init : as resolved by `resolve_init`
    """
    if n_components >= SHARED_COMPONENTS:
        return n_components
    if init == "spectral" and connected_components(fuzzy.weights, directed=False, return_labels=False) > 1:
        return n_components
    most = min(shape[0] - 3, shape[1] if init == "pca" else shape[0])
    return max(n_components, min(SHARED_COMPONENTS, most))


def umap_layout(
    fuzzy: FuzzyGraph,
    start: NDArray[np.float32],
    x: NDArray[np.float32],
    min_dist: float = 0.0,
    densmap: bool = False,
    seed: int | None = 0,
    n_epochs: int | None = None,
) -> NDArray[np.float32]:
    """Lay out a fuzzy graph from a given start; bit for bit what umap.UMAP makes of the same neighbours and start.

    Parameters
    ----------
    fuzzy : of N galaxies
    start : (N, n_components), one column a dimension of the layout; 5 in Walmsley & Scaife 2023, Sec. 3
    x : (N, D) representation, which densMAP takes the density from
    min_dist : least distance between neighbours in the layout. The paper states none. 0.0 is what umap-learn advises
        for clustering: its default of 0.1 spreads dense spots for the eye and so flattens what is searched for.
    densmap : preserve local density as well (Narayan et al. 2020)
    seed : makes the layout reproducible, on one thread; None uses all threads and gives another layout each time
    n_epochs : rounds of optimisation; None leaves it to umap-learn, see `resolve_epochs`

    Returns
    -------
    (N, n_components) float32
    """
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    a, b = find_ab_params(_SPREAD, min_dist)
    layout, _ = simplicial_set_embedding(
        x,
        # It drops weak edges in place.
        fuzzy.weights.copy(),
        start.shape[1],
        _LEARNING_RATE,
        a,
        b,
        _REPULSION,
        _NEGATIVE_SAMPLES,
        n_epochs,
        np.array(start, dtype=np.float32),
        check_random_state(seed),
        "euclidean",
        {},
        densmap,
        {**_DENSMAP, "graph_dists": _Distances(x)} if densmap else {},
        output_dens=False,
        parallel=seed is None,
    )
    return np.asarray(layout, dtype=np.float32)


def resolve_init(init: Init, n_rows: int) -> Init:
    """The start that `auto` stands for."""
    if init == "auto":
        return "spectral" if n_rows < SPECTRAL_BELOW else "pca"
    return init


def resolve_epochs(n_epochs: int | None, n_rows: int, densmap: bool) -> int | None:
    """Rounds of optimisation where the settings do not say, `FEWER_EPOCHS` from `FEWER_EPOCHS_FROM` rows on.

    None leaves it to umap-learn: 500 up to 10,000 rows and 200 above, and 200 more for densMAP.
    """
    if n_epochs is None and n_rows >= FEWER_EPOCHS_FROM and not densmap:
        return FEWER_EPOCHS
    return n_epochs


def check_layout_size(shape: tuple[int, ...], n_neighbors: int, n_components: int, init: Init) -> None:
    """Refuse layouts that so few galaxies or so few dimensions do not allow.

    Raises
    ------
    UserError
        naming the option
    """
    n_rows, n_dimensions = shape
    if n_rows < n_neighbors + 2:
        raise UserError(
            f"layout.n_neighbors={n_neighbors} needs at least {n_neighbors + 2} galaxies, but {n_rows} were selected. "
            "Lower layout.n_neighbors, or loosen selection.cuts."
        )
    # The eigenvectors of the graph, one more than components, must be fewer than its rows.
    if n_rows < n_components + 3:
        raise UserError(
            f"layout.n_components={n_components} needs at least {n_components + 3} galaxies, but {n_rows} were "
            "selected. Lower layout.n_components, or loosen selection.cuts."
        )
    if init == "pca" and n_components > n_dimensions:
        raise UserError(
            f"layout.n_components={n_components}, but the representation has {n_dimensions} dimensions, and PCA gives "
            "no more. Lower layout.n_components, or choose layout.init=random."
        )


@contextmanager
def _numba_threads(n_threads: int) -> Iterator[None]:
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(n_threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
