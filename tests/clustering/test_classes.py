from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from rarezoo.clustering.classes import class_table, distinguishing_answers, galaxy_table, medoids, nearest_classes
from rarezoo.clustering.tree import ClassTree


def neighbours_of(x):
    """Each row and its ten nearest others."""
    others = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(x).kneighbors(return_distance=False)
    return np.column_stack([np.arange(len(x)), others])


def _tree(labels, births=None):
    """Classes that part from the root, at 1 where nothing else is said."""
    labels = np.asarray(labels, np.int32)
    n, k = len(labels), int(labels.max()) + 1
    nodes = np.arange(n + 1, n + 1 + k)
    sizes = np.bincount(labels + 1, minlength=k + 1)[1:]
    condensed = {
        "parent": [*[n] * k, *np.where(labels < 0, n, n + 1 + labels)],
        "child": [*nodes, *range(n)],
        "lambda_val": [*(np.ones(k) if births is None else births), *np.full(n, 9.0)],
        "child_size": [*sizes, *[1] * n],
    }
    return ClassTree(
        labels=labels,
        probabilities=np.ones(n, np.float32),
        outlier_scores=np.zeros(n, np.float32),
        persistence=np.linspace(0.9, 0.1, k),
        nodes=nodes,
        parents=np.full(k, n),
        condensed=pd.DataFrame(condensed),
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 999))
def test_medoid_has_the_smallest_sum_of_squared_distances(n_rows, n_classes, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_rows, 5)).astype(np.float32)
    labels = np.concatenate([np.arange(n_classes), rng.integers(-1, n_classes, n_rows)])[:n_rows]
    n_classes = int(labels.max()) + 1
    for cluster, medoid in enumerate(medoids(labels, x, n_classes)):
        members = np.flatnonzero(labels == cluster)
        sums = cdist(x[members], x[members], "sqeuclidean").sum(axis=1)
        assert labels[medoid] == cluster
        assert sums[members == medoid][0] <= sums.min() * (1 + 1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999))
