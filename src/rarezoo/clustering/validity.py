"""How well classes are separated in the layout: density-based clustering validation (DBCV) on a sample of each class.

hdbscan's `validity_index` looks at every pair of galaxies of a class and every pair of classes: at 632,000 galaxies it
would not end. hdbscan's `relative_validity_` is fast, but another index: it takes the distances to the `min_samples`-th
neighbour for those to the members of the class, and only the edges of one spanning tree for the distances between
classes, so that classes with noise between them get a made-up value. Here the index is the published one; the members
are sampled, and classes too far away to be the nearest are passed over, which changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hdbscan.validity import all_points_core_distance, internal_minimum_spanning_tree
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist, squareform


def dbcv(
    layout: NDArray[np.floating], labels: NDArray[np.integer], max_per_class: int = 500, seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Density-based clustering validation, Moulavi et al. 2014 (SDM, 839), Definitions 1 to 8.

    A class is valid in so far as the least density distance to another class (DSPC) exceeds the longest edge of its own
    spanning tree (DSC): V = (DSPC - DSC) / max(DSPC, DSC). -1 is a class that lies in another, 1 one far from all.

    Parameters
    ----------
    layout : (N, d), what was clustered; d enters the definition of density
    labels : (N,) class of each galaxy, -1 for none
    max_per_class : members drawn at random from each larger class. A class looks better separated in a sample, since
        the members that come closest to another may not be drawn.
    seed : of that sample

    Returns
    -------
    The index of the whole, sum of size / N times V, in which galaxies in no class count as 0 (Definition 8); and (K,) V
    of each class. Members at the very same place, of infinite density by the definition, count as one. NaN where V is
    not defined: without a second class, for a class of one, or for two classes at one place; such a class adds nothing
    to the index. The index is NaN where every V is.

    Raises
    ------
    ValueError
        if the lengths differ
    """
    if len(layout) != len(labels):
        raise ValueError(f"{len(layout)} places and {len(labels)} labels")
    n_classes = int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels[labels >= 0], minlength=n_classes)
    rng = np.random.default_rng(seed)
    by_class = np.split(np.argsort(labels, kind="stable"), (labels < 0).sum() + np.cumsum(sizes) - sizes)[1:]
    drawn = [
        members if len(members) <= max_per_class else np.sort(rng.choice(members, max_per_class, replace=False))
        for members in by_class
    ]
    measurable = np.flatnonzero(sizes > 1)
    insides = [_inside(np.asarray(layout[drawn[number]], dtype=np.float64)) for number in measurable]
    per_class = np.full(n_classes, np.nan)
    per_class[measurable] = _validity(insides)
    defined = np.isfinite(per_class)
    index = float(sizes[defined] @ per_class[defined] / len(labels)) if defined.any() else float("nan")
    return index, per_class


@dataclass(frozen=True)
class _Inside:
    """Members of a class that are inner nodes of its spanning tree (n, d), with their core distances (n,)."""

    points: NDArray[np.float64]
    core: NDArray[np.float64]
    sparseness: float


def _inside(points: NDArray[np.float64]) -> _Inside:
    points = points[np.sort(np.unique(points, axis=0, return_index=True)[1])]
    if len(points) == 1:
        return _Inside(points, core=np.zeros(1), sparseness=0.0)
    distances = squareform(pdist(points))
    # Distances to the power of -d are beyond float64 in 128 dimensions; in units of the nearest they are not.
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1)
    core = nearest * all_points_core_distance(distances / nearest[:, None], d=points.shape[1])
    reachability = np.maximum(distances, np.maximum.outer(core, core))
    # hdbscan tells edges apart by an absolute tolerance, so the scale must be that of the class.
    scale = reachability.max()
    nodes, edges = internal_minimum_spanning_tree(reachability / scale)
    return _Inside(points[nodes], core[nodes], sparseness=float(edges[:, 2].max() * scale))


def _validity(insides: list[_Inside]) -> NDArray[np.float64]:
    sparseness = np.array([inside.sparseness for inside in insides])
    separation = _separations(insides)
    with np.errstate(invalid="ignore"):
        validity: NDArray[np.float64] = (separation - sparseness) / np.maximum(separation, sparseness)
    return validity


def _separations(insides: list[_Inside]) -> NDArray[np.float64]:
    """(K,) least mutual reachability distance between inner members of a class and of any other; inf for one alone."""
    if len(insides) < 2:
        return np.full(len(insides), np.inf)
    centres = np.array([inside.points.mean(axis=0) for inside in insides])
    radii = np.array([cdist(inside.points, [centre]).max() for inside, centre in zip(insides, centres, strict=True)])
    least_core = np.array([inside.core.min() for inside in insides])
    found = np.full(len(insides), np.inf)
    for number, inside in enumerate(insides):
        between = cdist(centres[number : number + 1], centres)[0] - radii[number] - radii
        at_least = np.maximum(between, np.maximum(least_core[number], least_core))
        at_least[number] = np.inf
        for other in np.argsort(at_least):
            if at_least[other] >= found[number]:
                break
            found[number] = min(found[number], _separation(inside, insides[other]))
    return found


def _separation(one: _Inside, other: _Inside) -> float:
    distances = cdist(one.points, other.points)
    return float(np.maximum(distances, np.maximum.outer(one.core, other.core)).min())
