import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarezoo.cli import UserError
from rarezoo.embeddings.select import find_answer, rows_within

COLS = ["a_yes", "a_no", "b_yes"]
bounds = st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.floats(0, 1, width=32)),
    st.lists(bounds, min_size=3, max_size=3),
    st.integers(1, 31),
)
def test_rows_are_those_within_all_bounds_whatever_the_pieces(fractions, cuts, step):
    pieces = [fractions[start : start + step] for start in range(0, len(fractions), step)]
    rows, left = rows_within(pieces, COLS, cuts)
    kept, expected = set(range(len(fractions))), []
    for column, (low, high) in zip(fractions.T, cuts, strict=True):
        least = -np.inf if low is None else np.float32(low)
        most = np.inf if high is None else np.float32(high)
        kept &= {row for row, value in enumerate(column) if least <= value < most}
        expected.append(len(kept))
    assert rows.tolist() == sorted(kept)
    assert rows.dtype == np.int64
    assert left == expected


def test_low_bound_belongs_to_what_is_kept_and_high_bound_does_not():
    pieces = [np.array([[0.2], [0.7], [0.5]], np.float32)]
    assert rows_within(pieces, ["a_yes"], [(0.2, 0.7)])[0].tolist() == [0, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fractions_that_are_not_finite_are_counted_over_all_pieces(value):
    pieces = [np.zeros((2, 1)), np.array([[0.1], [value]]), np.array([[value]])]
    with pytest.raises(UserError, match=rf"'a_yes' is not finite in 2 rows \(first: row 3, value {value}\)"):
        rows_within(pieces, ["a_yes"], [(None, 0.5)])


def test_a_full_name_means_itself_even_where_it_is_also_a_pattern():
    assert find_answer("a[1]", ["a[1]", "a1"], "selection.cuts.a.answer") == "a[1]"
