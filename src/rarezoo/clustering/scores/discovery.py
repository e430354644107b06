"""What an astronomer who looks at one montage after another discovers, and after how many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.clustering.scores.known import by_column

# One or two galaxies are a find, and not yet a kind.
LEAST_SHOWN = 3
LOOKED_AT = (10, 25, 50, 100, 200)


def discoveries(montages: Sequence[NDArray[np.integer]], classes: pd.DataFrame, share: float = 0.5) -> pd.Series:
    """After how many montages each known class is discovered.

    A class is discovered at the first montage that shows at least `share` of galaxies that are of it. A montage of
    fewer than three galaxies discovers nothing, but was looked at. One montage can discover several classes that
    overlap, or that make half of it each.

    Parameters
    ----------
    montages : rows of `classes` that each shows, in the order in which they are looked at
    classes : (N, K) bool, one column a known class
    share : of the galaxies shown, above 0 and at most 1

    Returns
    -------
    class -> number of the montage, counted from 1; NaN where no montage discovers it

    Raises
    ------
    ValueError
        if the share is not above 0 and at most 1, classes are not bool, or a montage shows a row that is not there
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, and must be above 0 and at most 1")
    members = by_column(classes)
    found_at = np.full(members.shape[1], np.nan)
    for number, rows in enumerate(montages, start=1):
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(members):
            raise ValueError(f"montage {number} shows rows {rows.min()} to {rows.max()} of {len(members)} galaxies")
        if len(rows) >= LEAST_SHOWN:
            found_at[np.isnan(found_at) & (members[rows].mean(axis=0) >= share)] = number
    return pd.Series(found_at, index=classes.columns.astype(str), name="found_at")


def discovered_after(found_at: pd.Series, n_montages: int) -> int:
    """How many classes are discovered within the first montages.

    After 100 it is the number of discoveries per 100 montages looked at; after each of `LOOKED_AT`, their curve. A
    search that shows fewer montages than that has discovered what it will.

    Parameters
    ----------
    found_at : what `discoveries` gave
    n_montages : how many are looked at
    """
    return int((found_at <= n_montages).sum())
