import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from rarezoo.cli import UserError
from rarezoo.clustering import neighbours
from rarezoo.clustering.neighbours import (
    NeighbourGraph,
    distances_to,
    find_neighbours,
    graph_width,
    prepared_search,
    recall,
    resolve_method,
)


def _graph(x, n_neighbors, method="exact", seed=0):
    return find_neighbours(x, n_neighbors, method, seed)[0]


def _assert_sound(graph, x):
    """What holds of every graph, whatever found it."""
    np.testing.assert_array_equal(graph.indices[:, 0], np.arange(len(x)))
    assert (graph.distances[:, 0] == 0).all()
    assert (np.diff(graph.distances, axis=1) >= 0).all()
    assert all(len(set(row)) == len(row) for row in graph.indices.tolist())
    apart = np.linalg.norm(x[graph.indices].astype(float) - x[:, None], axis=2)
    np.testing.assert_allclose(graph.distances, apart, rtol=1e-5, atol=1e-6)
    assert (graph.indices.dtype, graph.distances.dtype) == (np.int32, np.float32)


def test_exact_distances_are_those_of_scipy(planted):
    graph, facts = find_neighbours(planted.x, 20, "exact")
    true = np.sort(cdist(planted.x.astype(float), planted.x.astype(float)), axis=1)[:, :20]
    np.testing.assert_allclose(graph.distances[:, 1:], true[:, 1:], rtol=1e-5)
    _assert_sound(graph, planted.x)
    assert facts == {"recall": 1.0}


@pytest.mark.parametrize("offset", [0, 300])
def test_exact_search_tells_near_copies_apart_and_does_so_far_from_the_origin(offset):
    """Where a float32 expansion of |x - y|^2, such as that of faiss's flat index, loses half of the neighbours."""
    rng = np.random.default_rng(0)
    spots = rng.normal(size=(10, 128)) + offset
    x = (np.repeat(spots, 60, axis=0) + 1e-2 * rng.normal(size=(600, 128))).astype(np.float32)
    true = np.sort(cdist(x.astype(float), x.astype(float)), axis=1)[:, 1:20]
    np.testing.assert_allclose(_graph(x, 20).distances[:, 1:], true, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), st.integers(2, 4), st.integers(0, 99), st.sampled_from(["exact", "ivf"]), st.data())
def test_each_row_comes_first_at_distance_0_even_among_copies_of_it(n_rows, n_values, seed, method, data):
    k = data.draw(st.integers(2, n_rows - 1))
    x = np.random.default_rng(seed).integers(0, n_values, size=(n_rows, 2)).astype(np.float32)
    x[0, 0] = n_values
    graph = _graph(x, k, method)
    _assert_sound(graph, x)
    np.testing.assert_allclose(graph.distances, np.sort(cdist(x, x), axis=1)[:, :k], atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "ivf"])
def test_copies_lie_at_distance_exactly_0(method):
    x = np.random.default_rng(0).normal(1000, 1, size=(30, 128)).astype(np.float32)
    x[10:15] = x[10]
    assert (_graph(x, 5, method).distances[10:15] == 0).all()


@pytest.mark.parametrize("method", ["exact", "ivf"])
def test_thousands_of_copies_are_searched(method):
    x = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    x[:4000] = x[0]
    graph, facts = find_neighbours(x, 30, method)
    _assert_sound(graph, x)
    assert (graph.distances[:4000] == 0).all()
    assert facts["recall"] > 0.98


@pytest.fixture(scope="module")
def cloud():
    """Structure enough that a search of few cells misses neighbours."""
    return np.random.default_rng(0).normal(size=(4000, 12)).astype(np.float32)


