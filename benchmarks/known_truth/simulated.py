"""Simulated surveys, whose rare classes were planted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from known_truth.contest import KnownSurvey
from known_truth.representations import BACKBONE, networks_of, networks_with_features, representations_of
from known_truth.runs import REPO, Source
from rarezoo.clustering.select import select
from rarezoo.clustering.settings import SelectionSettings
from rarezoo.data.tables import read_table
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.store import Embeddings

VALIDATION_SHARE = 0.05


def simulated_source(
    out: Path,
    n_galaxies: int,
    size: int,
    seed: int,
    *,
    names: Sequence[str],
    test_share: float,
    epochs: int,
    rare_shares: tuple[float, float],
    trained: Source | None = None,
) -> Source:
    """A simulated survey, which the scripts make where it is not below the working directory's outputs/simulated.

    Parameters
    ----------
    out : absolute folder of the suite
    n_galaxies, size, seed : of the survey, its images in px; the seed is that of training too
    names : of the representations
    test_share : of the galaxies that training does not see, beside the 5% that it validates on
    epochs : of training
    rare_shares : of the rarest planted class and of the most frequent
    trained : source whose networks embed this survey
    """
    overrides = (
        "data=simulated",
        f"data.n_galaxies={n_galaxies}",
        f"data.survey_size={size}",
        f"data.survey_seed={seed}",
        f"data.rare_share_min={rare_shares[0]}",
        f"data.rare_share_max={rare_shares[1]}",
        f"data.test_share={test_share}",
        f"data.validation_share={VALIDATION_SHARE}",
        BACKBONE,
        # As in experiment=demo, which trains about as long.
        "backbone.drop_path_rate=0.0",
        f"seed={seed}",
        "logger=none",
    )
    return Source(
        folder=out / f"simulated-{n_galaxies}-seed{seed}",
        overrides=overrides,
        networks={} if trained else networks_of(names, epochs, seed, out),
        with_features=networks_with_features(names),
        trained=trained,
    )


def simulated(source: Source, names: Sequence[str], seed: int) -> KnownSurvey:
    """Survey of galaxies of which some are of planted classes, and some are spoilt by planted artifacts.

    The rows to search are those that pass the paper's cuts on the votes that the bottleneck's network expects, for all
    representations alike. Members that the cuts remove are known, and cannot be found.

    Parameters
    ----------
    source : as `simulated_source` gives it
    names : of the representations
    """
    with open_embeddings(source.embeddings("bottleneck")) as embeddings:
        ids = embeddings.ids
        rows, rows_with_artifacts = (_selected(embeddings, name) for name in ("featured", "artifacts"))
        table = Path(json.loads(embeddings.attributes["config"])["data"]["truth"])
    truth = read_table(table).set_index("id_str")[["rare_class", "artifact"]].reindex(ids).fillna("")
    return KnownSurvey(
        name=source.folder.name.removesuffix(f"-seed{seed}"),
        truth="planted",
        seed=seed,
        ids=ids,
        classes=membership(truth["rare_class"]),
        kinds=truth["artifact"].to_numpy(object),
        rows=rows,
        rows_with_artifacts=rows_with_artifacts,
        representations=representations_of(source, names, ids),
    )


def membership(named: pd.Series) -> pd.DataFrame:
    """Class of each galaxy by name, (N,), "" for none -> (N, K) bool, one column a class, by name."""
    of = named.to_numpy(object)
    return pd.DataFrame({name: of == name for name in sorted(set(of) - {""})}, index=pd.RangeIndex(len(of)))


def _selected(embeddings: Embeddings, selection: str) -> NDArray[np.int64]:
    cuts = yaml.safe_load((REPO / "conf" / "selection" / f"{selection}.yaml").read_text())
    return select(embeddings, SelectionSettings.model_validate(cuts).cuts).rows
