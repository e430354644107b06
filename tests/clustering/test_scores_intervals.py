import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.clustering.scores import bootstrap_interval, ratio_interval, recovered_by_abundance


def _every_draw(values: np.ndarray) -> np.ndarray:
    """Means of all draws of as many values with replacement, which are equally likely."""
    rows = np.array(list(product(range(len(values)), repeat=len(values))))
    return values[rows].mean(axis=1)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=4, unique=True), st.sampled_from([0.8, 0.95]))
def test_ends_are_where_the_draws_of_the_mean_leave_the_tails(values, level):
    means, found = _every_draw(np.array(values)), bootstrap_interval(values, level=level)
    assert found.mean == pytest.approx(np.mean(values))
    tail = (1 - level) / 2
    # A tail of the draws that were made may differ from that of all by what 9,999 draws allow.
    for end in (found.low, found.high):
        below, up_to = (means < end - 1e-9).mean(), (means <= end + 1e-9).mean()
        expected = tail if end == found.low else 1 - tail
        assert below - 0.02 <= expected <= up_to + 0.02


def test_interval_of_three_seeds_is_their_range():
    assert bootstrap_interval([0.2, 0.9, 0.4]) == pytest.approx((0.5, 0.2, 0.9, 3))


def test_interval_holds_the_mean_of_many_values_as_often_as_it_says():
    rng = np.random.default_rng(0)
    drawn = [bootstrap_interval(rng.normal(size=60), level=0.8) for _ in range(150)]
    assert 0.68 < np.mean([interval.low <= 0 <= interval.high for interval in drawn]) < 0.9


@pytest.mark.parametrize(("values", "n"), [([0.1], 1), ([0.1, np.nan], 1), ([0.1] * 3, 3), ([0.1] * 3 + [np.nan], 3)])
def test_interval_of_one_value_or_of_equal_ones_is_that_value(values, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_interval(values)
    assert found == pytest.approx((0.1, 0.1, 0.1, n))


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_interval_of_no_value_is_unknown(values):
    found = bootstrap_interval(values)
    assert found.n == 0
    assert np.isnan(found[:3]).all()


def test_nan_are_left_out_and_the_seed_decides_the_draws():
    values = np.random.default_rng(1).random(8)
    assert bootstrap_interval([*values, np.nan], seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


def _table(members: list[int], f1: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"class": [f"c{n}" for n in range(len(members))], "members": members, "f1": f1})


def test_shares_are_of_the_classes_of_all_surveys_by_members_over_galaxies():
    tables = [_table([5, 10, 40], [0.0, 0.5, 0.9]), _table([5, 40], [0.8, 0.3])]
    found = recovered_by_abundance(tables, [1000, 500], [0.001, 0.01, 0.05, 0.2])
    assert found["abundance_from"].tolist() == [0.001, 0.01, 0.05]
    assert found["classes"].tolist() == [1, 3, 1]
    assert found["surveys"].tolist() == [1, 2, 1]
    assert found["share_f1_50"].tolist() == pytest.approx([0, 1, 0])
    assert found["share_f1_80"].tolist() == pytest.approx([0, 2 / 3, 0])


def test_bin_holds_its_lower_edge_and_the_last_its_upper_too():
    found = recovered_by_abundance([_table([1, 2, 4, 5], [1.0] * 4)], [8], [1 / 8, 2 / 8, 4 / 8])
    assert found["classes"].tolist() == [1, 2]


def test_intervals_come_from_drawing_surveys_again():
    f1s = [[0.9, 0.9, 0.9, 0.1], [0.9, 0.1], [0.1]]
    tables = [_table([10] * len(f1), f1) for f1 in f1s]
    row = recovered_by_abundance(tables, [1000] * 3, [0.001, 0.1]).iloc[0]
    found, classes = np.array([3, 1, 0]), np.array([4, 2, 1])
    draws = np.array(list(product(range(3), repeat=3)))
    shares = found[draws].sum(axis=1) / classes[draws].sum(axis=1)
    assert row["share_f1_50"] == pytest.approx(4 / 7)
    assert (row["share_f1_50_low"], row["share_f1_50_high"]) == pytest.approx((shares.min(), shares.max()))


def test_survey_without_classes_in_a_bin_is_no_part_of_its_interval():
    tables = [_table([10, 10], [0.9, 0.1]), _table([10], [0.9]), _table([], []), _table([900], [0.1])]
    row = recovered_by_abundance(tables, [1000] * 4, [0.001, 0.1]).iloc[0]
    alone = recovered_by_abundance(tables[:2], [1000] * 2, [0.001, 0.1]).iloc[0]
    assert row.tolist() == alone.tolist()
    assert row["surveys"] == 2


def test_empty_bin_and_single_survey_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recovered_by_abundance([_table([10, 12], [0.9, 0.1])], [1000], [0.001, 0.1, 0.5])
        nothing = recovered_by_abundance([], [], [0.001, 0.1])
    shares = ["share_f1_50", "share_f1_50_low", "share_f1_50_high"]
    assert found.loc[0, shares].tolist() == [0.5] * 3
    assert found.loc[1, shares].isna().all()
    assert nothing["classes"].tolist() == [0]
    assert nothing["share_f1_80"].isna().all()


def test_edges_or_surveys_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        recovered_by_abundance([], [], [0.1, 0.1])
    with pytest.raises(ValueError, match="longer"):
        recovered_by_abundance([], [1000], [0.1, 0.2])


def test_ratio_is_of_the_sums_and_counts_seeds_without_any_below():
    assert ratio_interval([30, 20, 40], [3, 0, 1]).mean == pytest.approx(90 / 4)
    assert ratio_interval([30, 20, np.nan], [3, 2, 5]) == pytest.approx((10, 10, 10, 2))


def test_ratio_is_infinite_where_draws_may_have_none_below_and_unknown_where_all_have():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = ratio_interval([30, 20, 40], [3, 0, 0])[1:3]
    assert low == pytest.approx(30 / 3)
    assert np.isinf(high)
    assert np.isnan(ratio_interval([30, 20], [0, 0])[:3]).all()
