"""Tables of the classes found and of the galaxies in them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from rarezoo.clustering.cohesion import N_NEIGHBORS, cohesion, members_of, random_cohesion
from rarezoo.clustering.tree import ClassTree

# What differs by less than half of the others' standard deviation sets nothing apart.
_LEAST_EFFECT = 0.5
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
    n_neighbors: int = N_NEIGHBORS,
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
    Columns: cluster; size; share of the selected galaxies; persistence; birth_lambda, the lambda (1 / distance) at
    which it parts from others; mean_probability of its members; mean_outlier_score and max_outlier_score, GLOSH;
    cohesion (see `cohesion`); cohesion_random, expected of random sets of its size, and cohesion_z, the difference in
    their standard deviations (see `random_cohesion`); medoid_id and medoid_row (see `medoids`; the row is that of the
    galaxy table); nearest, up to three classes of the nearest mean representations, and nearest_distance to the first;
    distinguishing, the answers that set the class apart, as text; answers, the same as a list of {answer, mean, others,
    effect} (see `distinguishing_answers`); node and parent in the condensed tree.
    """
    labels, n_classes, sizes = tree.labels, tree.n_classes, tree.sizes()
    medoid_rows = medoids(labels, x, n_classes)
    answers = distinguishing_answers(labels, vote_fractions, label_cols, n_classes, n_answers)
    coheres = cohesion(labels, neighbours, n_classes, n_neighbors)
    expected, deviation = random_cohesion(sizes, neighbours, n_neighbors)
    nearest, distance = nearest_classes(class_means(labels, x, n_classes))
    scores = _summaries(labels, tree.outlier_scores, n_classes)
    return pd.DataFrame(
        {
            "cluster": np.arange(n_classes, dtype=np.int32),
            "size": sizes,
            "share": sizes / len(labels),
            "persistence": tree.persistence,
            "birth_lambda": tree.births(),
            "mean_probability": _summaries(labels, tree.probabilities, n_classes)[0],
            "mean_outlier_score": scores[0],
            "max_outlier_score": scores[1],
            "cohesion": coheres,
            "cohesion_random": expected,
            "cohesion_z": (coheres - expected) / np.where(deviation > 0, deviation, np.nan),
            "medoid_id": pd.Series([str(ids[row]) for row in medoid_rows], dtype=object),
            "medoid_row": medoid_rows,
            "nearest": pd.Series(nearest, dtype=object),
            "nearest_distance": distance,
            "distinguishing": pd.Series([_as_text(found) for found in answers], dtype=object),
            "answers": pd.Series(answers, dtype=object),
            "node": tree.nodes,
            "parent": tree.parents,
        }
    )


def _summaries(
    labels: NDArray[np.integer], values: NDArray[np.floating], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and greatest value of the members of each class, (K,) each."""
    groups = [np.asarray(values[rows], dtype=np.float64) for rows in members_of(labels, n_classes)]
    return np.array([group.mean() for group in groups]), np.array([group.max() for group in groups])


def galaxy_table(
    catalog: pd.DataFrame, tree: ClassTree, view: NDArray[np.floating], found: NDArray[np.integer] | None = None
) -> pd.DataFrame:
    """One row a selected galaxy: who it is, its class, its place in the view, and what its catalog row carries.

    Parameters
    ----------
    catalog : (N rows) of the selected galaxies, with id_str
    tree : classes of the same galaxies
    view : (N, 2) layout for the eye
    found : (N,) classes as the search found them, where decisions have merged or excluded some

    Returns
    -------
    id_str, then ra, dec, file_loc where the catalog has them; cluster (-1 for none), found_cluster, probability,
    outlier_score, x, y; then the catalog's other columns. One of these that bears a name of ours is carried as
    catalog_NAME.
    """
    if not len(catalog) == len(tree.labels) == len(view):
        raise ValueError(f"{len(catalog)} catalog rows, {len(tree.labels)} labels and {len(view)} places in the view")
    leading = catalog[[name for name in ("id_str", "ra", "dec", "file_loc") if name in catalog]].reset_index(drop=True)
    ours = pd.DataFrame(
        {
            "cluster": tree.labels,
            "found_cluster": tree.labels if found is None else found,
            "probability": tree.probabilities,
            "outlier_score": tree.outlier_scores,
            "x": np.asarray(view[:, 0]),
            "y": np.asarray(view[:, 1]),
        }
    )
    carried = catalog.drop(columns=leading.columns).reset_index(drop=True)
    taken = {*leading, *ours, *carried}
    carried = carried.rename(columns={name: _free_name(name, taken) for name in ours})
    return leading.join(ours).join(carried)


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
    for cluster, members in enumerate(members_of(labels, n_classes)):
        points = np.asarray(x[members], dtype=np.float64)
        rows[cluster] = members[np.square(points - points.mean(axis=0)).sum(axis=1).argmin()]
    return rows


def class_means(labels: NDArray[np.integer], x: NDArray[np.floating], n_classes: int) -> NDArray[np.float64]:
    """Mean of the members of each class, (K, D)."""
    means = np.empty((n_classes, x.shape[1]), dtype=np.float64)
    for cluster, rows in enumerate(members_of(labels, n_classes)):
        means[cluster] = x[rows].mean(axis=0, dtype=np.float64)
    return means


def nearest_classes(means: NDArray[np.floating], n_nearest: int = 3) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Classes whose means are nearest to each class's.

    Parameters
    ----------
    means : (K, D)
    n_nearest : how many; fewer where there are not so many others

    Returns
    -------
    nearest : K lists of class numbers, the nearest first
    distance : (K,) Euclidean, to the first of them; NaN for the only class
    """
    if len(means) < 2:
        return [[] for _ in means], np.full(len(means), np.nan)
    found = NearestNeighbors(n_neighbors=min(n_nearest, len(means) - 1), algorithm="kd_tree").fit(means)
    # Without an argument, no class is its own neighbour.
    distances, indices = found.kneighbors()
    return indices.tolist(), distances[:, 0]


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
    difference over the standard deviation of the rest, which counts as no less than 0.01; those of an effect below 0.5
    are left out. Empty for a class of all.
    """
    fractions = np.asarray(vote_fractions, dtype=np.float64)
    total, squares = fractions.sum(axis=0), np.square(fractions).sum(axis=0)
    found: list[list[dict[str, str | float]]] = []
    for members in members_of(labels, n_classes):
        inside, n_rest = fractions[members], len(fractions) - len(members)
        if not n_rest:
            found.append([])
            continue
        mean, others = inside.mean(axis=0), (total - inside.sum(axis=0)) / n_rest
        variance = (squares - np.square(inside).sum(axis=0)) / n_rest - np.square(others)
        effect = (mean - others) / np.sqrt(np.maximum(variance, _LEAST_STD**2))
        strongest = np.argsort(-np.abs(effect), kind="stable")[:n_answers]
        clear = [i for i in strongest if abs(effect[i]) >= _LEAST_EFFECT]
        found.append([_answer(label_cols[i], mean[i], others[i], effect[i]) for i in clear])
    return found


def _answer(name: str, mean: float, others: float, effect: float) -> dict[str, str | float]:
    return {"answer": name, "mean": float(mean), "others": float(others), "effect": float(effect)}


def _as_text(answers: list[dict[str, str | float]]) -> str:
    return "; ".join(f"{found['answer']} {found['mean']:.2f} (others {found['others']:.2f})" for found in answers)