def test_effects_are_differences_over_the_spread_of_the_rest(seed):
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet(np.ones(4), size=50).astype(np.float32)
    labels = np.concatenate([[0, 1], rng.integers(-1, 2, 48)])
    for cluster, answers in enumerate(distinguishing_answers(labels, fractions, list("abcd"), 2, n_answers=4)):
        inside, rest = fractions[labels == cluster], fractions[labels != cluster]
        for found in answers:
            i = "abcd".index(found["answer"])
            assert found["mean"] == pytest.approx(inside[:, i].mean(), rel=1e-5)
            assert found["others"] == pytest.approx(rest[:, i].mean(), rel=1e-5)
            expected = (inside[:, i].mean() - rest[:, i].mean()) / max(rest[:, i].std(), 0.01)
            assert found["effect"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert [abs(found["effect"]) for found in answers] == sorted((abs(f["effect"]) for f in answers), reverse=True)


def test_a_fraction_that_never_varies_does_not_divide_by_zero():
    fractions = np.array([[0.5, 0.01], [0.5, 0.0], [0.5, 0.0]])
    [answers] = distinguishing_answers(np.array([0, -1, -1]), fractions, ["a", "b"], 1)
    assert [(found["answer"], round(found["effect"], 3)) for found in answers] == [("b", 1.0)]


def test_what_hardly_differs_sets_nothing_apart():
    fractions = np.array([[0.52, 0.5], [0.5, 0.4], [0.4, 0.6], [0.6, 0.5]])
    assert distinguishing_answers(np.array([0, -1, -1, -1]), fractions, ["a", "b"], 1) == [[]]


def test_a_class_of_all_galaxies_is_set_apart_by_nothing():
    assert distinguishing_answers(np.zeros(3, int), np.ones((3, 2)), ["a", "b"], 1) == [[]]


def test_class_table_tells_bars_from_the_bulk(planted, tmp_path):
    graph = neighbours_of(planted.x)
    ids = [f"J{row}" for row in range(len(planted.x))]
    table = class_table(_tree(planted.group), planted.x, graph, planted.vote_fractions, planted.label_cols, ids)
    assert table["size"].tolist() == [40, 60, 90]
    np.testing.assert_allclose(table["share"], np.array([40, 60, 90]) / 1190)
    assert (planted.group[table["medoid_row"]] == table["cluster"]).all()
    assert table["medoid_id"].tolist() == [ids[row] for row in table["medoid_row"]]
    assert table["distinguishing"].str.contains(r"bar-dr5_strong 0\.\d\d \(others 0\.\d\d\)").all()
    table.to_parquet(tmp_path / "classes.parquet")
    again = pd.read_parquet(tmp_path / "classes.parquet")
    assert set(again["answers"][0][0]) == {"answer", "mean", "others", "effect"}


def test_class_table_sums_up_its_members(planted):
    rng = np.random.default_rng(3)
    n = len(planted.x)
    probabilities, scores = rng.random(n).astype(np.float32), rng.random(n).astype(np.float32)
    tree = replace(_tree(planted.group, [2.0, 3.0, 4.0]), probabilities=probabilities, outlier_scores=scores)
    graph = neighbours_of(planted.x)
    ids = [f"J{row}" for row in range(n)]
    table = class_table(tree, planted.x, graph, planted.vote_fractions, planted.label_cols, ids)
    for row in table.itertuples():
        members = planted.group == row.cluster
        assert row.mean_probability == pytest.approx(probabilities[members].mean(), rel=1e-5)
        assert row.mean_outlier_score == pytest.approx(scores[members].mean(), rel=1e-5)
        assert row.max_outlier_score == pytest.approx(scores[members].max())
        assert row.cohesion_random == pytest.approx((members.sum() - 1) / (n - 1))
    assert table["birth_lambda"].tolist() == [2, 3, 4]
    assert (table["cohesion_z"] > 50).all()
    means = [planted.x[planted.group == cluster].mean(axis=0) for cluster in range(3)]
    apart = cdist(means, means)
    assert table["nearest"].tolist() == [sorted({0, 1, 2} - {own}, key=lambda c: apart[own, c]) for own in range(3)]
    np.testing.assert_allclose(table["nearest_distance"], (apart + 99 * np.eye(3)).min(axis=1), rtol=1e-5)


def test_the_only_class_is_near_to_none():
    nearest, distance = nearest_classes(np.ones((1, 4)))
    assert nearest == [[]]
    assert np.isnan(distance).all()


def test_classes_of_one_mean_are_each_others_nearest_and_not_their_own():
    nearest, distance = nearest_classes(np.array([[0.0, 1], [0, 1], [5, 5]]))
    assert [found[0] for found in nearest[:2]] == [1, 0]
    assert distance[:2].tolist() == [0, 0]


def test_a_search_without_classes_gives_an_empty_table_with_its_columns():
    table = class_table(_tree([-1, -1]), np.zeros((2, 3)), np.array([[0, 1], [1, 0]]), np.zeros((2, 1)), ["a"], "xy")
    assert table.empty
    assert {"cluster", "size", "persistence", "medoid_id", "answers", "parent", "nearest", "cohesion_z"} <= set(table)


def test_galaxy_table_carries_the_catalog_and_renames_what_bears_a_name_of_ours():
    catalog = pd.DataFrame(
        {"x": [7, 8], "redshift": [0.1, 0.2], "ra": [1.0, 2.0], "id_str": ["a", "b"], "catalog_x": [5, 6]}, index=[9, 4]
    )
    table = galaxy_table(catalog, _tree([0, -1]), np.array([[1.5, 2.5], [3.5, 4.5]]))
    assert table.columns.tolist() == [
        *("id_str", "ra", "cluster", "found_cluster", "probability", "outlier_score", "x", "y"),
        *("catalog_catalog_x", "redshift", "catalog_x"),
    ]
    assert table["x"].tolist() == [1.5, 3.5]
    assert table["catalog_catalog_x"].tolist() == [7, 8]
    assert table["id_str"].tolist() == ["a", "b"]
    assert table["cluster"].tolist() == [0, -1]


def test_galaxy_table_keeps_the_classes_that_were_found_beside_those_decided():
    table = galaxy_table(
        pd.DataFrame({"id_str": list("abc")}), _tree([0, -1, -1]), np.zeros((3, 2)), np.array([2, 1, -1])
    )
    assert table["cluster"].tolist() == [0, -1, -1]
    assert table["found_cluster"].tolist() == [2, 1, -1]


def test_tables_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="1 catalog rows, 2 labels"):
        galaxy_table(pd.DataFrame({"id_str": ["a"]}), _tree([0, 0]), np.zeros((2, 2)))
