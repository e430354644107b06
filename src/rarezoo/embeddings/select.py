"""Rows whose predicted votes lie within bounds, found piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rarezoo.cli import UserError, did_you_mean
from rarezoo.votes import Schema, answer_probabilities, expected_vote_fractions

Bounds = tuple[float | None, float | None]
# fraction: of those who are asked the question; joint: of all volunteers, asked or not.
Of = Literal["fraction", "joint"]


def rows_within(
    pieces: Iterable[NDArray[np.floating]], answers: Sequence[str], bounds: Sequence[Bounds]
) -> tuple[NDArray[np.int64], list[int]]:
    """Apply cuts one after another.

    Parameters
    ----------
    pieces : (rows, K) each, predicted votes for the K answers, in the order of the rows
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


def predicted_votes(
    pieces: Iterable[NDArray[np.float32]], schema: Schema, answers: Sequence[str], of: Sequence[Of]
) -> Iterable[NDArray[np.float32]]:
    """Votes that are expected for some answers, (rows, K), piece by piece.

    Only the questions of these answers are computed and, for joint votes, those that lead to them: for a cut, a small
    part of a large tree.

    Parameters
    ----------
    pieces : concentrations of all A answers, (rows, A) or, of several members, (rows, M, A), of which the mean is taken
    schema : decision tree of the A answers
    answers : (K,) label columns
    of : (K,) what each is a share of
    """
    part = _part_of(schema, answers, of)
    columns = [schema.label_cols.index(answer) for answer in part.label_cols]
    places = [part.label_cols.index(answer) for answer in answers]
    joint = np.array([share == "joint" for share in of], dtype=bool)
    for piece in pieces:
        votes = piece[..., columns]
        found = expected_fractions(votes, part)[:, places]
        if joint.any():
            passes = np.moveaxis(votes, 1, 0) if votes.ndim == 3 else votes
            found = np.where(joint, answer_probabilities(passes, part)[:, places], found).astype(np.float32)
        yield found


def expected_fractions(concentrations: NDArray[np.float32], schema: Schema) -> NDArray[np.float32]:
    """Expected vote fractions, (rows, A), of concentrations (rows, A) or (rows, M, A), of which the mean is taken."""
    fractions = expected_vote_fractions(torch.from_numpy(concentrations), schema)
    found: NDArray[np.float32] = (fractions.mean(1) if fractions.ndim == 3 else fractions).numpy()
    return found


def _part_of(schema: Schema, answers: Sequence[str], of: Sequence[Of]) -> Schema:
    """The questions of these answers; those of joint votes with all that lead to them."""
    owner = {column: question for question in schema.questions for column in question.label_cols}
    questions = {owner[answer].name for answer in answers}
    waiting = [owner[answer] for answer, share in zip(answers, of, strict=True) if share == "joint"]
    led_to: set[str] = set()
    while waiting:
        question = waiting.pop()
        if question.name not in led_to:
            led_to.add(question.name)
            waiting += [owner[column] for column in question.asked_after]
    tree = {
        question.name: {
            "answers": list(question.answers),
            "asked_after": list(question.asked_after) if question.name in led_to else None,
        }
        for question in schema.questions
        if question.name in questions | led_to
    }
    return Schema.from_tree(tree)


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
