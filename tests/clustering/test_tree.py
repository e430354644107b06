from itertools import product

import numpy as np
import pytest
from hdbscan import HDBSCAN
from hdbscan._hdbscan_tree import outlier_scores
from hdbscan.hdbscan_ import _tree_to_labels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage as single_linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score

from rarezoo.cli import UserError
from rarezoo.clustering.spanning import SpanningTree, spanning_tree
from rarezoo.clustering.tree import ClassTree, check_tree_size, class_tree


def _points(seed=0, n=900):
    rng = np.random.default_rng(seed)
    spots = rng.uniform(-4, 4, size=(8, 3))
    near = spots[rng.integers(0, 8, n // 3)] + 0.15 * rng.normal(size=(n // 3, 3))
    return np.concatenate([near, rng.normal(size=(n - n // 3, 3)) * 2.5]).astype(np.float32)


def _groups_in_a_bulk(rng):
    groups = [rng.normal(size=5) * 1.5 + 0.05 * rng.normal(size=(n, 5)) for n in (30, 50, 80, 120, 200, 40, 60, 100)]
    return np.concatenate([rng.normal(size=(1500, 5)), *groups])


def _moons_with_noise(rng):
    return np.concatenate([make_moons(1200, noise=0.06, random_state=0)[0], rng.uniform(-2, 3, (600, 2))])


_SETS = {
    "blobs": lambda rng: make_blobs(1500, 3, centers=12, cluster_std=0.6, random_state=0)[0],
    "groups in a bulk": _groups_in_a_bulk,
    "moons with noise": _moons_with_noise,
}
_SETTINGS = list(product((5, 10, 40), (("leaf", 0), ("eom", 0), ("eom", 200)), (0.0, 0.1, 0.4)))


@pytest.fixture(scope="module", params=_SETS)
def cloud(request):
    return _SETS[request.param](np.random.default_rng(0)).astype(np.float32)


@pytest.fixture(scope="module")
def points():
    return _points()


def _hdbscans_tree(x, min_samples):
    """hdbscan's own spanning tree and linkage, with ties in the order that it happened upon."""
    found = HDBSCAN(min_samples=min_samples, approx_min_span_tree=False, gen_min_span_tree=True).fit(x.astype(float))
    edges = found.minimum_spanning_tree_.to_numpy()
    return SpanningTree(edges[:, :2].astype(np.int32), edges[:, 2]), found.single_linkage_tree_.to_numpy()


def _read_off_the_same(spanning, linkage, min_cluster_size, method, max_cluster_size, epsilon):
    ours = class_tree(spanning, min_cluster_size, method, epsilon, max_cluster_size)
    theirs = _tree_to_labels(
        None,
        linkage.copy(),
        min_cluster_size,
        method,
        cluster_selection_epsilon=epsilon,
        max_cluster_size=max_cluster_size,
    )
    return ours, theirs


@pytest.mark.parametrize("min_samples", [1, 5, 30])
def test_on_hdbscans_linkage_all_is_as_hdbscan_has_it(cloud, min_samples):
    spanning, linkage = _hdbscans_tree(cloud, min_samples)
    for min_cluster_size, (method, largest), epsilon in _SETTINGS:
        ours, theirs = _read_off_the_same(spanning, linkage, min_cluster_size, method, largest, epsilon)
        labels, probabilities, persistence, condensed, _ = theirs
        assert adjusted_rand_score(labels, ours.labels) == 1.0
        np.testing.assert_array_equal(labels < 0, ours.labels < 0)
        np.testing.assert_allclose(ours.probabilities, probabilities, atol=1e-6)
        np.testing.assert_allclose(ours.outlier_scores, outlier_scores(condensed), atol=1e-6)
        # hdbscan gives a class that eom passed over and epsilon took up the persistence of its parts.
        if method == "leaf" or not epsilon:
            np.testing.assert_allclose(ours.persistence, np.sort(persistence)[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "min_samples"), [("fast_hdbscan", 1), ("hdbscan", 1), ("hdbscan", 5), ("hdbscan", 30)]
)
def test_classes_are_those_of_an_exact_fit_of_hdbscan(cloud, engine, min_samples):
    """With min_samples=1 the mutual reachability distance is the distance, and there are no ties to break.

    Where there are, the engine hdbscan breaks them as hdbscan does, which on shuffled rows disagrees with itself.
    """
    spanning = spanning_tree(cloud, min_samples, engine)
    for min_cluster_size, (method, largest), epsilon in _SETTINGS:
        theirs = HDBSCAN(
            min_samples=min_samples,
            min_cluster_size=min_cluster_size,
            cluster_selection_method=method,
            max_cluster_size=largest,
            cluster_selection_epsilon=epsilon,
            approx_min_span_tree=False,
        ).fit(cloud.astype(float))
        ours = class_tree(spanning, min_cluster_size, method, epsilon, largest)
        assert adjusted_rand_score(theirs.labels_, ours.labels) >= 0.999


@pytest.mark.parametrize(("min_samples", "min_cluster_size"), [(5, 40), (30, 10), (30, 40)])
def test_classes_are_those_of_hdbscan_without_what_only_ties_bring_in(cloud, min_samples, min_cluster_size):
    """hdbscan's mode for the reference implementation leaves out whom a class has only at the density it is born at.

    It takes min_samples to be one more and min_cluster_size one less than given.
    """
    theirs = HDBSCAN(
        min_samples=min_samples + 1,
        min_cluster_size=min_cluster_size - 1,
        cluster_selection_method="eom",
        match_reference_implementation=True,
    ).fit(cloud.astype(float))
    ours = class_tree(spanning_tree(cloud, min_samples), min_cluster_size, "eom")
    assert adjusted_rand_score(theirs.labels_, ours.labels) >= 0.999


def _leaves_by_definition(reach, born, min_cluster_size):
    """Remove all edges of the greatest length at once, again and again, until two parts are large or none is."""
    rows = born
    while True:
        within = reach[np.ix_(rows, rows)]
        longest = single_linkage(squareform(within), "single")[-1, 2]
        n_parts, part = connected_components(within < longest, directed=False)
        large = [rows[part == i] for i in range(n_parts) if np.count_nonzero(part == i) >= min_cluster_size]
        if len(large) != 1:
            return [leaf for rows in large for leaf in _leaves_by_definition(reach, rows, min_cluster_size)] or [born]
        rows = large[0]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(9, 80), st.integers(0, 20), st.integers(1, 4), st.integers(2, 8), st.booleans())
def test_a_class_ends_where_enough_galaxies_for_a_class_leave_it_at_once(seed, n, n_copies, min_samples, size, whole):
    """So that neither its one densest galaxy nor a pair at one place says how dense a class is."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, (n, 2)) if whole else rng.normal(size=(n, 2))
    x = np.concatenate([x, x[rng.integers(0, n, n_copies)]]).astype(np.float32)
    for method in ("leaf", "eom"):
        tree = class_tree(spanning_tree(x, min_samples), size, method)
        for node, death in zip(tree.nodes, tree.deaths(), strict=True):
            leaving = tree.condensed[tree.condensed["parent"] == node]
            assert death == leaving["lambda_val"].max()
            assert leaving.loc[leaving["lambda_val"] == death, "child_size"].sum() >= size


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(4, 80), st.integers(0, 30), st.booleans(), st.data())
def test_leaves_are_those_of_the_definition(seed, n_rows, n_copies, whole, data):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, (n_rows, 2)) if whole else rng.normal(size=(n_rows, 2))
    x = np.concatenate([x, x[rng.integers(0, n_rows, n_copies)]]).astype(np.float32)
    min_samples = data.draw(st.integers(1, min(10, len(x) - 1)))
    min_cluster_size = data.draw(st.integers(2, min(12, len(x) - 1)))
    apart = squareform(pdist(x)).astype(np.float32)
    core = np.sort(apart, axis=1)[:, min_samples]
    reach = np.maximum(apart, np.maximum(core[:, None], core)) * (1 - np.eye(len(x)))
    leaves = _leaves_by_definition(reach, np.arange(len(x)), min_cluster_size)
    expected = np.full(len(x), -1)
    for label, rows in enumerate(leaves if len(leaves) > 1 else []):
        expected[rows] = label
    tree = class_tree(spanning_tree(x, min_samples), min_cluster_size)
    np.testing.assert_array_equal(tree.labels < 0, expected < 0)
    assert adjusted_rand_score(expected, tree.labels) == 1.0
    assert np.isfinite(tree.probabilities).all()
    assert ((tree.outlier_scores >= 0) & (tree.outlier_scores <= 1)).all()
    assert ((tree.persistence >= 0) & (tree.persistence <= 1)).all()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    min_samples=st.integers(1, 30),
    min_cluster_size=st.integers(2, 30),
    method=st.sampled_from(["leaf", "eom"]),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_each_class_is_what_hangs_below_its_node(seed, min_samples, min_cluster_size, method, epsilon):
    tree = class_tree(spanning_tree(_points(seed, 150), min_samples), min_cluster_size, method, epsilon)
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


@pytest.mark.parametrize("method", ["leaf", "eom"])
def test_births_and_deaths_are_those_of_the_condensed_tree(points, method):
    tree = class_tree(spanning_tree(points, 7), 10, method)
    rows = tree.condensed
    assert tree.n_classes > 3
    for node, birth, death in zip(tree.nodes, tree.births(), tree.deaths(), strict=True):
        assert rows.loc[rows["child"] == node, "lambda_val"].tolist() == [birth]
        assert rows.loc[rows["parent"] == node, "lambda_val"].max() == death
        assert birth < death


@pytest.mark.parametrize("method", ["leaf", "eom"])
def test_order_of_the_rows_does_not_matter(points, method):
    order = np.random.default_rng(1).permutation(len(points))
    here, there = (class_tree(spanning_tree(x, 7), 10, method) for x in (points, points[order]))
    assert adjusted_rand_score(here.labels[order], there.labels) == 1.0
    np.testing.assert_allclose(here.outlier_scores[order], there.outlier_scores)
    np.testing.assert_allclose(here.persistence, there.persistence)


def test_max_cluster_size_breaks_up_what_is_larger(points):
    spanning = spanning_tree(points, 7)
    assert class_tree(spanning, 10, "eom").sizes().max() > 60
    assert class_tree(spanning, 10, "eom", max_cluster_size=60).sizes().max() <= 60


def _members(tree):
    return {frozenset(np.flatnonzero(tree.labels == label)) for label in range(tree.n_classes)}


@pytest.mark.parametrize("epsilon", [0.0, 0.4])
@pytest.mark.parametrize("option", ["min_lambda", "min_persistence"])
def test_leaves_below_a_bound_are_no_classes_and_the_others_stay(points, option, epsilon):
    spanning = spanning_tree(points, 7)
    every = class_tree(spanning, 10, epsilon=epsilon)
    measured = every.births() if option == "min_lambda" else every.persistence
    bound = float(np.median(measured))
    kept = class_tree(spanning, 10, epsilon=epsilon, **{option: bound})
    expected = {frozenset(np.flatnonzero(every.labels == i)) for i in np.flatnonzero(measured >= bound)}
    assert 0 < len(expected) < every.n_classes
    assert _members(kept) == expected


def _chain(*groups, length):
    """Groups of given sizes, whose rows join at given distances, and the distances at which the first takes them up."""
    rows, distances, start = [], [], 0
    for size, step in groups:
        rows += [(start, start + i) for i in range(1, size)]
        distances += [step] * (size - 1)
        start += size
    starts = np.cumsum([0, *(size for size, _ in groups)])
    rows += [(0, first) for first in starts[1:-1]]
    distances += length
    order = np.argsort(distances, kind="stable")
    return SpanningTree(np.array(rows, dtype=np.int32)[order], np.array(distances, dtype=np.float64)[order])


def test_eom_gives_way_to_denser_nodes_below_a_class_born_at_too_small_a_lambda():
    spanning = _chain((20, 0.4), (20, 0.4), (40, 0.2), length=[0.6, 20.0])
    assert class_tree(spanning, 10, "eom").sizes().tolist() == [40, 40]
    dense = class_tree(spanning, 10, "eom", min_lambda=1.0)
    assert _members(dense) == {frozenset(range(20)), frozenset(range(20, 40))}
    np.testing.assert_allclose(dense.births(), 1 / 0.6, rtol=1e-6)


def test_eom_does_not_tear_a_class_for_a_part_that_would_be_left_out():
    # Persistence of the two groups together is 0.25, of the parts 0.45 and 0.1; of a third group farther off it is 0.9.
    spanning = _chain((20, 1 / 4), (20, 1 / 2.25), (40, 1 / 5), length=[1 / 1.75, 1 / 0.5])
    torn = class_tree(spanning, 10, "eom")
    np.testing.assert_allclose(torn.persistence, [0.9, 0.45, 0.1], atol=1e-6)
    whole = class_tree(spanning, 10, "eom", min_persistence=0.15)
    assert whole.sizes().tolist() == [40, 40]
    np.testing.assert_allclose(whole.persistence, [0.9, 0.25], atol=1e-6)


def test_epsilon_keeps_as_one_what_parts_at_a_smaller_distance():
    spanning = _chain((20, 0.4), (20, 0.4), (40, 0.2), length=[0.8, 2.0])
    assert class_tree(spanning, 10).sizes().tolist() == [40, 20, 20]
    assert class_tree(spanning, 10, epsilon=0.7).sizes().tolist() == [40, 20, 20]
    assert class_tree(spanning, 10, epsilon=0.9).sizes().tolist() == [40, 40]
    assert class_tree(spanning, 10, epsilon=5.0).sizes().tolist() == [40, 40]


def test_a_structureless_cloud_has_no_classes():
    tree = class_tree(spanning_tree(np.random.default_rng(0).uniform(size=(60, 2)), 30), 25)
    assert tree.n_classes == 0
    assert (tree.labels == -1).all()
    assert tree.nodes.shape == tree.parents.shape == tree.persistence.shape == tree.births().shape == (0,)


@pytest.mark.parametrize("method", ["leaf", "eom"])
def test_a_constant_layout_has_no_classes(method):
    tree = class_tree(spanning_tree(np.zeros((300, 2)), 5), 10, method)
    assert tree.n_classes == 0
    assert (tree.labels == -1).all()
    assert (tree.outlier_scores == 0).all()


@pytest.mark.parametrize("method", ["leaf", "eom"])
def test_copies_of_a_point_are_one_class_and_leave_the_others_theirs(points, method):
    """hdbscan calls every class wholly persistent as soon as two rows lie at one place."""
    x = np.concatenate([points, np.full((40, 3), 20.0, dtype=np.float32)])
    tree, without = (class_tree(spanning_tree(some, 7), 10, method) for some in (x, points))
    assert tree.labels[900] >= 0
    assert (np.flatnonzero(tree.labels == tree.labels[900]) >= 900).sum() == 40
    assert _members(without) < _members(tree)
    others = np.setdiff1d(np.arange(tree.n_classes), tree.labels[900])
    np.testing.assert_allclose(tree.persistence[others], without.persistence)
    assert np.isfinite(tree.outlier_scores).all()
    assert (tree.probabilities[900:] == 1).all()


def test_parts_at_infinite_distance_are_classes_of_their_own():
    spanning = _chain((20, 0.4), (30, 0.4), (3, 0.1), length=[np.inf, np.inf])
    tree = class_tree(spanning, 10)
    assert tree.sizes().tolist() == [30, 20]
    assert tree.births().tolist() == [0, 0]
    assert (tree.labels[50:] == -1).all()
    assert class_tree(spanning, 10, epsilon=100.0).sizes().tolist() == [30, 20]


def test_a_tree_survives_being_taken_apart(points):
    tree = class_tree(spanning_tree(points, 7), 10)
    again = ClassTree.from_arrays(tree.to_arrays())
    for name, array in tree.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)
    np.testing.assert_array_equal(again.births(), tree.births())


@pytest.mark.parametrize("option", ["min_samples", "min_cluster_size"])
def test_sizes_of_the_whole_sample_are_refused(option):
    sizes = {"min_samples": 5, "min_cluster_size": 5} | {option: 300}
    with pytest.raises(UserError, match=rf"tree\.{option}=300, but 300 galaxies were selected"):
        check_tree_size(300, **sizes)


def test_classes_as_large_as_the_whole_sample_are_refused():
    with pytest.raises(UserError, match=r"tree\.min_cluster_size=300, but 300 galaxies were selected"):
        class_tree(spanning_tree(np.zeros((300, 2)), 5), 300)
