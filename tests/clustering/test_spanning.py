import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

from rarezoo.cli import UserError
from rarezoo.clustering.graph import NeighbourGraph
from rarezoo.clustering.spanning import SpanningTree, graph_spanning_tree, spanning_tree

ENGINES = ("fast_hdbscan", "hdbscan")


def _reach(x, min_samples):
    """Mutual reachability distances by definition."""
    apart = squareform(pdist(x.astype(np.float64)))
    core = np.sort(apart, axis=1)[:, min_samples]  # column 0 is the row itself
    reach = np.maximum(apart, np.maximum(core[:, None], core))
    np.fill_diagonal(reach, 0)
    return reach


def _joined_at(tree):
    """Condensed distance matrix: at which distance each two rows are first in one group."""
    n = tree.n_rows
    group, joined = np.arange(n), np.zeros((n, n))
    for (one, other), distance in zip(tree.rows, tree.distances, strict=True):
        mine, theirs = np.flatnonzero(group == group[one]), np.flatnonzero(group == group[other])
        joined[np.ix_(mine, theirs)] = joined[np.ix_(theirs, mine)] = distance
        group[theirs] = group[one]
    return squareform(joined, checks=False)


def _brute_graph(x, width):
    apart = squareform(pdist(x.astype(np.float64))).astype(np.float32)
    np.fill_diagonal(apart, -1)  # the row itself first, also among equal rows
    indices = np.argsort(apart, axis=1, kind="stable")[:, :width]
    return NeighbourGraph(indices.astype(np.int32), np.maximum(np.take_along_axis(apart, indices, axis=1), 0))


def _cloud(seed, n_rows, n_copies, whole=False):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (n_rows, 2)) if whole else rng.normal(size=(n_rows, 3))
    return np.concatenate([x, x[rng.integers(0, n_rows, n_copies)]]).astype(np.float32)


def _same(one, other):
    return np.array_equal(one.rows, other.rows) and np.array_equal(one.distances, other.distances)


@pytest.mark.parametrize("engine", ENGINES)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(2, 60), st.integers(0, 30), st.booleans(), st.data())
def test_rows_join_where_scipys_single_linkage_joins_them(engine, seed, n_rows, n_copies, whole, data):
    x = _cloud(seed, n_rows, n_copies, whole)
    min_samples = data.draw(st.integers(1, min(20, len(x) - 1)))
    tree = spanning_tree(x, min_samples, engine)
    expected = cophenet(linkage(squareform(_reach(x, min_samples)), "single"))
    np.testing.assert_allclose(_joined_at(tree), expected, rtol=1e-5, atol=1e-6)
    assert (np.diff(tree.distances) >= 0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(2, 40), st.integers(0, 30), st.booleans(), st.data())
def test_graph_of_all_neighbours_has_the_tree_of_the_points(seed, n_rows, n_copies, whole, data):
    x = _cloud(seed, n_rows, n_copies, whole)
    min_samples = data.draw(st.integers(1, len(x) - 1))
    tree = graph_spanning_tree(_brute_graph(x, len(x)), min_samples)
    expected = cophenet(linkage(squareform(_reach(x, min_samples)), "single"))
    np.testing.assert_allclose(_joined_at(tree), expected, rtol=1e-5, atol=1e-6)


def test_engines_join_the_same_rows_at_the_same_distances():
    x = _cloud(0, 700, 0)
    fast, slow = (spanning_tree(x, 10, engine) for engine in ENGINES)
    np.testing.assert_allclose(fast.distances, slow.distances, rtol=1e-6)
    np.testing.assert_allclose(_joined_at(fast), _joined_at(slow), rtol=1e-6)


def test_tree_does_not_depend_on_the_number_of_threads():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    x = _cloud(0, 4000, 200)
    many = [spanning_tree(x, 5) for _ in range(3)]
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = spanning_tree(x, 5)
    finally:
        numba.set_num_threads(before)
    assert all(_same(tree, one) for tree in many)


def test_order_of_the_rows_does_not_matter():
    x = _cloud(0, 400, 50)
    order = np.random.default_rng(1).permutation(len(x))
    here, there = spanning_tree(x, 5), spanning_tree(x[order], 5)
    np.testing.assert_array_equal(here.distances, there.distances)
    np.testing.assert_array_equal(squareform(_joined_at(here))[np.ix_(order, order)], squareform(_joined_at(there)))


