"""Scores over several surveys, with the interval that their spread allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

from rarezoo.clustering.scores.matching import FOUND, WELL_FOUND


class Interval(NamedTuple):
    """A mean, the ends of its interval, and the number of values that it was made of."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(values: ArrayLike, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of a score over seeds, and the percentile interval of that mean when the seeds are drawn again.

    Efron 1979 (Annals of Statistics 7, 1), 9,999 draws. With few seeds it is rough, and too narrow: at a level of 0.95
    and three seeds it is the range of the three values, which holds the true mean of a normal score in three cases of
    four. Of one value, or of equal ones, it is that value and says nothing.

    Parameters
    ----------
    values : one a seed; NaN are left out
    seed : of the draws
    level : share of the draws inside

    Returns
    -------
    Interval, whose n counts the values that are not NaN; all NaN where there are none
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return _ratio_interval(known, np.ones_like(known), seed, level)


def ratio_interval(above: ArrayLike, below: ArrayLike, seed: int = 0, level: float = 0.95) -> Interval:
    """Sum of one count over the sum of another, and the interval of that ratio when the seeds are drawn again.

    Unlike a mean of ratios it counts the seeds for which the count below is 0. See `bootstrap_interval`.

    Parameters
    ----------
    above, below : one a seed; a seed for which either is NaN is left out
    seed : of the draws
    level : share of the draws inside

    Returns
    -------
    Interval; all NaN where nothing is counted below, and infinite at an end that is reached by draws without any
    """
    counts = np.column_stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)])
    counts = counts[~np.isnan(counts).any(axis=1)]
    return _ratio_interval(counts[:, 0], counts[:, 1], seed, level)


def recovered_by_abundance(
    tables: Sequence[pd.DataFrame],
    n_galaxies: Sequence[int],
    edges: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Share of the known classes that are found, against how rare they are.

    The classes of all surveys are counted together. The intervals come from drawing surveys again and not classes:
    classes of one survey share its network and its search. They are as rough as `bootstrap_interval` says.

    Parameters
    ----------
    tables : of each survey, what `recovery` gave
    n_galaxies : in each survey; the abundance of a class is its members over them
    edges : (B + 1,) ascending abundances. A bin holds its lower edge, the last its upper edge too; a class outside
        counts nowhere.
    seed : of the draws
    level : share of the draws inside an interval

    Returns
    -------
    One row a bin: abundance_from; abundance_to; surveys with classes in it; classes; share_f1_50 and share_f1_80 of
    the classes that have F1 of at least 0.5 and 0.8, each with _low and _high; NaN where there are no classes.

    Raises
    ------
    ValueError
        if there are not as many numbers as tables, or the edges are not ascending
    """
    bounds = np.asarray(edges, dtype=np.float64)
    if len(bounds) < 2 or not (np.diff(bounds) > 0).all():
        raise ValueError(f"edges {bounds.tolist()} are not two or more abundances in ascending order")
    surveys = list(zip(tables, n_galaxies, strict=True))
    abundances = [table["members"].to_numpy() / n for table, n in surveys]
    classes = _per_bin(abundances, bounds)
    rows = pd.DataFrame(
        {
            "abundance_from": bounds[:-1],
            "abundance_to": bounds[1:],
            "surveys": (classes > 0).sum(axis=0),
            "classes": classes.sum(axis=0),
        }
    )
    for name, least in (("share_f1_50", FOUND), ("share_f1_80", WELL_FOUND)):
        reached = [
            shares[table["f1"].to_numpy() >= least] for shares, (table, _) in zip(abundances, surveys, strict=True)
        ]
        found = _per_bin(reached, bounds)
        of_bins = zip(found.T, classes.T, strict=True)
        intervals = [_ratio_interval(some[every > 0], every[every > 0], seed, level) for some, every in of_bins]
        rows[name] = [interval.mean for interval in intervals]
        rows[f"{name}_low"] = [interval.low for interval in intervals]
        rows[f"{name}_high"] = [interval.high for interval in intervals]
    return rows


def _per_bin(abundances: list[NDArray[np.float64]], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """(surveys, B) how many classes of each survey are in each bin."""
    counts = [np.histogram(of_survey, edges)[0] for of_survey in abundances]
    return np.array(counts, dtype=np.int64).reshape(len(abundances), len(edges) - 1)


def _ratio_interval(above: NDArray, below: NDArray, seed: int, level: float) -> Interval:
    """Sum of one over the sum of the other, drawn again as pairs; a mean where all below are 1."""
    if not below.sum():
        return Interval(float("nan"), float("nan"), float("nan"), len(above))
    mean = float(above.sum() / below.sum())
    # SciPy refuses a sample of one, and rounds the ends of one whose values are equal.
    if (above == mean * below).all():
        return Interval(mean, mean, mean, len(above))

    def ratio(one: NDArray, other: NDArray, axis: int) -> NDArray:
        total = np.asarray(other.sum(axis=axis), dtype=np.float64)
        found: NDArray = np.divide(one.sum(axis=axis), total, out=np.full(total.shape, np.inf), where=total > 0)
        return found

    # SciPy takes the standard deviation of the draws too, of which some may be infinite.
    with np.errstate(invalid="ignore"):
        drawn = bootstrap(
            (above, below),
            ratio,
            paired=True,
            vectorized=True,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(mean, float(drawn.low), float(drawn.high), len(above))
