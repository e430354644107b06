"""rarezoo's own search as a method, and how methods make montages of what they found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.neighbors import NearestNeighbors

from known_truth.contest import Found, Task
from rarezoo.cli import UserError
from rarezoo.clustering.cohesion import members_of
from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.tree import ClassTree
from rarezoo.clustering.whitening import whitening_of


def search(task: Task, **settings: Mapping[str, Any]) -> Found:
    """Run the class search of cluster.py, in its order of classes: the most persistent first.

    Parameters
    ----------
    task : what to search
    settings : as for `searched_tree`
    """
    return of_tree(searched_tree(task, settings), task.montage_size)


def searched_tree(task: Task, settings: Mapping[str, Mapping[str, Any]]) -> ClassTree:
    """Classes of a search, from the stages of the task's store where they are there.

    Parameters
    ----------
    task : what to search
    settings : groups of `SearchSettings`, as layout and tree; layouts have the task's seed

    Raises
    ------
    UserError
        if there is no such setting, or it asks for more galaxies than there are
    """
    layout = {"seed": task.seed, **settings.get("layout", {})}
    try:
        checked = SearchSettings.model_validate({**settings, "layout": layout})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"options of search: {faults}. They are those of cluster.py.") from error
    x = whitening_of(task.x, checked.neighbours.whitening)(task.x)
    return ClassTree.from_arrays(Pipeline.of(x, checked, task.store).tree.arrays)


def of_tree(tree: ClassTree, montage_size: int) -> Found:
    """Classes of a tree in its order; a montage shows the members of the highest membership probability."""
    return Found(strongest_members(tree.labels, tree.probabilities, range(tree.n_classes), montage_size), tree.labels)


def strongest_members(
    labels: NDArray[np.integer], strength: NDArray[np.floating], order: Iterable[int], montage_size: int
) -> list[NDArray[np.int64]]:
    """Montages of clusters, each of its members of the greatest strength, of equals those in the lowest rows.

    Parameters
    ----------
    labels : (M,) cluster of each galaxy, 0 to K - 1, -1 for none
    strength : (M,) of each galaxy in its cluster
    order : clusters, in the order in which they are looked at; those without members are passed over
    montage_size : how many to show of each
    """
    members = members_of(labels, int(labels.max(initial=-1)) + 1)
    ranked = (members[k][np.argsort(-strength[members[k]], kind="stable")] for k in order)
    return [rows[:montage_size].astype(np.int64) for rows in ranked if len(rows)]


def montages_around(task: Task, order: Iterable[int], n_montages: int) -> list[NDArray[np.int64]]:
    """Montages of a ranking: the first galaxy that none has shown yet, and its nearest neighbours in `task.x`.

    Its neighbours are the nearest of all, whether shown before or not.

    Parameters
    ----------
    task : what was ranked
    order : its rows, the most promising first
    n_montages : at most so many
    """
    size = min(task.montage_size, len(task.x))
    neighbours = NearestNeighbors(n_neighbors=size, algorithm="brute").fit(task.x)
    shown = np.zeros(len(task.x), dtype=bool)
    montages: list[NDArray[np.int64]] = []
    for row in order:
        if len(montages) == n_montages:
            break
        if not shown[row]:
            near = neighbours.kneighbors(task.x[row : row + 1], return_distance=False)[0]
            # One of several galaxies at one place is not always its own nearest.
            montages.append(np.concatenate([[row], near[near != row]])[:size].astype(np.int64))
            shown[montages[-1]] = True
    return montages
