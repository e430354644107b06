import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from rarezoo.cli import UserError
from rarezoo.clustering.neighbours import NeighbourGraph, neighbour_graph, recall, resolve_method


def test_exact_distances_are_those_of_scipy(planted):
    graph = neighbour_graph(planted.x, 20, "exact")
    true = np.sort(cdist(planted.x.astype(float), planted.x.astype(float)), axis=1)[:, :20]
    np.testing.assert_allclose(graph.distances[:, 1:], true[:, 1:], rtol=1e-5)
    assert (graph.indices.dtype, graph.distances.dtype) == (np.int32, np.float32)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), st.integers(1, 4), st.integers(0, 99), st.data())
def test_each_row_comes_first_at_distance_0_even_among_copies_of_it(n_rows, n_values, seed, data):
    k = data.draw(st.integers(2, n_rows - 1))
    x = np.random.default_rng(seed).integers(0, n_values, size=(n_rows, 2)).astype(np.float32)
    graph = neighbour_graph(x, k, "exact")
    np.testing.assert_array_equal(graph.indices[:, 0], np.arange(n_rows))
    np.testing.assert_allclose(graph.distances, np.sort(cdist(x, x), axis=1)[:, :k], atol=1e-6)
    assert all(len(set(row)) == k for row in graph.indices.tolist())


def test_copies_lie_at_distance_exactly_0():
    x = np.random.default_rng(0).normal(1000, 1, size=(30, 128)).astype(np.float32)
    x[10:15] = x[10]
    assert (neighbour_graph(x, 5, "exact").distances[10:15] == 0).all()


class _HalfBlindSearch:
    """Stands in for pynndescent: exact, but finds neither the row itself nor, in every third row, a last neighbour."""

    def __init__(self, x, n_neighbors, **options):
        order = cdist(x, x).argsort(axis=1)[:, 1 : n_neighbors + 1]
        order[::3, -1] = -1
        self.neighbor_graph = (order, None)


def test_rows_that_the_approximate_search_leaves_short_are_searched_exactly(planted, monkeypatch):
    monkeypatch.setattr("pynndescent.NNDescent", _HalfBlindSearch)
    graph, exact = (neighbour_graph(planted.x, 10, method) for method in ("approximate", "exact"))
    np.testing.assert_array_equal(graph.indices, exact.indices)
    np.testing.assert_array_equal(graph.distances, exact.distances)


@pytest.mark.skipif(
    "RAREZOO_SLOW_TESTS" not in os.environ, reason="pynndescent compiles for a minute: set RAREZOO_SLOW_TESTS"
)
def test_approximate_graph_holds_nearly_all_true_neighbours(planted):
    graph = neighbour_graph(planted.x, 15, "approximate", seed=3)
    assert recall(graph, planted.x) > 0.98
    np.testing.assert_array_equal(graph.indices[:, 0], np.arange(len(planted.x)))
    assert (np.diff(graph.distances, axis=1) >= 0).all()
    apart = np.linalg.norm(planted.x[graph.indices] - planted.x[:, None], axis=2)
    np.testing.assert_allclose(graph.distances, apart, rtol=1e-4)


def test_recall_counts_the_true_neighbours_of_a_spoiled_graph(planted):
    graph = neighbour_graph(planted.x, 11, "exact")
    assert recall(graph, planted.x) == 1.0
    far = cdist(planted.x, planted.x).argmax(axis=1)
    spoiled = graph.indices.copy()
    spoiled[:, 6:] = far[:, None]
    assert recall(NeighbourGraph(spoiled, graph.distances), planted.x) == pytest.approx(0.5)


def test_a_neighbour_listed_twice_counts_once():
    x = np.arange(6, dtype=np.float32)[:, None]
    graph = neighbour_graph(x, 3, "exact")
    graph.indices[:, 2] = graph.indices[:, 1]
    assert recall(graph, x) == pytest.approx(0.5)


def test_a_slice_is_the_graph_of_fewer_neighbours(planted):
    wide, narrow = neighbour_graph(planted.x, 20, "exact"), neighbour_graph(planted.x, 8, "exact")
    np.testing.assert_allclose(wide.sliced(8).distances, narrow.distances, rtol=1e-6)
    assert wide.sliced(8).indices.flags.c_contiguous
    with pytest.raises(ValueError, match="holds 20 neighbours, 21"):
        wide.sliced(21)


def test_auto_is_exact_below_a_number_of_rows():
    assert [resolve_method("auto", n, 100) for n in (99, 100)] == ["exact", "approximate"]
    assert resolve_method("exact", 10**6, 100) == "exact"


@pytest.mark.parametrize("n_rows", [1, 2, 15])
def test_as_many_neighbours_as_galaxies_are_refused(n_rows):
    with pytest.raises(UserError, match=rf"layout\.n_neighbors=15, but {n_rows} galaxies were selected"):
        neighbour_graph(np.zeros((n_rows, 4), np.float32), 15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_representation_that_is_not_finite_is_refused_with_its_row(value):
    x = np.zeros((9, 4), np.float32)
    x[7, 2] = value
    with pytest.raises(UserError, match=r"1 of 9 selected galaxies.*row 7"):
        neighbour_graph(x, 3)