def test_ivf_searches_as_many_cells_as_the_recall_takes(cloud):
    graph, facts = find_neighbours(cloud, 20, "ivf")
    _assert_sound(graph, cloud)
    true = cdist(cloud[:500].astype(float), cloud.astype(float)).argsort(axis=1)[:, :20]
    shared = [np.isin(a, b).mean() for a, b in zip(graph.indices[:500], true, strict=True)]
    assert facts["recall"] == pytest.approx(np.mean(shared), abs=0.01)
    assert facts["recall"] > 0.98
    assert 8 < facts["n_probe"] < facts["n_cells"] == 102


def test_ivf_searches_all_cells_where_nothing_less_will_do(cloud, monkeypatch):
    monkeypatch.setattr(neighbours, "LEAST_RECALL", 2.0)
    graph, facts = find_neighbours(cloud, 20, "ivf")
    assert facts["n_probe"] == facts["n_cells"]
    assert facts["recall"] == 1.0
    np.testing.assert_allclose(graph.distances, _graph(cloud, 20).distances, rtol=1e-5)


def test_ivf_repeats_itself_for_a_seed(cloud, monkeypatch):
    monkeypatch.setattr(neighbours, "LEAST_RECALL", 0.5)
    one, again, other, none = (_graph(cloud, 20, "ivf", seed) for seed in (3, 3, 4, None))
    np.testing.assert_array_equal(one.indices, again.indices)
    assert (one.indices != other.indices).any()
    np.testing.assert_array_equal(none.indices, _graph(cloud, 20, "ivf", 0).indices)


def test_ivf_fills_up_what_its_cells_come_short_of(cloud, monkeypatch):
    monkeypatch.setattr(neighbours, "LEAST_RECALL", 0.0)
    x = np.ascontiguousarray(cloud[:2000])
    graph, facts = find_neighbours(x, 500, "ivf")
    _assert_sound(graph, x)
    # Eight cells of 39 rows each hold too few for most rows, which are then searched exactly.
    assert facts["n_probe"] == 8
    assert facts["recall"] > 0.9


def test_faiss_says_nothing_of_few_rows(capfd):
    find_neighbours(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), 5, "ivf")
    assert capfd.readouterr() == ("", "")


def test_new_rows_find_the_nearest_of_the_known_ones(cloud):
    known, new = np.ascontiguousarray(cloud[:3000]), cloud[3000:]
    true = np.sort(cdist(new.astype(float), known.astype(float)), axis=1)[:, :7]
    for method, tolerance in (("exact", 0.0), ("ivf", 0.02)):
        search, _ = prepared_search(known, 7, method)
        found = np.sort(distances_to(new, known, search(new)), axis=1)
        assert 1 - np.isclose(found, true, rtol=1e-5).mean() <= tolerance


class _HalfBlindSearch:
    """Stands in for pynndescent: exact, but finds neither the row itself nor, in every third row, a last neighbour."""

    def __init__(self, x, n_neighbors, **options):
        order = cdist(x, x).argsort(axis=1)[:, 1 : n_neighbors + 1]
        order[::3, -1] = -1
        self.neighbor_graph = (order, None)


def test_rows_that_pynndescent_leaves_short_are_searched_exactly(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=_HalfBlindSearch))
    (graph, facts), exact = find_neighbours(planted.x, 10, "pynndescent"), _graph(planted.x, 10)
    np.testing.assert_array_equal(graph.indices, exact.indices)
    np.testing.assert_array_equal(graph.distances, exact.distances)
    assert facts == {"recall": 1.0}


@pytest.mark.skipif(
    "RAREZOO_SLOW_TESTS" not in os.environ, reason="pynndescent compiles for a minute: set RAREZOO_SLOW_TESTS"
)
def test_pynndescent_finds_nearly_all_true_neighbours(planted):
    graph, facts = find_neighbours(planted.x, 15, "pynndescent", seed=3)
    assert facts["recall"] > 0.98
    _assert_sound(graph, planted.x)


