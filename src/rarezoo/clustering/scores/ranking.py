"""How well a representation ranks the galaxies of a class when it is shown one of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from rarezoo.clustering.scores.known import by_column

# Bytes of the distances that are held at a time, and of the part of x that is held as float64 beside them.
_BLOCK = 64 * 2**20


def example_precision(
    x: NDArray[np.floating], members: pd.DataFrame, n_examples: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Given one galaxy of a class, how early the others come when all are ranked by Euclidean distance from it.

    Average precision of one example: the mean, over the other members, of the share of members among the galaxies that
    lie as near to the example as this member or nearer. The example itself does not count, and galaxies at one distance
    come together, as in scikit-learn's `average_precision_score`. No training and no threshold enters.

    Parameters
    ----------
    x : (N, D) representation
    members : (N, K) bool, one column a class; a galaxy may be of several
    n_examples : at most so many members of a class are taken as the example, drawn without replacement; None takes all
    seed : of that draw

    Returns
    -------
    One row a class, in the order of the columns: class; members; examples; average_precision, mean over the examples;
    chance, what a ranking at random is expected to give (Bestgen 2015, Prague Bulletin of Mathematical Linguistics
    103, 131); prevalence, share of members among the galaxies ranked, to which chance tends where that is not small.
    A class of fewer than two members has NaN in these three.

    Raises
    ------
    ValueError
        if the lengths differ, members are not bool, or x is not finite
    """
    if len(x) != len(members):
        raise ValueError(f"{len(x)} galaxies and {len(members)} rows of known classes")
    rng = np.random.default_rng(seed)
    rows = []
    for name, is_member in zip(members.columns, by_column(members).T, strict=True):
        of_class = np.flatnonzero(is_member)
        n = len(of_class)
        examples = (
            of_class if n_examples is None or n <= n_examples else rng.choice(of_class, n_examples, replace=False)
        )
        row = {"class": str(name), "members": n, "examples": len(examples)}
        if n > 1:
            row["average_precision"] = float(np.mean(list(_precisions(x, of_class, np.sort(examples)))))
            row["chance"] = _chance(n - 1, len(x) - 1)
            row["prevalence"] = (n - 1) / (len(x) - 1)
        rows.append(row)
    columns = ["class", "members", "examples", "average_precision", "chance", "prevalence"]
    return pd.DataFrame(rows, columns=columns)


def _precisions(
    x: NDArray[np.floating], of_class: NDArray[np.integer], examples: NDArray[np.integer]
) -> Iterator[float]:
    """Average precision of each example, the distances of some examples at a time."""
    at_a_time = max(1, _BLOCK // (8 * len(x)))
    for start in range(0, len(examples), at_a_time):
        taken = examples[start : start + at_a_time]
        distances = _squared_distances(x, taken)
        # Rounding must not put the example behind others: it comes first, and is then left out of both counts.
        distances[np.arange(len(taken)), taken] = 0
        positives = np.sort(distances[:, of_class], axis=1)[:, 1:]
        distances.sort(axis=1)
        for nearest, every in zip(positives, distances, strict=True):
            n_members = np.searchsorted(nearest, nearest, side="right")
            yield float(np.mean(n_members / (np.searchsorted(every, nearest, side="right") - 1)))


def _squared_distances(x: NDArray[np.floating], examples: NDArray[np.integer]) -> NDArray[np.float64]:
    """(n, N) from each example to all, in float64: at float32, scikit-learn rounds distances into ties."""
    origin = x[examples[0]].astype(np.float64)
    shown = x[examples] - origin
    parts = np.array_split(x, -(-x.size * 8 // _BLOCK))
    return np.concatenate([euclidean_distances(shown, part - origin, squared=True) for part in parts], axis=1)


def _chance(n_members: int, n: int) -> float:
    """Expected average precision of a ranking of n at random.

    A member is as likely at each rank i, and of the n - 1 others, n_members - 1 are members too, so that the precision
    expected there is (1 + (i - 1) (n_members - 1) / (n - 1)) / i.
    """
    ranks = np.arange(1, n + 1)
    share_of_others = (n_members - 1) / max(n - 1, 1)
    return float(np.mean((1 + (ranks - 1) * share_of_others) / ranks))
