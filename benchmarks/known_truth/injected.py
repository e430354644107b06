"""Images of other surveys, injected at a known rate into a sample of SDSS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator

from known_truth.contest import KnownSurvey
from known_truth.representations import BACKBONE, networks_with_features, representations_of
from known_truth.runs import Source, option
from known_truth.simulated import membership
from rarezoo.cli import UserError
from rarezoo.data.tables import read_table
from rarezoo.embeddings import open_embeddings
from rarezoo.provenance import written_beside

NEEDED = ("sdss/catalog.csv", "efigi/catalog.csv", "goods/catalog.csv")
MEMBERS = 40
# Kind -> question, and the levels of it that at least half of a galaxy's pseudo-votes are for.
EFIGI_KINDS = {
    "efigi-edge-on": ("inclination", (4,)),
    "efigi-strong-bar": ("bar-length", (4,)),
    "efigi-perturbed": ("perturbation", (3, 4)),
}
HUBBLE = "hubble-goods"
CONTROL = "efigi-at-random"
_LEVELS = range(5)


def injected(out: Path, data: Path, names: Sequence[str], seed: int, trained: Source) -> KnownSurvey:
    """Survey of SDSS cutouts with five classes of 40 injected images each (0.5%), all of which are searched.

    Three are kinds of EFIGI (Baillard et al. 2011, A&A 532, A74): edge-on, with a strong bar, perturbed. One is of
    Hubble GOODS (Willett et al. 2017). `CONTROL` is drawn from EFIGI whatever the kind: where it is found as one class,
    what sets it apart is the survey that the images come from and not the kind of galaxy. It is a control, to be
    reported beside the classes. The surveys differ in resolution, field of view and colours (SDSS cutouts have 200 px,
    EFIGI's 88 and GOODS' 424, all resized to what the network takes), so that this is easier than a search for these
    kinds within one survey. SDSS has galaxies of these kinds too; they count as none, and lower the purity.

    The networks were trained on a simulated survey, and saw none of these images. What they expect of volunteers' votes
    does not carry over, so that no cuts are made.

    Parameters
    ----------
    out : absolute folder of the suite
    data : absolute folder with sdss/, efigi/ and goods/
    names : of the representations
    seed : of the draw, and of the network
    trained : simulated survey whose networks embed the images
    """
    name = trained.folder.name.replace("simulated", "injected")
    source = Source(
        folder=out / name,
        overrides=(
            "data=catalog",
            option("data.catalog", out / name / "catalog.csv"),
            BACKBONE,
            f"seed={seed}",
            "logger=none",
        ),
        with_features=networks_with_features(names),
        trained=trained,
    )
    catalog = draw_catalog(data, seed)
    for file, columns in (("catalog.csv", ["id_str", "file_loc"]), ("truth.csv", ["id_str", "rare_class"])):
        with written_beside(source.folder / file) as temporary:
            catalog[columns].to_csv(temporary, index=False)
    with open_embeddings(source.embeddings("bottleneck")) as embeddings:
        ids = embeddings.ids
    return KnownSurvey(
        name=name.removesuffix(f"-seed{seed}"),
        truth="injected",
        seed=seed,
        ids=ids,
        classes=membership(catalog.set_index("id_str")["rare_class"].reindex(ids)),
        kinds=np.full(len(ids), "", dtype=object),
        rows=np.arange(len(ids)),
        rows_with_artifacts=np.empty(0, np.int64),
        representations=representations_of(source, names, ids),
    )


def draw_catalog(data: Path, seed: int) -> pd.DataFrame:
    """All SDSS cutouts and the injected images in random order: id_str, absolute file_loc, rare_class ("" for SDSS).

    No image is of two classes: of the kinds of EFIGI, those galaxies are drawn that are of one kind alone.

    Raises
    ------
    UserError
        if there are too few images of a class
    """
    rng = np.random.default_rng(seed)
    sdss, efigi, goods = (_images(data / folder) for folder in ("sdss", "efigi", "goods"))
    kinds = pd.DataFrame({kind: _is_graded(efigi, *graded) for kind, graded in EFIGI_KINDS.items()})
    alone = kinds.sum(axis="columns") == 1
    drawn = [_draw(efigi[alone & kinds[kind]], kind, rng) for kind in EFIGI_KINDS]
    others = efigi[~efigi["id_str"].isin(pd.concat(drawn)["id_str"])]
    drawn += [_draw(others, CONTROL, rng), _draw(goods, HUBBLE, rng)]
    catalog = pd.concat([sdss.assign(rare_class=""), *drawn], ignore_index=True)
    return catalog[["id_str", "file_loc", "rare_class"]].sample(frac=1, random_state=rng, ignore_index=True)


def _images(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "catalog.csv")
    return table.assign(file_loc=[str(folder / location) for location in table["file_loc"]])


def _is_graded(efigi: pd.DataFrame, question: str, levels: Sequence[int]) -> pd.Series:
    votes = efigi[[f"{question}_{level}" for level in _LEVELS]].set_axis(_LEVELS, axis="columns")
    # A galaxy whose grade is not known has no votes, and is of no kind.
    return (2 * votes[list(levels)].sum(axis="columns") >= votes.sum(axis="columns")) & votes.any(axis="columns")


def _draw(images: pd.DataFrame, kind: str, rng: Generator) -> pd.DataFrame:
    if len(images) < MEMBERS:
        raise UserError(f"{kind}: there are {len(images)} images, and {MEMBERS} are injected. Give the whole set.")
    return images.sample(MEMBERS, random_state=rng).assign(rare_class=kind)