class _OnGpu:
    """Stands in for cuml.neighbors.NearestNeighbors, and takes what that takes."""

    def __init__(self, *, n_neighbors=5, algorithm="auto", metric="euclidean", output_type=None):
        assert output_type == "numpy"
        assert algorithm == "brute"
        self.n_neighbors = n_neighbors

    def fit(self, x):
        self.x = x
        return self

    def kneighbors(self, queries, n_neighbors=None, return_distance=True):
        assert not return_distance
        return cdist(queries, self.x).argsort(axis=1)[:, : self.n_neighbors]


def test_cuml_is_used_where_there_is_a_gpu(planted, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cuml", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuml.neighbors", SimpleNamespace(NearestNeighbors=_OnGpu))
    graph, facts = find_neighbours(planted.x, 10, "cuml")
    np.testing.assert_array_equal(graph.indices, _graph(planted.x, 10).indices)
    assert facts == {"recall": 1.0}


@pytest.mark.parametrize(
    ("gpu", "message"), [(False, "needs an NVIDIA GPU"), (True, r"cuml cannot be imported.*install")]
)
def test_cuml_without_a_gpu_or_not_installed_is_refused_with_the_fix(planted, monkeypatch, gpu, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setitem(sys.modules, "cuml", None)
    with pytest.raises(UserError, match=rf"neighbours\.method=cuml: {message}.*neighbours\.method=ivf"):
        find_neighbours(planted.x, 10, "cuml")


def test_recall_counts_the_true_neighbours_of_a_spoiled_graph(planted):
    graph = _graph(planted.x, 11)
    assert recall(graph, planted.x) == 1.0
    far = cdist(planted.x, planted.x).argmax(axis=1)
    spoiled = graph.indices.copy()
    spoiled[:, 6:] = far[:, None]
    assert recall(NeighbourGraph(spoiled, graph.distances), planted.x) == pytest.approx(0.5)


def test_a_neighbour_listed_twice_counts_once():
    x = np.arange(6, dtype=np.float32)[:, None]
    graph = _graph(x, 3)
    graph.indices[:, 2] = graph.indices[:, 1]
    assert recall(graph, x) == pytest.approx(0.5)


def test_a_slice_is_the_graph_of_fewer_neighbours(planted):
    wide, narrow = _graph(planted.x, 20), _graph(planted.x, 8)
    np.testing.assert_allclose(wide.sliced(8).distances, narrow.distances, rtol=1e-6)
    assert wide.sliced(8).indices.flags.c_contiguous
    with pytest.raises(ValueError, match="holds 20 neighbours, 21"):
        wide.sliced(21)


def test_auto_is_exact_below_a_number_of_rows():
    assert [resolve_method("auto", n, 100) for n in (99, 100)] == ["exact", "ivf"]
    assert resolve_method("exact", 10**6, 100) == "exact"
    assert resolve_method("pynndescent", 10, 100) == "pynndescent"


@pytest.mark.parametrize(
    ("n_neighbors", "n_rows", "width"), [(50, 1000, 100), (150, 1000, 150), (15, 80, 79), (15, 10, 15)]
)
def test_a_graph_is_as_wide_as_wanted_or_as_there_are_galaxies_but_never_narrower_than_the_layout(
    n_neighbors, n_rows, width
):
    assert graph_width(100, n_neighbors, n_rows) == width


@pytest.mark.parametrize("n_rows", [1, 2, 15])
def test_as_many_neighbours_as_galaxies_are_refused(n_rows):
    with pytest.raises(UserError, match=rf"layout\.n_neighbors=15, but {n_rows} galaxies were selected"):
        find_neighbours(np.zeros((n_rows, 4), np.float32), 15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_representation_that_is_not_finite_is_refused_with_its_row(value):
    x = np.zeros((9, 4), np.float32)
    x[7, 2] = value
    with pytest.raises(UserError, match=r"1 of 9 selected galaxies.*row 7"):
        find_neighbours(x, 3)


def test_a_constant_representation_is_refused_with_its_value():
    with pytest.raises(UserError, match=r"is the same for all 9 selected galaxies \(0\.25, 0\.25"):
        find_neighbours(np.full((9, 4), 0.25, np.float32), 3)
