"""Which galaxies are searched: cuts on the vote fractions that the model expects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.settings import Cut
from rarezoo.embeddings.select import find_answer, rows_within


class VotedGalaxies(Protocol):
    """Galaxies with predicted votes, on disk or in memory."""

    def __len__(self) -> int: ...

    @property
    def label_cols(self) -> Sequence[str]:
        """Names of the answers; none where no votes were predicted."""
        ...

    def fractions_of(self, answers: Sequence[str]) -> Iterable[NDArray[np.floating]]:
        """Expected fractions of these answers, (rows, answers), piece by piece."""
        ...


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


def select(galaxies: VotedGalaxies, cuts: Mapping[str, Cut]) -> Selection:
    """Apply cuts one after another.

    Parameters
    ----------
    galaxies : N, whose votes are read piece by piece
    cuts : name -> cut; none keeps every row

    Raises
    ------
    UserError
        if there are no votes to cut on, an answer matches no label column or several, a fraction in it is not finite,
        or no row is left
    """
    label_cols, n_rows = galaxies.label_cols, len(galaxies)
    if not n_rows:
        raise UserError(
            "the embedding holds no galaxies, so there is nothing to search. Embed a catalog with at least one image."
        )
    if not cuts:
        return Selection(np.arange(n_rows), _steps(cuts, [], [], n_rows))
    if not label_cols:
        raise UserError(
            f"selection.cuts: {', '.join(cuts)} cut on predicted votes, and these embeddings hold none. Search all "
            "with selection=all, or add votes: python -m rarezoo.embeddings.convert ... --predictions FILE."
        )
    answers = [find_answer(cut.answer, label_cols, f"selection.cuts.{name}.answer") for name, cut in cuts.items()]
    rows, left = rows_within(galaxies.fractions_of(answers), answers, [(None, cut.below) for cut in cuts.values()])
    table = _steps(cuts, answers, left, n_rows)
    if not len(rows):
        raise UserError(
            f"selection.cuts: none of {n_rows} galaxies is left.\n{table.to_string(index=False)}\n"
            "Raise the threshold (below) of the cut that removes too many, or search all with selection=all."
        )
    return Selection(rows, table)


def _steps(cuts: Mapping[str, Cut], answers: Sequence[str], left: Sequence[int], n_rows: int) -> pd.DataFrame:
    thresholds = [cut.below for cut in cuts.values()]
    removed = [before - after for before, after in zip([n_rows, *left], left, strict=False)]
    columns = {"cut": list(cuts), "answer": answers, "threshold": thresholds, "removed": removed, "left": left}
    return pd.DataFrame(columns)
