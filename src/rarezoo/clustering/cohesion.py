"""How far classes hold together, in the representation and in columns that no training saw, against random sets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import hypergeom

# A member's neighbours that cohesion looks at.
N_NEIGHBORS = 10

# Of a p, which is multiplied by the number of columns.
_STRIKING = 0.01
# Sums of the same values in another order differ by less, and count as equal.
_TIE = 1e-9
# A random set of half of 632,000 galaxies takes 40 ms: a thousand for each of twenty columns would take a quarter hour.
_LARGE, _DRAWS_OF_LARGE = 20_000, 99


def members_of(labels: NDArray[np.integer], n_classes: int) -> list[NDArray[np.int64]]:
    """Rows of each class, ascending, in one pass over all rows."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    bounds = np.searchsorted(labels[order], np.arange(n_classes + 1))
    return [order[start:stop] for start, stop in pairwise(bounds)]


def cohesion(
    labels: NDArray[np.integer], neighbours: NDArray[np.integer], n_classes: int, n_neighbors: int = N_NEIGHBORS
) -> NDArray[np.float64]:
    """How far a class holds together in the representation itself, which the layout may have torn or joined.

    The share of its members' nearest neighbours that are members too, mean over the members; 1 is a class that keeps to
    itself. A class of fewer than `n_neighbors` + 1 galaxies is measured on as many neighbours as it could fill.

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
    score = np.empty(n_classes, dtype=np.float64)
    members = members_of(labels, n_classes)
    looked_at = _looked_at(np.array([len(rows) for rows in members], dtype=np.int64), neighbours, n_neighbors)
    for cluster, rows in enumerate(members):
        score[cluster] = np.mean(labels[neighbours[rows, 1 : looked_at[cluster] + 1]] == cluster)
    return score


def random_cohesion(
    sizes: NDArray[np.integer], neighbours: NDArray[np.integer], n_neighbors: int = N_NEIGHBORS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of `cohesion` over all sets of so many rows.

    Exact. The mean is (size - 1) / (N - 1). The variance counts the ordered pairs of neighbour links by how many rows
    they have between them, 2, 3 or 4, each with the probability that a random set holds these rows: the join counts of
    Cliff & Ord 1981 (Spatial Processes, Sec. 2) on a directed graph. Classes are not drawn at random: a large deviation
    says that a class is no random set, and not that it is real.

    Parameters
    ----------
    sizes : (K,) numbers of rows
    neighbours, n_neighbors : as for `cohesion`

    Returns
    -------
    mean, standard deviation : (K,)
    """
    n_rows, n = len(neighbours), np.asarray(sizes, dtype=np.float64)
    looked_at = _looked_at(sizes, neighbours, n_neighbors)
    # Probability that 2, 3 and 4 given rows are in the set.
    steps = np.stack([np.maximum(n - i, 0) / max(n_rows - i, 1) for i in range(4)])
    together = np.cumprod(steps, axis=0)[1:]
    second_moment = np.empty(len(n))
    for k in np.unique(looked_at):
        here = looked_at == k
        second_moment[here] = _link_pairs(neighbours[:, 1 : k + 1]) @ together[:, here] / (n[here] * k) ** 2
    mean = steps[1]
    variance = np.where(n < n_rows, np.maximum(second_moment - mean**2, 0), 0)
    return mean, np.sqrt(variance)


def _looked_at(sizes: NDArray[np.integer], neighbours: NDArray[np.integer], n_neighbors: int) -> NDArray[np.int64]:
    return np.clip(sizes - 1, 1, min(n_neighbors, neighbours.shape[1] - 1))