def test_of_all_that_joins_at_one_distance_the_largest_takes_up_the_others_and_the_smallest_comes_last():
    # Groups of 3, 1 and 2 rows, 2 apart: rows 3 to 5 are the largest.
    x = np.array([[0.0], [1.0], [3.0], [5.0], [6.0], [7.0]])
    tree = spanning_tree(x, 1)
    np.testing.assert_array_equal(tree.rows, [[0, 1], [3, 4], [3, 5], [3, 0], [3, 2]])
    np.testing.assert_array_equal(tree.distances, [1, 1, 1, 2, 2])


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_at_one_place_join_at_zero_distance(engine):
    x = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 1000, axis=0).astype(np.float32)
    tree = spanning_tree(x, 10, engine)
    assert (tree.distances[:3996] == 0).all()
    np.testing.assert_allclose(tree.distances[3996:], np.sort(linkage(x[::1000], "single")[:, 2]), rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_rows", [2, 3, 500])
def test_a_constant_layout_is_one_group_at_zero_distance(engine, n_rows):
    tree = spanning_tree(np.full((n_rows, 3), 7.0), 1, engine)
    if engine == "fast_hdbscan":
        np.testing.assert_array_equal(tree.rows, np.column_stack([np.zeros(n_rows - 1), np.arange(1, n_rows)]))
    np.testing.assert_array_equal(_joined_at(tree), np.zeros(n_rows * (n_rows - 1) // 2))
    np.testing.assert_array_equal(tree.distances, np.zeros(n_rows - 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_two_rows_join_at_their_distance(engine):
    tree = spanning_tree(np.array([[0.0, 0.0], [3.0, 4.0]]), 1, engine)
    assert (np.sort(tree.rows).tolist(), tree.distances.tolist()) == ([[0, 1]], [5.0])


def test_tree_is_exact_in_more_columns_than_fast_hdbscan_takes_exactly():
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    expected = np.sort(linkage(squareform(_reach(x, 5)), "single")[:, 2])
    np.testing.assert_allclose(spanning_tree(x, 5).distances, expected, rtol=1e-5)


def test_parts_that_no_edge_joins_become_one_at_infinite_distance():
    x = np.concatenate([np.random.default_rng(i).normal(size=(n, 2)) + 100 * i for i, n in enumerate((20, 40, 30))])
    tree = graph_spanning_tree(_brute_graph(x, 8), 5)
    np.testing.assert_array_equal(np.isinf(tree.distances), np.arange(89) >= 87)
    assert tree.rows[87:].tolist() == [[20, 60], [20, 0]]  # the largest first, then by size


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(3, 40), st.integers(0, 20), st.integers(2, 12))
def test_graph_joins_what_its_edges_up_to_that_length_connect(seed, n_rows, n_copies, width):
    x = _cloud(seed, n_rows, n_copies, whole=True)
    width = min(width, len(x) - 1)
    graph = _brute_graph(x, width)
    tree = graph_spanning_tree(graph, width - 1)
    edges = np.full((len(x), len(x)), np.inf)
    core = graph.distances[:, -1]
    for row, found in enumerate(graph.indices):
        edges[row, found] = np.maximum(np.maximum(graph.distances[row], core[row]), core[found])
    joined = squareform(_joined_at(tree))
    for length in np.unique(edges):
        part = connected_components(edges <= length if length < np.inf else np.ones_like(edges), directed=False)[1]
        np.testing.assert_array_equal((part[:, None] == part), joined <= length)


def test_min_samples_beyond_the_graph_is_refused():
    graph = _brute_graph(np.random.default_rng(0).normal(size=(50, 2)), 10)
    assert graph_spanning_tree(graph, 9).n_rows == 50
    with pytest.raises(UserError, match=r"tree\.min_samples=10, .*neighbours\.width=10.*neighbours\.width=11 or more"):
        graph_spanning_tree(graph, 10)


def test_min_samples_of_the_whole_sample_is_refused():
    with pytest.raises(UserError, match=r"tree\.min_samples=30, but 30 galaxies were selected"):
        spanning_tree(np.zeros((30, 2)), 30)


def test_a_spanning_tree_survives_being_taken_apart():
    tree = spanning_tree(_cloud(0, 100, 0), 5)
    assert _same(tree, SpanningTree.from_arrays(tree.to_arrays()))
    assert (tree.rows.dtype, tree.distances.dtype) == (np.int32, np.float64)
