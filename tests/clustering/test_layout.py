import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import umap
from sklearn.manifold import trustworthiness

from rarezoo.cli import UserError
from rarezoo.clustering.layout import SPECTRAL_BELOW, resolve_init, umap_layout
from rarezoo.clustering.neighbours import neighbour_graph


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(3, 16))
    return (centres[np.repeat([0, 1, 2], 60)] + rng.normal(size=(180, 16))).astype(np.float32)


def _layout(x, k_graph=10, **options):
    graph = neighbour_graph(x, k_graph, "exact")
    return umap_layout(x, graph, **({"n_neighbors": 10, "n_components": 2, "seed": 4, "n_epochs": 30} | options))


def test_layout_keeps_neighbours_as_well_as_umap_alone_does(blobs):
    """Not bit for bit: the optimisation amplifies the last bit of the distances."""
    alone = umap.UMAP(n_neighbors=10, min_dist=0.0, random_state=4, n_epochs=30, n_jobs=1).fit_transform(blobs)
    ours, theirs = (trustworthiness(blobs, layout, n_neighbors=10) for layout in (_layout(blobs), alone))
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layout_on_its_own_graph_is_umaps_bit_for_bit(blobs):
    graph = neighbour_graph(blobs, 10, "exact")
    theirs = umap.UMAP(
        n_neighbors=10,
        n_components=3,
        min_dist=0.25,
        random_state=7,
        init="pca",
        n_epochs=30,
        precomputed_knn=(graph.indices, graph.distances),
    )
    ours = umap_layout(blobs, graph, 10, 3, min_dist=0.25, seed=7, init="pca", n_epochs=30)
    np.testing.assert_array_equal(ours, theirs.fit_transform(blobs))


def test_a_wider_graph_is_cut_to_n_neighbors(blobs):
    np.testing.assert_array_equal(_layout(blobs), _layout(blobs, k_graph=40))


def test_a_seeded_layout_comes_out_again_and_keeps_blobs_apart(blobs):
    layout = _layout(blobs, n_components=5, init="pca")
    np.testing.assert_array_equal(layout, _layout(blobs, n_components=5, init="pca"))
    assert layout.shape == (180, 5)
    assert layout.dtype == np.float32
    nearest = neighbour_graph(layout, 6, "exact").indices[:, 1:]
    assert np.mean(nearest // 60 == np.arange(180)[:, None] // 60) > 0.95


def test_options_asked_for_on_purpose_raise_no_warning(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.isfinite(_layout(blobs, init="random")).all()
        assert np.isfinite(_layout(blobs, seed=None, n_epochs=5)).all()


def test_start_is_spectral_below_a_number_of_rows_and_pca_from_there_on():
    assert [resolve_init("auto", SPECTRAL_BELOW + n) for n in (-1, 0)] == ["spectral", "pca"]
    assert resolve_init("random", 10) == "random"


@pytest.mark.parametrize("n_rows", range(3, 16))
def test_few_galaxies_are_laid_out_or_refused_in_words(n_rows):
    x = np.random.default_rng(n_rows).normal(size=(n_rows, 8)).astype(np.float32)
    graph = neighbour_graph(x, 2, "exact")
    refused = pytest.raises(UserError, match=f"but {n_rows} were selected") if n_rows < 8 else nullcontext()
    with refused:
        layout = umap_layout(x, graph, n_neighbors=2, n_components=5, seed=0, n_epochs=2)
        assert layout.shape == (n_rows, 5)
        assert np.isfinite(layout).all()


def test_a_layout_of_copies_is_finite():
    x = np.repeat(np.random.default_rng(0).normal(size=(4, 8)), 20, axis=0).astype(np.float32)
    assert np.isfinite(_layout(x)).all()


def test_too_many_neighbours_are_refused(blobs):
    with pytest.raises(UserError, match=r"layout\.n_neighbors=10 needs at least 12 galaxies, but 11 were selected"):
        _layout(blobs[:11])


def test_more_components_than_dimensions_are_refused_for_pca(blobs):
    with pytest.raises(UserError, match=r"layout\.n_components=17, but the representation has 16 dimensions"):
        _layout(blobs, n_components=17, init="pca")


def test_a_representation_that_is_not_finite_is_refused_before_the_layout(blobs):
    graph = neighbour_graph(blobs, 10, "exact")
    spoiled = blobs.copy()
    spoiled[3, 3] = np.nan
    with pytest.raises(UserError, match="first: row 3 of the selection"):
        umap_layout(spoiled, graph, 10, 2)
