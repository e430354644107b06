import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from rarezoo.cli import UserError
from rarezoo.clustering import neighbours
from rarezoo.clustering.graph import NeighbourGraph, distances_to
from rarezoo.clustering.neighbours import (
    find_neighbours,
    graph_width,
    prepared_search,
    recall,
    resolve_method,
)
from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore


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
    assert facts["recall"] >= 0.99


@pytest.mark.parametrize("method", ["exact", "ivf"])
@pytest.mark.parametrize("kept", [2, 5, 20])
def test_more_copies_than_neighbours_hang_together_in_one_piece_for_each_place(method, kept):
    x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    places = np.repeat([0, 1, 2], [1200, 300, 21])
    x[:1521] = x[places]
    graph = _graph(x, 20, method)
    _assert_sound(graph, x)
    copies = graph.sliced(kept).indices[:1521]
    rows, columns = np.repeat(np.arange(1521), kept), copies.ravel()
    assert (places[rows] == places[columns]).all()
    edges = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(1521, 1521))
    assert connected_components(edges, return_labels=False) == 3
    assert set(np.bincount(columns)) == {kept}


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
    assert facts["recall"] >= 0.99
    assert 8 < facts["n_probe"] < facts["n_cells"] == 102


def test_ivf_records_no_less_than_the_least_recall_where_its_own_sample_just_reaches_it(cloud):
    # The 32 cells that find 0.9901 of the sample that they are chosen by find 0.9899 of the one that is recorded.
    x = cloud * np.repeat(np.float32([1, 0.6]), [10, 2])
    assert find_neighbours(x, 20, "ivf")[1]["recall"] >= 0.99


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
    assert facts["recall"] >= 0.99
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


def _install_cuml(monkeypatch, gpu):
    package = ModuleType("cuml")
    package.__spec__ = ModuleSpec("cuml", None)
    monkeypatch.setitem(sys.modules, "cuml", package)
    monkeypatch.setitem(sys.modules, "cuml.neighbors", SimpleNamespace(NearestNeighbors=_OnGpu))
    monkeypatch.setattr("numba.cuda.is_available", lambda: gpu)


def test_cuml_is_used_where_there_is_a_gpu(planted, monkeypatch):
    _install_cuml(monkeypatch, gpu=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    graph, facts = find_neighbours(planted.x, 10, "cuml")
    np.testing.assert_array_equal(graph.indices, _graph(planted.x, 10).indices)
    assert facts == {"recall": 1.0}


def test_auto_is_cuml_from_a_number_of_rows_on_where_it_is_installed_and_sees_a_gpu(monkeypatch):
    _install_cuml(monkeypatch, gpu=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [resolve_method("auto", n, 100) for n in (99, 100)] == ["exact", "cuml"]
    assert resolve_method("ivf", 100, 100) == "ivf"
    _install_cuml(monkeypatch, gpu=False)
    assert resolve_method("auto", 100, 100) == "ivf"
    monkeypatch.setitem(sys.modules, "cuml", None)
    monkeypatch.setattr("numba.cuda.is_available", lambda: True)
    assert resolve_method("auto", 100, 100) == "ivf"


def test_the_stage_that_cuml_makes_is_like_that_of_the_exact_search_and_not_taken_for_it(
    planted, tmp_path, monkeypatch
):
    _install_cuml(monkeypatch, gpu=True)
    made = {}
    for method in ("exact", "auto"):
        options = {"neighbours": {"method": method, "exact_below": 100, "width": 20}, "layout": {"n_neighbors": 10}}
        options["tree"] = {"min_samples": 5}
        search = Pipeline.of(planted.x, SearchSettings.model_validate(options), StageStore(tmp_path))
        made[method] = search.neighbours
    exact, found = made.values()
    assert (found.info["parameters"]["method"], found.reused) == ("cuml", False)
    assert [(name, array.dtype, array.shape) for name, array in found.arrays.items()] == [
        (name, array.dtype, array.shape) for name, array in exact.arrays.items()
    ]
    assert list(found.arrays) == ["distances", "indices", "recall"]
    np.testing.assert_array_equal(found.arrays["indices"], exact.arrays["indices"])
    assert found.key != exact.key


@pytest.mark.parametrize(
    ("gpu", "message"), [(False, "needs an NVIDIA GPU"), (True, r"cuml cannot be imported.*install")]
)
def test_cuml_without_a_gpu_or_not_installed_is_refused_with_the_fix(planted, monkeypatch, gpu, message):
    monkeypatch.setattr("numba.cuda.is_available", lambda: gpu)
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


def test_auto_is_exact_below_a_number_of_rows_and_ivf_from_there_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml", None)
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
