"""UMAP of the representation: few dimensions in which density shows structure."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.neighbours import NeighbourGraph, check_representation

Init = Literal["auto", "spectral", "pca", "random"]

# Eigenvectors of the graph take longer than the layout itself from about here on; PCA takes seconds and, on planted
# groups, leads to layouts that are searched as well.
SPECTRAL_BELOW = 100_000

# umap-learn warns of what is asked for here on purpose.
_INTENDED = (r"precomputed_knn\[2\]", r"n_jobs value .* overridden")


def umap_layout(
    x: NDArray[np.float32],
    graph: NeighbourGraph,
    n_neighbors: int,
    n_components: int,
    min_dist: float = 0.0,
    densmap: bool = False,
    seed: int | None = 0,
    init: Init = "auto",
    n_epochs: int | None = None,
) -> NDArray[np.float32]:
    """Lay out the representation with UMAP on a given neighbour graph.

    Parameters
    ----------
    x : (N, D) representation
    graph : of `x`, with at least `n_neighbors` neighbours
    n_neighbors : neighbours that hold a galaxy; 50 in Walmsley & Scaife 2023, Sec. 3
    n_components : dimensions of the layout; 5 in Sec. 3
    min_dist : least distance between neighbours in the layout. The paper states none. 0.0 is what umap-learn advises
        for clustering: its default of 0.1 spreads dense spots for the eye and so flattens what is searched for.
    densmap : preserve local density as well (Narayan et al. 2020)
    seed : makes the layout reproducible, on one thread; None uses all threads
    init : where the galaxies start; auto is spectral below `SPECTRAL_BELOW` rows and PCA from there on
    n_epochs : rounds of optimisation; None leaves it to umap-learn

    Returns
    -------
    (N, n_components) float32

    Raises
    ------
    UserError
        if `x` is not finite, there are too few rows, or PCA cannot give as many components
    """
    check_representation(x)
    init = resolve_init(init, len(x))
    check_layout_size(x.shape, n_neighbors, n_components, init)
    # Compiles for ten seconds on import, which the rest of the package need not wait for.
    import umap

    # umap-learn does not cut a wider graph down below 4096 rows, and lays out all of it.
    held = graph.sliced(n_neighbors)
    with warnings.catch_warnings():
        for message in _INTENDED:
            warnings.filterwarnings("ignore", message=message)
        layout = umap.UMAP(
            n_neighbors=n_neighbors,
            n_components=n_components,
            min_dist=min_dist,
            densmap=densmap,
            random_state=seed,
            init=init,
            n_epochs=n_epochs,
            n_jobs=1 if seed is not None else -1,
            precomputed_knn=(held.indices, held.distances),
        ).fit_transform(np.array(x, dtype=np.float32))
    return np.asarray(layout, dtype=np.float32)


def resolve_init(init: Init, n_rows: int) -> Init:
    """The start that `auto` stands for."""
    if init == "auto":
        return "spectral" if n_rows < SPECTRAL_BELOW else "pca"
    return init


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
