from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from rarezoo.cli import UserError
from rarezoo.clustering.select import select as select_galaxies
from rarezoo.clustering.settings import Cut

COLS = ["smooth-or-featured-dr5_smooth", "disk-edge-on-dr5_yes", "disk-edge-on-dr5_no"]


@dataclass
class Galaxies:
    """Votes in pieces of two rows."""

    fractions: np.ndarray
    label_cols: list[str]

    def __len__(self):
        return len(self.fractions)

    def fractions_of(self, answers):
        columns = [self.label_cols.index(answer) for answer in answers]
        return (self.fractions[row : row + 2, columns] for row in range(0, len(self), 2))


def select(fractions, label_cols, cuts):
    return select_galaxies(Galaxies(fractions, label_cols), cuts)


def test_a_galaxy_at_the_threshold_is_removed():
    fractions = np.array([[0.5, 0, 0], [0.4999, 0, 0], [0.9, 0, 0]])
    found = select(fractions, COLS, {"smooth": Cut(answer="smooth-or-featured*_smooth", below=0.5)})
    assert found.rows.tolist() == [1]
    assert found.rows.dtype == np.int64


def test_a_galaxy_at_a_threshold_that_binary_fractions_cannot_hold_is_removed():
    fractions = np.full((1, 3), 0.7, np.float32)
    assert float(fractions[0, 0]) < 0.7
    with pytest.raises(UserError, match="none of 1"):
        select(fractions, COLS, {"smooth": Cut(answer=COLS[0], below=0.7)})


def test_steps_say_what_each_cut_removed_of_what_the_one_before_left():
    fractions = np.array([[0.9, 0.9, 0], [0.9, 0, 0], [0.1, 0.9, 0], [0.1, 0.1, 0]])
    cuts = {"smooth": Cut(answer=COLS[0], below=0.5), "edge_on": Cut(answer="disk-edge-on*_yes", below=0.3)}
    steps = select(fractions, COLS, cuts).steps
    assert steps.to_dict("list") == {
        "cut": ["smooth", "edge_on"],
        "answer": [COLS[0], COLS[1]],
        "threshold": [0.5, 0.3],
        "removed": [2, 1],
        "left": [2, 1],
    }


def test_without_cuts_every_row_is_kept():
    found = select(np.zeros((4, 3)), COLS, {})
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.steps.empty


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(0, 1, width=32)),
    st.lists(st.tuples(st.sampled_from(COLS), st.floats(0.01, 1)), max_size=4),
)
def test_selection_is_the_rows_that_pass_all_cuts_one_by_one(fractions, wanted):
    cuts = {f"cut{i}": Cut(answer=answer, below=below) for i, (answer, below) in enumerate(wanted)}
    rows = [
        i
        for i, row in enumerate(fractions)
        if all(row[COLS.index(answer)] < np.float32(below) for answer, below in wanted)
    ]
    if not rows:
        with pytest.raises(UserError, match="none of"):
            select(fractions, COLS, cuts)
        return
    found = select(fractions, COLS, cuts)
    assert found.rows.tolist() == rows
    assert found.steps["removed"].sum() == len(fractions) - len(rows)


def test_a_pattern_for_no_column_is_refused_with_candidates():
    cuts = {"smooth": Cut(answer="smooth-or-featured-dr8_smooth", below=0.5)}
    with pytest.raises(
        UserError, match=r"selection\.cuts\.smooth\.answer.*Did you mean 'smooth-or-featured-dr5_smooth'"
    ):
        select(np.zeros((2, 3)), COLS, cuts)


def test_a_pattern_for_two_columns_is_refused_with_both():
    with pytest.raises(UserError, match=r"matches 2 label columns.*disk-edge-on-dr5_yes, disk-edge-on-dr5_no"):
        select(np.zeros((2, 3)), COLS, {"edge_on": Cut(answer="disk-edge-on*", below=0.3)})


def test_an_empty_selection_is_refused_with_the_table_of_steps():
    with pytest.raises(UserError, match=r"(?s)none of 3 galaxies.*smooth.*0\.5.*3.*0"):
        select(np.ones((3, 3)), COLS, {"smooth": Cut(answer=COLS[0], below=0.5)})


def test_an_embedding_without_rows_is_refused():
    with pytest.raises(UserError, match="no galaxies"):
        select(np.ones((0, 3)), COLS, {})


def test_a_fraction_that_is_not_finite_is_refused_with_its_row():
    fractions = np.zeros((3, 3))
    fractions[1, 0] = np.nan
    with pytest.raises(UserError, match=r"smooth' is not finite in 1 rows .first: row 1, value nan"):
        select(fractions, COLS, {"smooth": Cut(answer=COLS[0], below=0.5)})


def test_cuts_on_votes_that_are_not_there_are_refused_with_both_ways_on():
    with pytest.raises(UserError, match=r"selection\.cuts: smooth cut on predicted votes.*selection=all, or add votes"):
        select(np.empty((3, 0)), [], {"smooth": Cut(answer=COLS[0], below=0.5)})


@pytest.mark.parametrize("below", [0, -0.1, 1.01, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(below):
    with pytest.raises(ValidationError, match="below"):
        Cut(answer="a", below=below)
