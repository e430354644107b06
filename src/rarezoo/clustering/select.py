"""Which galaxies are searched: cuts on the votes that the model expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.settings import Cut
from rarezoo.embeddings.select import Of, find_answer, rows_within

# The first step, which no cut has made.
ALL = "all"


class VotedGalaxies(Protocol):
    """Galaxies with predicted votes, on disk or in memory."""

    def __len__(self) -> int: ...

    @property
    def label_cols(self) -> Sequence[str]:
        """Names of the answers; none where no votes were predicted."""
        ...

    def votes_for(self, answers: Sequence[str], of: Sequence[Of]) -> Iterable[NDArray[np.floating]]:
        """Votes expected for these answers, as fractions or joint, (rows, answers), piece by piece."""
        ...


@dataclass(frozen=True)
class Selection:
    """The rows that are searched, and how each cut came to them.

    Attributes
    ----------
    rows : (M,) int64, ascending rows of the embedding
    steps : cut, answer, of, at_least, below, removed, left; a first row of all galaxies, then one a cut, in order
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
    votes = galaxies.votes_for(answers, [cut.of for cut in cuts.values()])
    rows, left = rows_within(votes, answers, [(cut.at_least, cut.below) for cut in cuts.values()])
    table = _steps(cuts, answers, left, n_rows)
    if not len(rows):
        raise UserError(
            f"selection.cuts: none of {n_rows} galaxies is left.\n{table.to_string(index=False)}\n"
            "Raise below, or lower at_least, of the cut that removes too many, or search all with selection=all."
        )
    return Selection(rows, table)


def check_galaxies(ids: NDArray[np.object_], x: NDArray[np.floating], rows: NDArray[np.integer]) -> None:
    """Refuse galaxies that share an id, by which decisions and tables know them, and such as have no finite place.

    Parameters
    ----------
    ids : (M,) id_str
    x : (M, D) representation
    rows : (M,) rows of the embedding

    Raises
    ------
    UserError
        naming the first of them by id and row
    """
    index = pd.Index(ids, dtype=object)
    again = np.flatnonzero(index.duplicated())
    if len(again):
        first, second = rows[np.flatnonzero(index == ids[again[0]])[:2]]
        raise UserError(
            f"id_str: '{ids[again[0]]}' is the id of row {first} and of row {second} of the embeddings ({len(again)} "
            f"of {len(ids)} selected galaxies have the id of another). Give each one of its own, and embed again."
        )
    check_finite(x, "selected", lambda row: f"'{ids[row]}', row {rows[row]} of the embeddings")


def check_finite(
    x: NDArray[np.floating], which: str, named: Callable[[int], str] = lambda row: f"row {row} of them"
) -> None:
    """Refuse galaxies with NaN or infinity in their representation.

    Parameters
    ----------
    x : (M, D)
    which : selected or new, for the message
    named : row of `x` -> how the user knows it

    Raises
    ------
    UserError
        naming the first of them
    """
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise UserError(
            f"representation: {len(bad)} of {len(x)} {which} galaxies hold values that are not finite (first: "
            f"{named(int(bad[0]))}). The model diverged or ran at too low a precision: embed again in full precision, "
            "or train again."
        )


def _steps(cuts: Mapping[str, Cut], answers: Sequence[str], left: Sequence[int], n_rows: int) -> pd.DataFrame:
    counts = [n_rows, *left]
    return pd.DataFrame(
        {
            "cut": [ALL, *cuts],
            "answer": ["", *answers],
            "of": ["", *(cut.of for cut in cuts.values())],
            "at_least": np.array([None, *(cut.at_least for cut in cuts.values())], dtype=np.float64),
            "below": np.array([None, *(cut.below for cut in cuts.values())], dtype=np.float64),
            "removed": [0, *(before - after for before, after in pairwise(counts))],
            "left": counts,
        }
    )
