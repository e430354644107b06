"""From the settings of the data to a checked catalog and its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rarezoo.cli import console
from rarezoo.config import Hdf5Data, ImageSettings, ShardData, SimulatedData
from rarezoo.data.catalog import Catalog, read_catalog
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.data.simulate.survey import simulate_survey
from rarezoo.data.sources import catalog_hdf5, catalog_shards


def prepare_catalog(settings: ImageSettings, label_cols: Sequence[str], decision_tree: Mapping[str, Any]) -> Catalog:
    """Read and check the catalog that the settings name.

    Parameters
    ----------
    label_cols : vote columns to read and check; none to embed
    decision_tree : that the volunteers of a simulated survey answer
    """
    if isinstance(settings, SimulatedData):
        made = simulate_survey(
            settings.root,
            settings.n_galaxies,
            settings.survey_size,
            settings.survey_seed,
            decision_tree,
            settings.rare_share_min,
            settings.rare_share_max,
            settings.artifact_share,
        )
        console.print(f"simulated survey {'made' if made else 'found'} at {settings.root}")
    elif isinstance(settings, ShardData):
        made = catalog_shards(settings.shards, settings.catalog)
        console.print(f"catalog of the shards {'made' if made else 'found'} at {settings.catalog}", markup=False)
    elif isinstance(settings, Hdf5Data):
        made = catalog_hdf5(settings.images, settings.dataset, settings.ids, settings.catalog)
        console.print(f"catalog of the images {'made' if made else 'found'} at {settings.catalog}", markup=False)
    return read_catalog(
        settings.catalog,
        label_cols,
        image_root=settings.image_root,
        on_bad_votes=settings.on_bad_votes,
        fractional_votes=settings.fractional_votes,
    )


def make_datamodule(settings: ImageSettings, catalog: Catalog, seed: int, **instead: Any) -> GalaxyDataModule:
    """Batches of the catalog's images as the settings say, or as `instead` does for the options that it names."""
    options = {
        "size": settings.image_size,
        "channels": settings.channels,
        "batch_size": settings.batch_size,
        "workers": settings.workers,
        "validation_share": settings.validation_share,
        "test_share": settings.test_share,
        "crop": settings.crop,
        "max_failed_share": settings.max_failed_share,
    }
    return GalaxyDataModule(catalog, seed=seed, **{**options, **instead})
