"""Rows whose expected vote fractions lie within bounds, found piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError, did_you_mean

Bounds = tuple[float | None, float | None]


def rows_within(
    pieces: Iterable[NDArray[np.floating]], answers: Sequence[str], bounds: Sequence[Bounds]
) -> tuple[NDArray[np.int64], list[int]]:
    """Apply cuts one after another.

    Parameters
    ----------
    pieces : (rows, K) each, expected vote fractions of the K answers, in the order of the rows
    answers : (K,) their names, for errors; one may be there more than once
    bounds : (K,) low and high; rows with low <= fraction < high are kept, and None bounds nothing

    Returns
    -------
    rows : (M,) int64, ascending, that pass all cuts
    left : (K,) how many rows each cut left of those that the cuts before it had left

    Raises
    ------
    UserError
        if a fraction is not finite
    """
    n_rows, left = 0, [0] * len(answers)
    n_bad = dict.fromkeys(answers, 0)
    first_bad: dict[str, tuple[int, np.float32]] = {}
    found = [np.empty(0, np.int64)]
    for piece in pieces:
        # In the precision of an embedding, so that what equals a bound but for rounding is at it.
        fractions = piece.astype(np.float32, copy=False)
        keep = np.ones(len(piece), dtype=bool)
        for index, (answer, cut) in enumerate(zip(answers, bounds, strict=True)):
            column = fractions[:, index]
            if len(bad := np.flatnonzero(~np.isfinite(column))):
                n_bad[answer] += len(bad)
                first_bad.setdefault(answer, (n_rows + int(bad[0]), column[bad[0]]))
            keep &= _within(column, *cut)
            left[index] += int(keep.sum())
        found.append(n_rows + np.flatnonzero(keep))
        n_rows += len(piece)
    for answer, (row, value) in first_bad.items():
        raise UserError(
            f"vote fractions: '{answer}' is not finite in {n_bad[answer]} rows (first: row {row}, value {value}). "
            "The embedding is damaged or its model diverged: embed again, or train again."
        )
    return np.concatenate(found), left


def _within(column: NDArray[np.float32], low: float | None, high: float | None) -> NDArray[np.bool_]:
    keep = np.ones(len(column), dtype=bool)
    if low is not None:
        keep &= column >= np.float32(low)
    if high is not None:
        keep &= column < np.float32(high)
    return keep


def find_answer(pattern: str, label_cols: Sequence[str], option: str) -> str:
    """The one label column that a name or shell pattern means.

    Raises
    ------
    UserError
        if it means none or several; the message names the option and the candidates
    """
    if pattern in label_cols:
        return pattern
    matches = [column for column in label_cols if fnmatchcase(column, pattern)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"{option}: '{pattern}' matches {len(matches)} label columns ({', '.join(matches)}). "
            "Give a name or a pattern that matches exactly one."
        )
    raise UserError(f"{option}: '{pattern}' matches no label column. {did_you_mean(pattern, label_cols)}")
