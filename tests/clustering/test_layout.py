import warnings
from contextlib import nullcontext

import numba
import numpy as np
import pytest
import umap
from scipy.sparse import linalg
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from rarezoo.cli import UserError
from rarezoo.clustering.layout import (
    SHARED_COMPONENTS,
    SPECTRAL_BELOW,
    FuzzyGraph,
    check_layout_size,
    fuzzy_graph,
    initial_layout,
    resolve_epochs,
    resolve_init,
    start_components,
    umap_layout,
)
from rarezoo.clustering.neighbours import find_neighbours
from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(3, 16))
    return (centres[np.repeat([0, 1, 2], 60)] + rng.normal(size=(180, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def cloud():
    """One connected piece, whose axes differ in length so that its eigenvectors have one order."""
    rng = np.random.default_rng(1)
    latent = rng.normal(size=(800, 6)) * [5, 4, 3, 2, 1, 1]
    return (latent @ rng.normal(size=(6, 32))).astype(np.float32)


def _fuzzy(x, n_neighbors=10):
    return fuzzy_graph(find_neighbours(x, n_neighbors)[0], n_neighbors)


def _layout(x, n_neighbors=10, n_components=2, init="auto", start_seed=4, **options):
    fuzzy = _fuzzy(x, n_neighbors)
    start = initial_layout(x, fuzzy, n_components, init, start_seed)
    return umap_layout(fuzzy, start, x, **({"seed": 4, "n_epochs": 30} | options))


def _umap(x, graph, **options):
    """umap-learn as published, on our neighbours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return umap.UMAP(precomputed_knn=(graph.indices.copy(), graph.distances.copy()), n_jobs=1, **options).fit(x)


def test_fuzzy_graph_is_umaps_bit_for_bit(cloud):
    graph, _ = find_neighbours(cloud, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        knn = (graph.indices, graph.distances)
        theirs = umap.UMAP(n_neighbors=12, precomputed_knn=knn, random_state=0, transform_mode="graph").fit_transform(
            cloud
        )
    ours = fuzzy_graph(graph, 12).weights
    assert (ours != theirs).nnz == 0
    assert ours.dtype == np.float32
    assert (ours != ours.T).nnz == 0


def test_a_wider_graph_is_cut_to_n_neighbors(blobs):
    wide, narrow = find_neighbours(blobs, 40)[0], find_neighbours(blobs, 10)[0]
    assert (fuzzy_graph(wide, 10).weights != fuzzy_graph(narrow, 10).weights).nnz == 0


def test_fuzzy_graph_survives_being_taken_apart_and_set_read_only(cloud):
    fuzzy = _fuzzy(cloud)
    arrays = {name: array.copy() for name, array in fuzzy.to_arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    again = FuzzyGraph.from_arrays(arrays)
    assert (again.weights != fuzzy.weights).nnz == 0
    for init in ("spectral", "pca"):
        start = initial_layout(cloud, again, 3, init, 0)
        np.testing.assert_array_equal(start, initial_layout(cloud, fuzzy, 3, init, 0))
        layout = umap_layout(again, start, cloud, n_epochs=5)
        np.testing.assert_array_equal(layout, umap_layout(fuzzy, start, cloud, n_epochs=5))


def test_the_number_of_threads_is_as_it_was_before(blobs):
    before = numba.get_num_threads()
    _fuzzy(blobs)
    assert numba.get_num_threads() == before


def test_spectral_start_is_the_eigenvectors_of_the_laplacian(cloud):
    fuzzy = _fuzzy(cloud)
    root = np.sqrt(np.asarray(fuzzy.weights.sum(axis=0)).ravel().astype(float))
    scaled = fuzzy.weights.astype(float).multiply(1 / root[:, None]).multiply(1 / root[None])
    values, vectors = linalg.eigsh(scaled.tocsr(), 6, which="LA", tol=1e-10)
    vectors = vectors[:, np.argsort(-values)[1:]]
    start = initial_layout(cloud, fuzzy, 5, "spectral", 0)
    for column in range(5):
        assert abs(np.corrcoef(start[:, column], vectors[:, column])[0, 1]) > 0.999
    assert np.abs(start).max() == pytest.approx(10, abs=0.01)


def test_pca_start_is_sklearns(cloud):
    start = initial_layout(cloud, _fuzzy(cloud), 5, "pca", 0)
    theirs = PCA(5, svd_solver="full").fit_transform(cloud.astype(float))
    for column in range(5):
        assert abs(np.corrcoef(start[:, column], theirs[:, column])[0, 1]) > 0.999


@pytest.mark.parametrize("init", ["spectral", "pca"])
def test_first_columns_of_a_start_are_the_start_of_fewer_components(cloud, init):
    fuzzy = _fuzzy(cloud)
    assert start_components(fuzzy, cloud.shape, 2, init) == SHARED_COMPONENTS == 5
    wide, narrow = (initial_layout(cloud, fuzzy, n, init, 0) for n in (5, 2))
    for column in range(2):
        assert abs(np.corrcoef(wide[:, column], narrow[:, column])[0, 1]) > 0.9999


def test_a_start_is_not_shared_where_its_first_columns_are_others(blobs, cloud):
    apart = _fuzzy(blobs)
    assert start_components(apart, blobs.shape, 2, "spectral") == 2
    assert start_components(apart, blobs.shape, 2, "pca") == 5
    assert start_components(_fuzzy(cloud), cloud.shape, 9, "spectral") == 9
    assert start_components(apart, (180, 3), 2, "pca") == 3
    assert start_components(apart, (180, 3), 2, "random") == 5
    assert start_components(_fuzzy(cloud[:6], 3), (6, 32), 2, "spectral") == 3


@pytest.mark.parametrize("n_blobs", [2, 7, 14])
@pytest.mark.parametrize("n_components", [2, 5])
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_a_graph_in_pieces_is_laid_out_without_a_warning(n_blobs, n_components, size):
    rng = np.random.default_rng(0)
    centres = size * rng.normal(size=(n_blobs, 16))
    x = (np.repeat(centres, 25, axis=0) + 1e-4 * size * rng.normal(size=(25 * n_blobs, 16))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        layout = _layout(x, n_components=n_components, init="spectral", n_epochs=50)
    assert np.isfinite(layout).all()
    nearest = find_neighbours(layout, 6)[0].indices[:, 1:]
    assert np.mean(nearest // 25 == np.arange(len(x))[:, None] // 25) > 0.95


def test_a_layout_of_copies_is_finite():
    x = np.repeat(np.random.default_rng(0).normal(size=(4, 8)), 20, axis=0).astype(np.float32)
    assert np.isfinite(_layout(x, n_components=5, init="spectral")).all()


def test_eigenvectors_that_do_not_converge_leave_a_random_start_and_a_warning(cloud, monkeypatch):
    def stuck(*args, **kwargs):
        raise linalg.ArpackNoConvergence("stuck", [], [])

    monkeypatch.setattr("scipy.sparse.linalg.eigsh", stuck)
    with pytest.warns(UserWarning, match="Falling back to random"):
        start = initial_layout(cloud, _fuzzy(cloud), 5, "spectral", 0)
    assert (start.std(axis=0) > 4).all()


@pytest.mark.parametrize("options", [{"n_epochs": 30}, {"n_epochs": None}, {"n_epochs": 8}, {"densmap": True}])
def test_layout_is_umaps_bit_for_bit_from_the_same_start(blobs, options):
    graph, _ = find_neighbours(blobs, 10)
    fuzzy = fuzzy_graph(graph, 10)
    start = initial_layout(blobs, fuzzy, 3, "pca", 0)
    options = {"min_dist": 0.25, "n_epochs": 40} | options
    ours = umap_layout(fuzzy, start, blobs, seed=7, **options)
    theirs = _umap(blobs, graph, n_neighbors=10, n_components=3, random_state=7, init=start.copy(), **options)
    np.testing.assert_array_equal(ours, theirs.embedding_)
    # It drops edges on the way, of a copy.
    assert (fuzzy.weights != fuzzy_graph(graph, 10).weights).nnz == 0


@pytest.mark.parametrize("init", ["pca", "spectral"])
def test_fifteen_components_are_umaps_from_the_same_start_and_keep_neighbours(init):
    x = np.random.default_rng(2).normal(size=(400, 32)).astype(np.float32) * np.linspace(4, 1, 32, dtype=np.float32)
    graph, _ = find_neighbours(x, 10)
    fuzzy = fuzzy_graph(graph, 10)
    assert start_components(fuzzy, x.shape, 15, init) == 15
    start = initial_layout(x, fuzzy, 15, init, 0)
    assert np.abs(np.corrcoef(start, rowvar=False) - np.eye(15)).max() < 0.1
    ours = umap_layout(fuzzy, start, x, seed=7, n_epochs=50)
    options = {"min_dist": 0.0, "random_state": 7, "n_epochs": 50}
    theirs = _umap(x, graph, n_neighbors=10, n_components=15, init=start.copy(), **options)
    assert ours.shape == (400, 15)
    np.testing.assert_array_equal(ours, theirs.embedding_)
    flat = umap_layout(fuzzy, start[:, :2].copy(), x, seed=7, n_epochs=50)
    assert trustworthiness(x, ours, n_neighbors=10) > trustworthiness(x, flat, n_neighbors=10) > 0.6


@pytest.mark.parametrize("init", ["spectral", "pca", "random"])
def test_layout_keeps_neighbours_as_well_as_umap_from_its_own_start(cloud, init):
    graph, _ = find_neighbours(cloud, 10)
    theirs = _umap(cloud, graph, n_neighbors=10, min_dist=0.0, random_state=4, init=init, n_epochs=100).embedding_
    ours = _layout(cloud, init=init, n_epochs=100)
    kept = [trustworthiness(cloud, layout, n_neighbors=10) for layout in (ours, theirs)]
    assert kept[0] == pytest.approx(kept[1], abs=0.02)


def test_a_seeded_layout_comes_out_again_and_keeps_blobs_apart(blobs):
    layout = _layout(blobs, n_components=5, init="pca")
    np.testing.assert_array_equal(layout, _layout(blobs, n_components=5, init="pca"))
    assert (layout != _layout(blobs, n_components=5, init="pca", seed=5)).any()
    assert layout.shape == (180, 5)
    assert layout.dtype == np.float32
    nearest = find_neighbours(layout, 6)[0].indices[:, 1:]
    assert np.mean(nearest // 60 == np.arange(180)[:, None] // 60) > 0.95


def test_a_layout_without_a_seed_is_finite_and_raises_no_warning(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.isfinite(_layout(blobs, seed=None, start_seed=None, n_epochs=5)).all()


def _pipeline(x, folder, **layout):
    layout = {"n_neighbors": 10, "n_components": 3, "init": "pca", "n_epochs": 5} | layout
    settings = SearchSettings.model_validate({"layout": layout, "tree": {"min_samples": 5}})
    return Pipeline.of(x, settings, StageStore(folder))


@pytest.mark.parametrize(("seed", "parallel"), [(None, True), (0, False), (3, False)])
def test_a_layout_with_a_seed_is_made_on_one_thread_and_its_stage_says_which(
    blobs, tmp_path, monkeypatch, seed, parallel
):
    said = []

    def recorded(*arguments, **options):
        said.append(options["parallel"])
        return arguments[9], {}

    monkeypatch.setattr("umap.umap_.simplicial_set_embedding", recorded)
    stage = _pipeline(blobs, tmp_path, seed=seed).layout
    assert said == [parallel]
    assert stage.info["parameters"]["seed"] == seed


def test_another_min_dist_or_densmap_makes_the_layouts_anew_and_only_what_follows(blobs, tmp_path):
    def made(**layout):
        pipeline = _pipeline(blobs, tmp_path, **layout)
        assert len(pipeline.view.arrays["layout"]) == len(pipeline.tree.arrays["labels"])
        counts = pipeline.store.summary()["stages"]
        return {name: counted["computed"] for name, counted in counts.items() if counted["computed"]}

    from_layout = {"layout": 2, "spanning": 1, "tree": 1}
    assert made() == {"neighbours": 1, "fuzzy": 1, "start": 1} | from_layout
    for other in ({"min_dist": 0.2}, {"densmap": True}, {"densmap": True, "min_dist": 0.2}):
        assert made(**other) == from_layout
        assert made(**other) == {}


def test_start_is_spectral_below_a_number_of_rows_and_pca_from_there_on():
    assert [resolve_init("auto", SPECTRAL_BELOW + n) for n in (-1, 0)] == ["spectral", "pca"]
    assert resolve_init("random", 10) == "random"


@pytest.mark.parametrize("n_rows", range(3, 16))
def test_few_galaxies_are_laid_out_or_refused_in_words(n_rows):
    x = np.random.default_rng(n_rows).normal(size=(n_rows, 8)).astype(np.float32)
    refused = pytest.raises(UserError, match=f"but {n_rows} were selected") if n_rows < 8 else nullcontext()
    with refused:
        layout = _layout(x, n_neighbors=2, n_components=5, n_epochs=2)
        assert layout.shape == (n_rows, 5)
        assert np.isfinite(layout).all()


def test_too_many_neighbours_are_refused():
    with pytest.raises(UserError, match=r"layout\.n_neighbors=10 needs at least 12 galaxies, but 11 were selected"):
        check_layout_size((11, 16), 10, 2, "pca")


def test_more_components_than_dimensions_are_refused_for_pca(blobs):
    with pytest.raises(UserError, match=r"layout\.n_components=17, but the representation has 16 dimensions"):
        initial_layout(blobs, _fuzzy(blobs), 17, "pca")


@pytest.mark.parametrize(
    ("given", "n_rows", "densmap", "expected"),
    [(None, 19_999, False, None), (None, 20_000, False, 100), (None, 20_000, True, None), (7, 20_000, False, 7)],
)
def test_large_samples_have_fewer_epochs_unless_the_user_says_otherwise(given, n_rows, densmap, expected):
    assert resolve_epochs(given, n_rows, densmap) == expected
