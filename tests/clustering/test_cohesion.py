import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from rarezoo.clustering.cohesion import cohesion, column_cohesion, random_cohesion, striking_columns


def neighbours_of(x):
    """Each row and its ten nearest others."""
    others = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(x).kneighbors(return_distance=False)
    return np.column_stack([np.arange(len(x)), others])


@settings(deadline=None, max_examples=40)
@given(st.integers(12, 60), st.integers(0, 999), st.integers(1, 11))
def test_cohesion_is_the_share_of_neighbours_of_the_same_class(n_rows, seed, n_neighbors):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1, 1], rng.integers(-1, 2, n_rows - 4)])
    graph = neighbours_of(rng.normal(size=(n_rows, 3)).astype(np.float32))
    found = cohesion(labels, graph, 2, n_neighbors)
    for cluster in (0, 1):
        members = np.flatnonzero(labels == cluster)
        k = min(n_neighbors, 10, len(members) - 1)
        shares = [sum(labels[j] == cluster for j in graph[i][1 : k + 1]) / k for i in members]
        assert found[cluster] == pytest.approx(np.mean(shares))


def test_planted_groups_cohere_and_a_random_class_coheres_no_more_than_its_share(planted):
    graph = neighbours_of(planted.x)
    assert cohesion(planted.group, graph, 3).min() > 0.95
    drawn = np.where(np.random.default_rng(0).random(len(planted.x)) < 0.3, 0, -1)
    assert cohesion(drawn, graph, 1)[0] == pytest.approx(0.3, abs=0.05)


@settings(deadline=None, max_examples=15)
@given(st.integers(14, 60), st.integers(2, 13), st.integers(1, 10), st.integers(0, 999))
def test_random_sets_cohere_as_much_as_is_computed(n_rows, size, n_neighbors, seed):
    rng = np.random.default_rng(seed)
    # Of points on a line, so that links are often mutual and some rows are neighbours of many.
    graph = neighbours_of(rng.exponential(size=(n_rows, 1)).astype(np.float32))
    found = []
    for _ in range(1500):
        labels = np.full(n_rows, -1)
        labels[rng.choice(n_rows, size, replace=False)] = 0
        found.append(cohesion(labels, graph, 1, n_neighbors)[0])
    [mean], [deviation] = random_cohesion(np.array([size]), graph, n_neighbors)
    assert np.mean(found) == pytest.approx(mean, abs=5 * deviation / np.sqrt(1500) + 1e-12)
    assert np.std(found) == pytest.approx(deviation, rel=0.25)


