"""Known classes of galaxies, given as one name a galaxy or as one column a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

Known: TypeAlias = Sequence[object] | NDArray | pd.DataFrame


def members_by_class(truth: Known) -> tuple[list[str], csr_array]:
    """Who is of which class.

    Parameters
    ----------
    truth : (M,) class of each galaxy, compared as text; None, NaN, "" and -1 mean none. Or an (M, K) table of bool with
        a column for each class, in which a galaxy may be of several.

    Returns
    -------
    names, of classes in a list sorted, of columns in their order; and (M, K) sparse int64, 1 for a member

    Raises
    ------
    ValueError
        if a column of a table is not bool, or two have one name
    """
    if isinstance(truth, pd.DataFrame):
        return [str(name) for name in truth.columns], csr_array(by_column(truth).astype(np.int64))
    text = pd.Series(np.asarray(truth, dtype=object).astype(str), dtype=object).where(is_known(truth))
    codes, found = pd.factorize(text, sort=True)
    return [str(name) for name in found], one_hot(codes, len(found))


def by_column(classes: pd.DataFrame) -> NDArray[np.bool_]:
    """(M, K) who is of which class, from a table with a column for each.

    Raises
    ------
    ValueError
        if a column is not bool (a missing value must be decided first), or two have one name
    """
    names = classes.columns.astype(str)
    if names.has_duplicates:
        raise ValueError(f"known class '{names[names.duplicated()][0]}': has two columns")
    for name, kind in zip(names, classes.dtypes, strict=True):
        if kind != np.bool_:
            raise ValueError(f"known class '{name}': its column is {kind}, and must be bool")
    members: NDArray[np.bool_] = classes.to_numpy(dtype=np.bool_)
    return members


def is_known(truth: Sequence[object] | NDArray) -> NDArray[np.bool_]:
    """(M,) which galaxies have a class: one that is not None, NaN, "" or -1."""
    values = pd.Series(np.asarray(truth, dtype=object))
    return ~(values.isna() | values.isin(["", -1])).to_numpy(dtype=bool)


def one_hot(codes: NDArray[np.integer], n_columns: int) -> csr_array:
    """(M, n_columns) sparse int64, 1 in the column that the code (M,) of a row says; nothing where it is negative."""
    rows = np.flatnonzero(codes >= 0)
    ones = np.ones(len(rows), dtype=np.int64)
    return coo_array((ones, (rows, codes[rows])), shape=(len(codes), n_columns)).tocsr()
