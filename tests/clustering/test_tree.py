import numpy as np
import pytest
from hdbscan import HDBSCAN
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN as SklearnHDBSCAN  # noqa: N811
from sklearn.metrics import adjusted_rand_score

from rarezoo.cli import UserError
from rarezoo.clustering.tree import ClassTree, build_tree


def _points(seed=0, n=900):
    rng = np.random.default_rng(seed)
    spots = rng.uniform(-4, 4, size=(8, 3))
    near = spots[rng.integers(0, 8, n // 3)] + 0.15 * rng.normal(size=(n // 3, 3))
    return np.concatenate([near, rng.normal(size=(n - n // 3, 3)) * 2.5]).astype(np.float32)


@pytest.fixture(scope="module")
def points():
    return _points()


@pytest.mark.parametrize("options", [{"method": "leaf"}, {"method": "eom"}, {"method": "leaf", "epsilon": 0.6}])
def test_classes_are_those_of_sklearn(points, options):
    """scikit-learn's min_samples counts the point itself, hdbscan's does not.

    Many edges of the spanning tree are equally long, being core distances, so points at the rim of a class may fall to
    either side.
    """
    ours = build_tree(points, min_samples=7, min_cluster_size=10, **options)
    theirs = SklearnHDBSCAN(
        min_samples=8,
        min_cluster_size=10,
        cluster_selection_method=options["method"],
        cluster_selection_epsilon=options.get("epsilon", 0.0),
        copy=True,
    ).fit(points.astype(np.float64))
    assert ours.n_classes > 3
    assert ours.n_classes == theirs.labels_.max() + 1
    assert adjusted_rand_score(theirs.labels_, ours.labels) > 0.99


def test_probabilities_and_outlier_scores_are_hdbscans(points):
    ours = build_tree(points, 7, 10)
    theirs = HDBSCAN(
        min_samples=7, min_cluster_size=10, cluster_selection_method="leaf", approx_min_span_tree=False
    ).fit(points.astype(np.float64))
    assert adjusted_rand_score(theirs.labels_, ours.labels) == 1.0
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities_, atol=1e-5)
    np.testing.assert_allclose(ours.outlier_scores, theirs.outlier_scores_, atol=1e-5)
    np.testing.assert_allclose(ours.persistence, np.sort(theirs.cluster_persistence_)[::-1], atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    min_samples=st.integers(1, 30),
    min_cluster_size=st.integers(2, 30),
    method=st.sampled_from(["leaf", "eom"]),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_each_class_is_what_hangs_below_its_node(seed, min_samples, min_cluster_size, method, epsilon):
    tree = build_tree(_points(seed, 150), min_samples, min_cluster_size, method, epsilon)
    children = tree.condensed.groupby("parent")["child"].apply(list)
    for label, (node, parent) in enumerate(zip(tree.nodes, tree.parents, strict=True)):
        assert node in children[parent]
        below, galaxies = [node], set()
        while below:
            child = below.pop()
            below.extend(children.get(child, []))
            galaxies.update([child] if child < 150 else [])
        assert galaxies == set(np.flatnonzero(tree.labels == label))
        assert len(galaxies) >= min_cluster_size
    assert (np.diff(tree.persistence) <= 0).all()
    assert tree.sizes().sum() == (tree.labels >= 0).sum()
    assert (tree.probabilities[tree.labels < 0] == 0).all()


def test_order_of_the_rows_decides_only_the_rims_of_the_classes(points):
    shuffled = np.random.default_rng(1).permutation(len(points))
    here, there = build_tree(points, 7, 10), build_tree(points[shuffled], 7, 10)
    assert here.n_classes == there.n_classes
    assert adjusted_rand_score(here.labels[shuffled], there.labels) > 0.98
    np.testing.assert_array_equal(here.labels, build_tree(points, 7, 10).labels)


def test_max_cluster_size_breaks_up_what_is_larger(points):
    free = build_tree(points, 7, 10, "eom")
    assert free.sizes().max() > 60
    assert build_tree(points, 7, 10, "eom", max_cluster_size=60).sizes().max() <= 60


def test_a_structureless_cloud_has_no_classes():
    tree = build_tree(np.random.default_rng(0).uniform(size=(60, 2)), 30, 25)
    assert tree.n_classes == 0
    assert (tree.labels == -1).all()
    assert tree.nodes.shape == tree.parents.shape == tree.persistence.shape == (0,)


def test_copies_of_a_point_form_a_class_with_finite_scores():
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[:20] = x[0]
    tree = build_tree(x, 5, 10)
    assert len(set(tree.labels[:20])) == 1
    assert tree.labels[0] >= 0
    assert np.isfinite(tree.outlier_scores).all()
    assert np.isfinite(tree.probabilities).all()


def test_a_tree_survives_being_taken_apart(points):
    tree = build_tree(points, 7, 10)
    again = ClassTree.from_arrays(tree.to_arrays())
    np.testing.assert_array_equal(again.labels, tree.labels)
    np.testing.assert_array_equal(again.parents, tree.parents)
    assert again.condensed.equals(tree.condensed)


@pytest.mark.parametrize("option", ["min_samples", "min_cluster_size"])
def test_sizes_of_the_whole_sample_are_refused(option):
    sizes = {"min_samples": 5, "min_cluster_size": 5} | {option: 300}
    with pytest.raises(UserError, match=rf"tree\.{option}=300, but 300 galaxies were selected"):
        build_tree(np.zeros((300, 2)), **sizes)
