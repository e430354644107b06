import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.clustering.scores import LOOKED_AT, discovered_after, discoveries

N = 12
classes_drawn = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=N, max_size=N)
montages_drawn = st.lists(st.lists(st.integers(0, N - 1), max_size=6, unique=True), max_size=8)


@settings(deadline=None, max_examples=60)
@given(classes_drawn, montages_drawn, st.sampled_from([0.25, 0.5, 1.0]))
def test_class_is_discovered_at_the_first_montage_that_shows_enough_of_it(drawn, shown, share):
    classes = pd.DataFrame(drawn, columns=["ring", "lens"], dtype=bool)
    found_at = discoveries([np.array(rows, dtype=np.int64) for rows in shown], classes, share)
    for column, name in enumerate(classes):
        enough = [
            number
            for number, rows in enumerate(shown, start=1)
            if len(rows) >= 3 and sum(drawn[row][column] for row in rows) >= share * len(rows)
        ]
        assert found_at[name] == enough[0] if enough else np.isnan(found_at[name])


def test_two_classes_that_make_half_of_a_montage_each_are_both_discovered():
    classes = pd.DataFrame({"ring": [True, True, False, False], "lens": [False, False, True, True]})
    assert discoveries([np.arange(4)], classes).to_dict() == {"ring": 1, "lens": 1}


def test_small_montage_discovers_nothing_and_was_looked_at():
    classes = pd.DataFrame({"ring": np.arange(10) < 5})
    assert discoveries([np.array([0, 1]), np.array([], dtype=np.int64), np.arange(3)], classes)["ring"] == 3


def test_curve_counts_classes_and_not_montages():
    classes = pd.DataFrame({"ring": np.arange(60) < 30, "lens": np.arange(60) >= 30, "odd": np.zeros(60, bool)})
    montages = [np.arange(0, 3)] * 30 + [np.arange(30, 33)] * 90
    found_at = discoveries(montages, classes)
    assert [discovered_after(found_at, n) for n in LOOKED_AT] == [1, 1, 2, 2, 2]
    assert [discovered_after(found_at, n) for n in (0, 30, 31)] == [0, 1, 2]


def test_without_montages_nothing_is_discovered():
    found_at = discoveries([], pd.DataFrame({"ring": [True, True, True]}))
    assert found_at.isna().all()
    assert discovered_after(found_at, 100) == 0


@pytest.mark.parametrize("rows", [[0, 1, -1], [0, 1, 3]])
def test_row_that_is_not_there_is_refused(rows):
    with pytest.raises(ValueError, match=r"montage 2 shows rows .* of 3 galaxies"):
        discoveries([np.arange(3), np.array(rows)], pd.DataFrame({"ring": [True, True, True]}))


@pytest.mark.parametrize("share", [0, 1.5, float("nan")])
def test_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        discoveries([], pd.DataFrame({"ring": [True]}), share)