def test_all_sets_of_two_rows_have_the_mean_and_deviation_that_are_computed():
    graph = neighbours_of(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    scores = []
    for i in range(20):
        for j in range(i):
            labels = np.full(20, -1)
            labels[[i, j]] = 0
            scores.append(cohesion(labels, graph, 1)[0])
    [mean], [deviation] = random_cohesion(np.array([2]), graph)
    assert mean == pytest.approx(np.mean(scores))
    assert deviation == pytest.approx(np.std(scores))


def test_a_set_of_all_rows_has_one_cohesion_and_no_deviation():
    graph = neighbours_of(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    assert [float(value[0]) for value in random_cohesion(np.array([20]), graph)] == [1, 0]


@pytest.fixture
def held_out():
    """Class 0 is of one colour and all ring galaxies, class 1 is as the bulk, class 2 has no value at all."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, -1], [30, 40, 5, 925])
    colour = rng.exponential(size=1000)
    colour[:30] = 3 + 0.05 * rng.normal(size=30)
    kind = rng.choice(["spiral", "elliptical"], size=1000, p=[0.8, 0.2]).astype(object)
    kind[:27] = "ring"
    colour[70:75], kind[70:75], colour[999], colour[40] = np.nan, None, np.inf, np.nan
    return labels, pd.DataFrame({"colour": colour, "kind": kind})


def test_numbers_are_summed_up_by_shift_and_spread_in_sigmas_of_all(held_out):
    labels, columns = held_out
    table = column_cohesion(labels, columns, draws=99).query("column == 'colour'").set_index("cluster")
    finite = columns["colour"].replace(np.inf, np.nan)
    for cluster, n in ((0, 30), (1, 39)):
        values = finite[labels == cluster]
        row = table.loc[cluster]
        assert (row["n"], row["kind"]) == (n, "number")
        assert row["mean"] == pytest.approx(values.mean())
        assert row["shift"] == pytest.approx((values.mean() - finite.mean()) / finite.std())
        assert row["spread"] == pytest.approx(values.std() / finite.std())
    assert (table.loc[0, ["shift_p", "spread_p"]] == 0.01).all()
    assert (table.loc[1, ["shift_p", "spread_p"]] > 0.05).all()
    assert table.loc[2, ["mean", "shift", "shift_p", "spread", "spread_p"]].isna().all()
    assert table["commonest"].isna().all()


def test_categories_are_summed_up_by_the_share_of_the_commonest(held_out):
    labels, columns = held_out
    table = column_cohesion(labels, columns).query("column == 'kind'").set_index("cluster")
    assert table.loc[0, ["commonest", "n", "kind"]].tolist() == ["ring", 30, "category"]
    assert table.loc[0, "share"] == pytest.approx(27 / 30)
    assert table.loc[0, "share_all"] == pytest.approx(27 / 995)
    counts = columns["kind"][labels == 1].value_counts()
    assert table.loc[1, "commonest"] == "spiral"
    assert table.loc[1, "share"] == pytest.approx(counts.max() / 40)
    # Three values could have been the commonest; of 995 rows so many are spiral.
    n_spiral = (columns["kind"] == "spiral").sum()
    in_class = [[counts.max(), 40 - counts.max()], [n_spiral - counts.max(), 955 - n_spiral + counts.max()]]
    exact = stats.fisher_exact(in_class, alternative="greater").pvalue
    assert table.loc[1, "share_p"] == pytest.approx(min(1, 3 * exact))
    assert table.loc[0, "share_p"] < 1e-30
    assert table.loc[2, "n"] == 0
    assert table.loc[2, ["commonest", "share", "share_p"]].isna().all()


def test_random_classes_have_p_values_that_are_uniform():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(-1, 200), [1000, *[10] * 200]))
    table = column_cohesion(labels, pd.DataFrame({"flux": rng.lognormal(sigma=2, size=3000)}), draws=199)
    assert stats.kstest(table["shift_p"], "uniform").pvalue > 1e-3
    assert stats.kstest(table["spread_p"], "uniform").pvalue > 1e-3


def test_a_large_class_is_compared_with_fewer_sets_and_the_others_with_as_many():
    values = np.random.default_rng(0).normal(size=40_000)
    labels = np.repeat([0, 1, -1], [20_001, 50, 19_949])
    values[labels >= 0] += 5
    table = column_cohesion(labels, pd.DataFrame({"a": values}), draws=199)
    assert table["shift_p"].tolist() == pytest.approx([1 / 100, 1 / 200])


def test_the_same_seed_gives_the_same_table(held_out):
    labels, columns = held_out
    pd.testing.assert_frame_equal(column_cohesion(labels, columns, 19, 5), column_cohesion(labels, columns, 19, 5))


def test_truth_values_are_categories_and_nullable_integers_are_numbers():
    columns = pd.DataFrame({"lens": [True, True, False, False], "count": pd.array([1, 2, None, 4], dtype="Int64")})
    table = column_cohesion(np.array([0, 0, 0, -1]), columns, draws=9)
    assert table["kind"].tolist() == ["category", "number"]
    assert table.loc[0, ["commonest", "n"]].tolist() == ["True", 3]
    assert table.loc[1, ["mean", "n"]].tolist() == [1.5, 2]


def test_a_column_without_spread_has_neither_shift_nor_p():
    table = column_cohesion(np.array([0, 0, -1]), pd.DataFrame({"one": [1.0, 1, 1]}), draws=9)
    assert table[["shift", "spread", "shift_p", "spread_p"]].isna().all(axis=None)
    assert table["mean"].tolist() == [1.0]


@pytest.mark.parametrize("columns", [pd.DataFrame(index=range(3)), pd.DataFrame({"a": [1, 2, 3], "b": list("xyz")})])
def test_without_classes_or_columns_the_table_is_empty(columns):
    table = column_cohesion(np.full(3, -1), columns)
    assert table.empty
    assert table.columns.tolist()[:4] == ["cluster", "column", "kind", "n"]


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 labels and 2 rows"):
        column_cohesion(np.zeros(3, int), pd.DataFrame({"a": [1, 2]}))


def test_columns_that_stand_out_are_told_and_others_are_not():
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(400) < 40, 0, -1)
    columns = pd.DataFrame(
        {
            "redshift": rng.normal(0.1, 0.02, 400) + 0.1 * (labels == 0),
            "noise": rng.normal(size=400),
            "survey": np.where(labels == 0, "south", rng.choice(["north", "south"], 400)),
        }
    )
    (text,) = striking_columns(column_cohesion(labels, columns), 1)
    assert "redshift 0.199 (+2.5 σ, spread 0.44 σ)" in text
    assert "survey south 100% (all 60%)" in text
    assert "noise" not in text


def test_nothing_stands_out_of_no_columns_and_of_random_sets():
    labels = np.random.default_rng(1).integers(-1, 20, 2000)
    assert striking_columns(column_cohesion(labels, pd.DataFrame(index=range(2000))), 20) == [""] * 20
    noise = pd.DataFrame({"noise": np.random.default_rng(2).normal(size=2000)})
    assert sum(map(bool, striking_columns(column_cohesion(labels, noise), 20))) <= 2
