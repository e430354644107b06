"""EFIGI: real galaxies with attributes that astronomers graded and that training never sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from known_truth.contest import KnownSurvey
from known_truth.representations import BACKBONE, networks_of, networks_with_features, representations_of
from known_truth.runs import Source, option
from rarezoo.cli import announce
from rarezoo.data.tables import read_table
from rarezoo.embeddings import open_embeddings

NEEDED = ("efigi/catalog.csv", "efigi/schema.yaml", "efigi/attributes_test.csv")
# Attribute, least grade: those that make rare classes, of 60, 143, 119 and 81 of the 4,458 galaxies. Half a grade of
# the first three is no rare class: 518, 1,917 and 2,128 have it, and any montage shows several.
GRADED = (
    ("inner-ring", 1.0),
    ("visible-dust", 1.0),
    ("flocculence", 1.0),
    ("multiplicity", 0.5),
)


def attributes(out: Path, data: Path, names: Sequence[str], seed: int, epochs: int) -> KnownSurvey:
    """Survey of EFIGI (Baillard et al. 2011, A&A 532, A74; SDSS images), all of whose galaxies are searched.

    Networks are trained on five graded attributes, each turned into twelve pseudo-votes, which are no volunteers'
    votes; the classes are of four others. EFIGI has no question that the paper's cuts could be made on.

    Parameters
    ----------
    out : absolute folder of the suite
    data : absolute folder with efigi/
    names : of the representations
    seed : of training
    epochs : of training
    """
    name = f"efigi-{epochs}epochs"
    source = Source(
        folder=out / f"{name}-seed{seed}",
        overrides=(
            "data=catalog",
            option("data.catalog", data / "efigi" / "catalog.csv"),
            "schema=from_file",
            option("schema.path", data / "efigi" / "schema.yaml"),
            BACKBONE,
            "data.image_size=96",
            f"seed={seed}",
            "logger=none",
        ),
        networks=networks_of(names, epochs, seed, out),
        with_features=networks_with_features(names),
    )
    with open_embeddings(source.embeddings("bottleneck")) as embeddings:
        ids = embeddings.ids
    classes = graded_classes(data / "efigi" / "attributes_test.csv", ids)
    announce(f"{source.folder.name}: " + ", ".join(f"{graded} {classes[graded].sum()}" for graded in classes))
    return KnownSurvey(
        name=name,
        truth="attributes",
        seed=seed,
        ids=ids,
        classes=classes,
        kinds=np.full(len(ids), "", dtype=object),
        rows=np.arange(len(ids)),
        rows_with_artifacts=np.empty(0, np.int64),
        representations=representations_of(source, names, ids),
    )


def graded_classes(path: Path, ids: NDArray[np.object_]) -> pd.DataFrame:
    """Galaxies of at least some grade, (N, classes) bool; where a grade is not known (-1), a galaxy counts as none.

    Parameters
    ----------
    path : table with id_str and grades 0 to 1
    ids : (N,)
    """
    grades = read_table(path).set_index("id_str").reindex(ids).reset_index(drop=True)
    return pd.DataFrame({f"{attribute}>={least:g}": grades[attribute] >= least for attribute, least in GRADED})
