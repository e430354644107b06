"""Groups of classes that are pieces of one: a tree's leaves split what hardly parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rarezoo.clustering.tree import ClassTree

Pairs = list[tuple[int, int]]
# Classes that are compared with all others at a time.
_CLASSES_AT_ONCE = 1000
# Rounding of a cosine, so that equal means are alike at a similarity of 1.
_ROUNDING = 1e-12


def group_classes(
    tree: ClassTree,
    means: NDArray[np.floating],
    tree_share: float | None = None,
    similarity: float | None = None,
) -> NDArray[np.int32]:
    """Group classes that either criterion joins, and with them what these are joined to.

    Parameters
    ----------
    tree : K classes
    means : (K, D) mean representation of each class, the mean of all galaxies taken off
    tree_share : classes that part in the condensed tree within this share of the density are of one group: 1 - lambda
        of their branching / lambda at which the denser of them ends; in (0, 1]. None does not look at the tree.
    similarity : classes whose means have at least this cosine similarity are of one group; in [-1, 1]. None does not
        look at the means.

    Returns
    -------
    (K,) number of each class's group; group 0 holds the most galaxies, and of equal groups the one with the first class
    is first
    """
    n_classes = tree.n_classes
    pairs = [] if tree_share is None else _parting_late(tree, tree_share)
    if similarity is not None:
        pairs += list(_alike(means, similarity))
    # Nodes of the tree are places too, behind those of the classes.
    n_places = 1 + max((place for pair in pairs for place in pair), default=n_classes - 1)
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    joined = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(max(n_places, n_classes),) * 2)
    _, component = connected_components(joined, directed=False)
    return _by_size(component[:n_classes], tree.sizes())


def _parting_late(tree: ClassTree, share: float) -> Pairs:
    """Pairs of a class and a place that stands for a branching, which joins all classes that are paired with it.

    Each class climbs the tree as long as the branchings are at no less than 1 - share of the lambda at which it ends.
    Two classes that reach the same branching have climbed through the one where they part, so that they are joined
    there by the criterion or, transitively, further down.
    """
    inner = tree.condensed[tree.condensed["child_size"] > 1]
    above = dict(zip(inner["child"], zip(inner["parent"], inner["lambda_val"], strict=True), strict=True))
    place_of: dict[int, int] = {}
    pairs: Pairs = []
    for cluster, (node, end) in enumerate(zip(tree.nodes.tolist(), tree.deaths(), strict=True)):
        while node in above and above[node][1] >= (1 - share) * end:
            node = above[node][0]
            pairs.append((cluster, place_of.setdefault(node, tree.n_classes + len(place_of))))
    return pairs


def _alike(means: NDArray[np.floating], similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs of classes whose means have at least this cosine; a mean of zero is like no other."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    directions = np.divide(means, lengths, out=np.full(means.shape, np.nan), where=lengths > 0)
    for start in range(0, len(means), _CLASSES_AT_ONCE):
        cosines = directions[start : start + _CLASSES_AT_ONCE] @ directions.T
        for first, second in np.argwhere(cosines >= similarity - _ROUNDING).tolist():
            if start + first < second:
                yield start + first, second


def _by_size(component: NDArray[np.integer], sizes: NDArray[np.integer]) -> NDArray[np.int32]:
    _, first, group = np.unique(component, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(group, weights=sizes, minlength=len(first))))
    number = np.empty(len(order), dtype=np.int32)
    number[order] = np.arange(len(order))
    return number[group]