def _link_pairs(targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Ordered pairs of links, each with itself too, that have 2, 3 and 4 rows between them, (3,)."""
    n_rows, k = targets.shape
    ends = np.bincount(targets.ravel(), minlength=n_rows) + float(k)
    starts = np.arange(0, n_rows * k + 1, k)
    links = csr_matrix((np.ones(n_rows * k, dtype=np.float32), targets.ravel(), starts), shape=(n_rows, n_rows))
    mutual = links.multiply(links.T).sum(dtype=np.float64)
    two = n_rows * k + mutual
    # A pair counts once in this sum for each row that it shares.
    three = np.square(ends).sum() - 2 * two
    return np.array([two, three, float(n_rows * k) ** 2 - two - three])


def column_cohesion(
    labels: NDArray[np.integer], columns: pd.DataFrame, draws: int = 999, seed: int = 0
) -> pd.DataFrame:
    """Whether classes hold together in columns that neither training nor search has seen, such as colour or redshift.

    Each class is compared with random sets of as many of the rows that have a value in the column. For numbers that is
    by `draws` such sets, so that no p is below 1 / (draws + 1) (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9,
    39). For all else it is exact, hypergeometric, times the number of different values, since which of them is looked
    at was chosen by the class. No p is corrected for the number of classes and columns.

    Parameters
    ----------
    labels : (N,) class of each row, -1 for none
    columns : (N rows) of numbers, or of text, truth values or categories; missing and infinite values are left out
    draws : random sets; at most 99 for a class of more than 20,000 members
    seed : of the draws

    Returns
    -------
    One row a class and column: cluster; column; kind (number or category); n, members with a value. Of numbers: mean;
    shift, of the mean from that of all rows, and spread, standard deviation, both in standard deviations of all rows;
    shift_p, of a shift as large either way; spread_p, of a spread as small. Of categories: commonest, the class's
    commonest value; share of it in the class; share_all, in all rows; share_p, of a share as large.
    """
    if len(columns) != len(labels):
        raise ValueError(f"{len(labels)} labels and {len(columns)} rows of columns")
    rng = np.random.default_rng(seed)
    n_classes = int(labels.max(initial=-1)) + 1
    parts = [_EMPTY]
    for name, values in columns.items():
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
            part = _of_numbers(labels, numbers, n_classes, draws, rng).assign(kind="number")
        else:
            part = _of_categories(labels, values, n_classes).assign(kind="category")
        parts.append(part.assign(column=str(name), cluster=np.arange(n_classes)))
    table = pd.concat([part.reindex(columns=_EMPTY.columns).astype(_EMPTY.dtypes) for part in parts])
    return table.sort_values("cluster", kind="stable", ignore_index=True)


def striking_columns(columns: pd.DataFrame, n_classes: int, n_columns: int = 3) -> list[str]:
    """What stands out of each class in columns that no training saw, as text for a reader.

    Parameters
    ----------
    columns : as from `column_cohesion`
    n_classes : K
    n_columns : how many to name for each class, those of the smallest p first

    Returns
    -------
    (K,) texts; '' where no column has a p of at most 0.01, once for each column that was looked at
    """
    least = columns[["shift_p", "spread_p", "share_p"]].min(axis=1)
    n_looked_at = max(1, columns["column"].nunique())
    striking = columns.assign(p=least)[least * n_looked_at <= _STRIKING].sort_values("p", kind="stable")
    texts = [""] * n_classes
    for cluster, rows in striking.groupby("cluster"):
        texts[int(str(cluster))] = "; ".join(_told(row) for row in rows.head(n_columns).to_dict(orient="records"))
    return texts


def _told(row: Mapping[Hashable, Any]) -> str:
    if row["kind"] == "category":
        return f"{row['column']} {row['commonest']} {row['share']:.0%} (all {row['share_all']:.0%})"
    return f"{row['column']} {row['mean']:.3g} ({row['shift']:+.1f} σ, spread {row['spread']:.2f} σ)"


_EMPTY = pd.DataFrame(
    {
        **{"cluster": np.empty(0, np.int32), "column": np.empty(0, object), "kind": np.empty(0, object)},
        **{"n": np.empty(0, np.int64), "commonest": np.empty(0, object)},
        **{name: np.empty(0) for name in ("mean", "shift", "shift_p", "spread", "spread_p")},
        **{name: np.empty(0) for name in ("share", "share_all", "share_p")},
    }
)


def _of_numbers(
    labels: NDArray[np.integer], values: NDArray[np.float64], n_classes: int, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    known = np.isfinite(values)
    values = values[known]
    centre, sigma = (values.mean(), values.std(ddof=1)) if len(values) > 1 else (np.nan, np.nan)
    # A column without spread has no sigma to measure by.
    standard = (values - centre) / (sigma if sigma > 0 else np.nan)
    members = members_of(labels[known], n_classes)
    n = np.array([len(rows) for rows in members], dtype=np.int64)
    shift = np.array([standard[rows].mean() if len(rows) else np.nan for rows in members])
    variance = np.array([standard[rows].var(ddof=1) if len(rows) > 1 else np.nan for rows in members])
    p = np.empty((2, n_classes))
    for here, times in ((n <= _LARGE, draws), (n > _LARGE, min(draws, _DRAWS_OF_LARGE))):
        p[:, here] = _against_draws(standard, n[here], shift[here], variance[here], times, rng)
    spread = np.sqrt(variance)
    mean = centre + (shift * sigma if sigma > 0 else np.where(n > 0, 0.0, np.nan))
    return pd.DataFrame({"n": n, "mean": mean, "shift": shift, "shift_p": p[0], "spread": spread, "spread_p": p[1]})


def _against_draws(
    standard: NDArray[np.float64],
    n: NDArray[np.int64],
    shift: NDArray[np.float64],
    variance: NDArray[np.float64],
    draws: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The p of shifts and of variances of sets of n values; the sets of one draw are the beginnings of one order."""
    as_far, as_tight = np.zeros(len(n)), np.zeros(len(n))
    largest = n.max(initial=0)
    last, at_least_two = np.maximum(n, 1) - 1, np.maximum(n, 2)
    for _ in range(draws if largest else 0):
        drawn = standard[rng.choice(len(standard), largest, replace=False)]
        total, squares = np.cumsum(drawn)[last], np.cumsum(np.square(drawn))[last]
        as_far += np.abs(total / (last + 1)) >= np.abs(shift) - _TIE
        as_tight += (squares - total**2 / at_least_two) / (at_least_two - 1) <= variance + _TIE
    shift_p = np.where(np.isfinite(shift), (1 + as_far) / (1 + draws), np.nan)
    return shift_p, np.where(np.isfinite(variance), (1 + as_tight) / (1 + draws), np.nan)


def _of_categories(labels: NDArray[np.integer], values: pd.Series, n_classes: int) -> pd.DataFrame:
    codes, distinct = pd.factorize(values)
    labels, codes = labels[codes >= 0], codes[codes >= 0]
    of_all = np.bincount(codes, minlength=len(distinct))
    inside = pd.DataFrame({"cluster": labels, "code": codes})[labels >= 0]
    counts = inside.value_counts().reset_index(name="count").assign(of_all=lambda found: of_all[found["code"]])
    # Of two that are as common, the one that is rarer elsewhere says more.
    order = counts.sort_values(["cluster", "count", "of_all", "code"], ascending=[True, False, True, True])
    best = order.drop_duplicates("cluster").set_index("cluster")
    n = np.bincount(labels[labels >= 0], minlength=n_classes)
    total, chosen = n[best.index], best["of_all"].to_numpy()
    chance = hypergeom.sf(best["count"] - 1, len(codes), chosen, total)
    found = pd.DataFrame(
        {
            "commonest": [str(value) for value in distinct[best["code"].to_numpy()]],
            "share": best["count"] / total,
            "share_all": chosen / max(len(codes), 1),
            "share_p": np.minimum(1.0, len(distinct) * chance),
        },
        index=best.index,
    )
    return found.reindex(np.arange(n_classes)).assign(n=n)
