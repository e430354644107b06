"""Run a model over a catalog and write what it gives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rarezoo.cli import UserError, progress
from rarezoo.config import EmbeddingSettings
from rarezoo.data.catalog import Catalog
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.embeddings.redundancy import FeatureMoments
from rarezoo.embeddings.writer import EmbeddedBatch, embed_batch, write_embeddings
from rarezoo.models.vote_model import VoteModel


def choose_device(name: str) -> torch.device:
    """Device by its torch name; auto takes a GPU where there is one.

    Raises
    ------
    UserError
        if torch does not know or does not have the device
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"embedding.device={name}: cannot be used here ({reason}). Use auto, cpu or cuda.") from error
    return device


def feature_moments(model: VoteModel, wanted: bool = True) -> dict[str, FeatureMoments]:
    """Empty moments of each space whose redundancy can be studied; of none where that is not wanted.

    Returns
    -------
    features (before the bottleneck) and, where there is a bottleneck, representation
    """
    if not wanted:
        return {}
    widths = {"features": model.n_features, "representation": model.representation_dim}
    if model.spec.bottleneck_dim is None:
        del widths["representation"]
    return {space: FeatureMoments(width) for space, width in widths.items()}


def embed_catalog(
    model: VoteModel,
    catalog: Catalog,
    data: GalaxyDataModule,
    path: Path,
    settings: EmbeddingSettings,
    provenance: Mapping[str, Any],
    moments: Mapping[str, FeatureMoments] | None = None,
) -> dict[str, Any]:
    """Write the embeddings of every image of a catalog to `path`.

    Parameters
    ----------
    data : gives the catalog's images in the size and channels that the model was trained on
    provenance : further attributes of the file
    moments : of `feature_moments`, to which every galaxy is added; by default none are gathered

    Returns
    -------
    dict with n_galaxies, n_failed, dim and images_per_second
    """
    device = choose_device(settings.device)
    model = model.to(device)
    failures = data.failure_log()

    def batches() -> Iterator[EmbeddedBatch]:
        loader = data.predict_dataloader()
        for batch in progress(loader, "embedding", total=len(loader), unit="batch"):
            failures.add(batch["failed"])
            failures.check(len(catalog))
            embedded = embed_batch(model, batch, device)
            for space, gathered in (moments or {}).items():
                gathered.update(getattr(embedded, space))
            yield embedded

    start = time.perf_counter()
    summary = write_embeddings(path, catalog, batches(), failures, model, provenance, settings.dtype)
    speed = summary["n_galaxies"] / (time.perf_counter() - start)
    return {**summary, "images_per_second": round(speed, 1)}
