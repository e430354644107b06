from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from rarezoo.cli import UserError
from rarezoo.clustering.select import check_galaxies
from rarezoo.clustering.select import select as select_galaxies
from rarezoo.clustering.settings import Cut

COLS = ["smooth-or-featured-dr5_smooth", "disk-edge-on-dr5_yes", "disk-edge-on-dr5_no"]


@dataclass
class Galaxies:
    """Votes in pieces of two rows; joint votes are half of the fractions."""

    fractions: np.ndarray
    label_cols: list[str]

    def __len__(self):
        return len(self.fractions)

    def votes_for(self, answers, of):
        columns = [self.label_cols.index(answer) for answer in answers]
        joint = np.array([share == "joint" for share in of])
        votes = np.where(joint, self.fractions[:, columns] * 0.5, self.fractions[:, columns])
        return (votes[row : row + 2] for row in range(0, len(self), 2))


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
    cuts = {
        "smooth": Cut(answer=COLS[0], below=0.5),
        "edge_on": Cut(answer="disk-edge-on*_yes", at_least=0.05, below=0.3, of="joint"),
    }
    steps = select(fractions, COLS, cuts).steps
    expected = pd.DataFrame(
        {
            "cut": ["all", "smooth", "edge_on"],
            "answer": ["", COLS[0], COLS[1]],
            "of": ["", "fraction", "joint"],
            "at_least": [np.nan, np.nan, 0.05],
            "below": [np.nan, 0.5, 0.3],
            "removed": [0, 2, 1],
            "left": [4, 2, 1],
        }
    )
    pd.testing.assert_frame_equal(steps, expected)


def test_without_cuts_every_row_is_kept():
    found = select(np.zeros((4, 3)), COLS, {})
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.steps[["cut", "removed", "left"]].to_numpy().tolist() == [["all", 0, 4]]


bounds = st.tuples(st.none() | st.floats(0, 0.99), st.none() | st.floats(0.01, 1)).filter(
    lambda pair: pair != (None, None) and (None in pair or pair[0] < pair[1])
)


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(0, 1, width=32)),
    st.lists(st.tuples(st.sampled_from(COLS), bounds, st.sampled_from(["fraction", "joint"])), max_size=4),
)
def test_selection_is_the_rows_that_pass_all_cuts_one_by_one(fractions, wanted):
    cuts = {
        f"cut{i}": Cut(answer=answer, at_least=low, below=high, of=of)
        for i, (answer, (low, high), of) in enumerate(wanted)
    }

    def passes(row, answer, pair, of):
        value = row[COLS.index(answer)] * np.float32(0.5 if of == "joint" else 1)
        low, high = pair
        return (low is None or value >= np.float32(low)) and (high is None or value < np.float32(high))

    rows = [i for i, row in enumerate(fractions) if all(passes(row, *cut) for cut in wanted)]
    if not rows:
        with pytest.raises(UserError, match="none of"):
            select(fractions, COLS, cuts)
        return
    found = select(fractions, COLS, cuts)
    assert found.rows.tolist() == rows
    assert found.steps["removed"].sum() == len(fractions) - len(rows)
    assert found.steps["left"].iloc[-1] == len(rows)


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


@pytest.mark.parametrize("bound", ["below", "at_least"])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(bound, value):
    with pytest.raises(ValidationError, match=bound):
        Cut(answer="a", **{bound: value})


def test_cuts_that_bound_nothing_or_leave_nothing_are_refused():
    with pytest.raises(ValidationError, match="give below, at_least, or both"):
        Cut(answer="a")
    with pytest.raises(ValidationError, match=r"at_least=0\.5 and below=0\.5 leave nothing"):
        Cut(answer="a", at_least=0.5, below=0.5)


def test_two_galaxies_of_one_id_are_refused_with_both_rows():
    ids = np.array(["a", "b", "c", "b", "a"], dtype=object)
    with pytest.raises(UserError, match=r"id_str: 'b' is the id of row 12 and of row 14 .*\(2 of 5 selected"):
        check_galaxies(ids, np.zeros((5, 2)), np.array([10, 12, 13, 14, 19]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_representation_that_is_not_finite_is_refused_with_id_and_row(value):
    x = np.zeros((3, 2), np.float32)
    x[1:, 1] = value
    with pytest.raises(UserError, match=r"2 of 3 selected galaxies .*first: 'b', row 40 of the embeddings"):
        check_galaxies(np.array(["a", "b", "c"], dtype=object), x, np.array([7, 40, 41]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8))
def test_ids_are_refused_only_where_one_is_there_twice(ids):
    arguments = np.array(ids, dtype=object), np.zeros((len(ids), 2)), np.arange(len(ids))
    if len(set(ids)) == len(ids):
        check_galaxies(*arguments)
    else:
        with pytest.raises(UserError, match="id_str"):
            check_galaxies(*arguments)
