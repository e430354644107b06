"""Which galaxies are searched: cuts on the vote fractions that the model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from rarezoo.cli import UserError, did_you_mean


class Cut(BaseModel):
    """Keep the galaxies whose expected fraction of votes for one answer is below a threshold.

    Walmsley & Scaife 2023, Sec. 2 remove smooth >= 0.5, edge-on >= 0.3 and artifact >= 0.3.

    Attributes
    ----------
    answer : label column, or a shell pattern that matches exactly one
    below : rows at or above it are removed, in (0, 1]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    answer: str = Field(min_length=1)
    below: float = Field(gt=0, le=1)


@dataclass(frozen=True)
class Selection:
    """The rows that are searched, and how each cut came to them.

    Attributes
    ----------
    rows : (M,) int64, ascending rows of the embedding
    steps : one row a cut, in order: cut, answer, threshold, removed, left
    """

    rows: NDArray[np.int64]
    steps: pd.DataFrame


def select(vote_fractions: NDArray[np.floating], label_cols: Sequence[str], cuts: Mapping[str, Cut]) -> Selection:
    """Apply cuts one after another.

    Parameters
    ----------
    vote_fractions : (N, A), mean of the Dirichlet posterior of each question
    label_cols : (A,) names of the answers
    cuts : name -> cut; none keeps every row

    Raises
    ------
    UserError
        if an answer matches no label column or several, a fraction in it is not finite, or no row is left
    """
    keep = np.ones(len(vote_fractions), dtype=bool)
    steps: list[dict[str, object]] = []
    for name, cut in cuts.items():
        answer = find_answer(cut.answer, label_cols, option=f"selection.cuts.{name}.answer")
        fraction = vote_fractions[:, list(label_cols).index(answer)]
        _check_finite(fraction, answer)
        before = int(keep.sum())
        # Both in the precision of an embedding, so that what equals the threshold but for rounding is removed.
        keep &= fraction.astype(np.float32) < np.float32(cut.below)
        left = int(keep.sum())
        steps.append({"cut": name, "answer": answer, "threshold": cut.below, "removed": before - left, "left": left})
    table = pd.DataFrame(steps, columns=["cut", "answer", "threshold", "removed", "left"])
    if not keep.any():
        raise UserError(_nothing_left(len(keep), table))
    return Selection(np.flatnonzero(keep).astype(np.int64), table)


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


def _check_finite(fraction: NDArray[np.floating], answer: str) -> None:
    bad = np.flatnonzero(~np.isfinite(fraction))
    if len(bad):
        raise UserError(
            f"vote fractions: '{answer}' is not finite in {len(bad)} rows (first: row {bad[0]}, value "
            f"{fraction[bad[0]]}). The embedding is damaged or its model diverged: embed again, or train again."
        )


def _nothing_left(n_rows: int, steps: pd.DataFrame) -> str:
    if not n_rows:
        return (
            "the embedding holds no galaxies, so there is nothing to search. Embed a catalog with at least one image."
        )
    return (
        f"selection.cuts: none of {n_rows} galaxies is left.\n{steps.to_string(index=False)}\n"
        "Raise the threshold (below) of the cut that removes too many, or search all with selection=all."
    )
