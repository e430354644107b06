"""Tables of the classes found and of the galaxies in them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.clustering.tree import ClassTree

# A spread below a hundredth of the votes is noise of the model: divided by it, any answer would stand out.
_LEAST_STD = 0.01


def class_table(
    tree: ClassTree,
    x: NDArray[np.floating],
    neighbours: NDArray[np.integer],
    vote_fractions: NDArray[np.floating],
    label_cols: Sequence[str],
    ids: Sequence[str],
    n_answers: int = 3,
    n_neighbors: int = 10,
) -> pd.DataFrame:
    """One row a class, the most persistent first.

    Parameters
    ----------
    tree : classes of the N selected galaxies
    x : (N, D) representation
    neighbours : (N, k) nearest neighbours in it, the galaxy itself first
    vote_fractions : (N, A) expected fractions; where none were predicted, A is 0 and no answer sets a class apart
    label_cols : (A,) names of the answers
    ids : (N,) of the galaxies
    n_answers : how many answers to name that set a class apart
    n_neighbors : how many neighbours cohesion looks at

    Returns
    -------
    Columns: cluster; size; share of the selected galaxies; persistence; cohesion (see `cohesion`); medoid_id and
    medoid_row (see `medoids`; the row is that of the galaxy table); distinguishing, the answers that set the class
    apart, as text; answers, the same as a list of {answer, mean, others, effect} (see `distinguishing_answers`); node
    and parent in the condensed tree.
    """
    sizes = tree.sizes()
    medoid_rows = medoids(tree.labels, x, tree.n_classes)
    answers = distinguishing_answers(tree.labels, vote_fractions, label_cols, tree.n_classes, n_answers)
    return pd.DataFrame(
        {
            "cluster": np.arange(tree.n_classes, dtype=np.int32),
            "size": sizes,
            "share": sizes / len(tree.labels),
            "persistence": tree.persistence,
            "cohesion": cohesion(tree.labels, neighbours, tree.n_classes, n_neighbors),
            "medoid_id": pd.Series([str(ids[row]) for row in medoid_rows], dtype=object),
            "medoid_row": medoid_rows,
            "distinguishing": pd.Series([_as_text(found) for found in answers], dtype=object),
            "answers": pd.Series(answers, dtype=object),
            "node": tree.nodes,
            "parent": tree.parents,
        }
    )


def galaxy_table(catalog: pd.DataFrame, tree: ClassTree, view: NDArray[np.floating]) -> pd.DataFrame:
    """One row a selected galaxy: who it is, its class, its place in the view, and what its catalog row carries.

    Parameters
    ----------
    catalog : (N rows) of the selected galaxies, with id_str
    tree : classes of the same galaxies
    view : (N, 2) layout for the eye

    Returns
    -------
    id_str, then ra, dec, file_loc where the catalog has them; cluster (-1 for none), probability, outlier_score, x, y;
    then the catalog's other columns. One of these that bears a name of ours is carried as catalog_NAME.
    """
    if not len(catalog) == len(tree.labels) == len(view):
        raise ValueError(f"{len(catalog)} catalog rows, {len(tree.labels)} labels and {len(view)} places in the view")
    leading = catalog[[name for name in ("id_str", "ra", "dec", "file_loc") if name in catalog]].reset_index(drop=True)
    found = pd.DataFrame(
        {
            "cluster": tree.labels,
            "probability": tree.probabilities,
            "outlier_score": tree.outlier_scores,
            "x": np.asarray(view[:, 0]),
            "y": np.asarray(view[:, 1]),
        }
    )
    carried = catalog.drop(columns=leading.columns).reset_index(drop=True)
    taken = {*leading, *found, *carried}
    carried = carried.rename(columns={name: _free_name(name, taken) for name in found})
    return leading.join(found).join(carried)


def _free_name(name: Hashable, taken: set[Hashable]) -> Hashable:
    while name in taken:
        name = f"catalog_{name}"
    return name


def medoids(labels: NDArray[np.integer], x: NDArray[np.floating], n_classes: int) -> NDArray[np.int64]:
    """Row of the member of each class whose squared distances to the others have the smallest sum.

    It is the member nearest to their mean, since the sum is n |x - mean|^2 plus what all members share.

    Parameters
    ----------
    labels : (N,) class of each row, -1 for none
    x : (N, D)
    n_classes : K

    Returns
    -------
    (K,) int64
    """
    rows = np.empty(n_classes, dtype=np.int64)
    for cluster, members in enumerate(_members(labels, n_classes)):
        points = np.asarray(x[members], dtype=np.float64)
        rows[cluster] = members[np.square(points - points.mean(axis=0)).sum(axis=1).argmin()]
    return rows


def cohesion(
    labels: NDArray[np.integer], neighbours: NDArray[np.integer], n_classes: int, n_neighbors: int = 10
) -> NDArray[np.float64]:
    """How far a class holds together in the representation itself, which the layout may have torn or joined.

    The share of its members' nearest neighbours that are members too, mean over the members. A class drawn at random
    would score its share of all galaxies; 1 is a class that keeps to itself. A class of fewer than `n_neighbors` + 1
    galaxies is measured on as many neighbours as it could fill.

    Parameters
    ----------
    labels : (N,) class of each row, -1 for none
    neighbours : (N, k) nearest neighbours in the representation, the row itself first
    n_classes : K
    n_neighbors : neighbours looked at, the row itself not counted; at most k - 1

    Returns
    -------
    (K,) in [0, 1]
    """
    most = min(n_neighbors, neighbours.shape[1] - 1)
    score = np.empty(n_classes, dtype=np.float64)
    for cluster, members in enumerate(_members(labels, n_classes)):
        looked_at = max(1, min(most, len(members) - 1))
        score[cluster] = np.mean(labels[neighbours[members, 1 : looked_at + 1]] == cluster)
    return score


def distinguishing_answers(
    labels: NDArray[np.integer],
    vote_fractions: NDArray[np.floating],
    label_cols: Sequence[str],
    n_classes: int,
    n_answers: int = 3,
) -> list[list[dict[str, str | float]]]:
    """Answers whose mean vote fraction differs most between a class and all other galaxies.

    Parameters
    ----------
    labels : (N,) class of each row, -1 for none
    vote_fractions : (N, A)
    label_cols : (A,)
    n_classes : K
    n_answers : how many to name for each class

    Returns
    -------
    K lists, the largest difference first, of answer, mean (in the class), others (mean of the rest) and effect: their
    difference over the standard deviation of the rest, which counts as no less than 0.01. Empty for a class of all.
    """
    fractions = np.asarray(vote_fractions, dtype=np.float64)
    total, squares = fractions.sum(axis=0), np.square(fractions).sum(axis=0)
    found: list[list[dict[str, str | float]]] = []
    for members in _members(labels, n_classes):
        inside, n_rest = fractions[members], len(fractions) - len(members)
        if not n_rest:
            found.append([])
            continue
        mean, others = inside.mean(axis=0), (total - inside.sum(axis=0)) / n_rest
        variance = (squares - np.square(inside).sum(axis=0)) / n_rest - np.square(others)
        effect = (mean - others) / np.sqrt(np.maximum(variance, _LEAST_STD**2))
        strongest = np.argsort(-np.abs(effect), kind="stable")[:n_answers]
        found.append([_answer(label_cols[i], mean[i], others[i], effect[i]) for i in strongest])
    return found


def _answer(name: str, mean: float, others: float, effect: float) -> dict[str, str | float]:
    return {"answer": name, "mean": float(mean), "others": float(others), "effect": float(effect)}


def _as_text(answers: list[dict[str, str | float]]) -> str:
    return "; ".join(f"{found['answer']} {found['mean']:.2f} (others {found['others']:.2f})" for found in answers)


def _members(labels: NDArray[np.integer], n_classes: int) -> list[NDArray[np.int64]]:
    """Rows of each class, ascending, in one pass over all rows."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    bounds = np.searchsorted(labels[order], np.arange(n_classes + 1))
    return [order[start:stop] for start, stop in pairwise(bounds)]
