from dataclasses import replace

import numpy as np
import pytest

from rarezoo.clustering.search import search_classes
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore


@pytest.mark.parametrize(("layout", "whitening"), [("umap", 0.75), ("none", 0.0)])
def test_thousands_of_identical_galaxies_are_one_class_in_one_piece(planted, tmp_path, layout, whitening):
    """As blank images give."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 16)).astype(np.float32)
    copies = rng.permutation(4000) < 3000
    x[copies] = 3
    galaxies = replace(planted, x=x, vote_fractions=np.empty((4000, 0), np.float32), label_cols=[])
    settings = SearchSettings.model_validate(
        {
            "neighbours": {"method": "exact", "width": 30, "whitening": whitening},
            "layout": {"method": layout, "n_neighbors": 15, "n_components": 3, "seed": 1, "n_epochs": 50},
            "tree": {"min_samples": 5, "min_cluster_size": 10, "method": "eom", "max_cluster_size": 0},
        }
    )
    found = search_classes(galaxies, settings, StageStore(tmp_path / "stages"))
    assert np.isfinite(found.view).all()
    assert np.isfinite(found.tree.probabilities).all()
    label = found.tree.labels[copies.argmax()]
    assert label >= 0
    np.testing.assert_array_equal(found.tree.labels == label, copies)
    if layout == "umap":
        assert np.isfinite(found.layout).all()
        apart = np.abs(found.layout[copies].mean(axis=0) - found.layout[~copies].mean(axis=0)).max()
        assert apart > 2 * found.layout[copies].std(axis=0).max()
