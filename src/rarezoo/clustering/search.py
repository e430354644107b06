"""The class search from end to end: select, then every stage from the representation to classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.cohesion import N_NEIGHBORS
from rarezoo.clustering.graph import NeighbourGraph
from rarezoo.clustering.neighbours import check_varied
from rarezoo.clustering.pipeline import Announce, Pipeline, graph_of, neighbour_parameters, stored_neighbours
from rarezoo.clustering.select import Selection, VotedGalaxies, check_galaxies, select
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import Stage, StageStore, content_hash
from rarezoo.clustering.tree import ClassTree
from rarezoo.clustering.whitening import whitening_of


class RowSource(Protocol):
    """An array, in memory or on disk, that gives some of its rows."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray:
        """Rows by their numbers, ascending."""
        ...


class EmbeddedGalaxies(VotedGalaxies, Protocol):
    """Galaxies with a representation and, where votes were predicted, those."""

    @property
    def representation(self) -> RowSource:
        """(N, D)."""
        ...

    def to_pandas(self, rows: NDArray[np.int64], /) -> pd.DataFrame:
        """Who some of them are: id_str, and whatever else is known of them."""
        ...


@dataclass(frozen=True)
class ClassSearch:
    """What a search found. All but `selection.rows` has one row a selected galaxy.

    Attributes
    ----------
    selection : which rows of the embedding were searched
    catalog : (M rows) id_str, and whatever else the embedding says of them
    representation : (M, D), as it was embedded
    pipeline : the same, whitened where the settings ask for it, and the stages that were computed from it
    graph : neighbours in that
    recall : share of the true neighbours that the graph holds, measured on 1,000 galaxies; 1 for the exact search
    layout : (M, n_components), what was clustered; None where that was the neighbour graph
    view : (M, 2), for the eye
    tree : classes
    stages : name -> stage, as the store holds it
    """

    selection: Selection
    catalog: pd.DataFrame
    representation: NDArray[np.float32]
    pipeline: Pipeline
    graph: NeighbourGraph
    recall: float
    layout: NDArray[np.float32] | None
    view: NDArray[np.float32]
    tree: ClassTree
    stages: Mapping[str, Stage]

    def neighbours_as_embedded(self, n_neighbors: int = N_NEIGHBORS) -> NDArray[np.int32]:
        """Nearest neighbours in `representation`, which are not those of the graph where that is of whitened galaxies.

        Parameters
        ----------
        n_neighbors : how many are needed, the galaxy itself not counted; as many as `cohesion` looks at

        Returns
        -------
        (M, k) rows, the galaxy itself first. Without whitening they are the graph's own, all of them; else a stage of
        their own, which searches of any whitening share.
        """
        settings, n_rows = self.pipeline.settings, len(self.representation)
        if not settings.neighbours.whitening:
            return self.graph.indices
        parameters = neighbour_parameters(settings, n_rows) | {"n_neighbors": min(n_neighbors + 1, n_rows - 1)}
        x = self.representation
        return graph_of(stored_neighbours(x, content_hash(x), parameters, self.pipeline.store)).indices

    def summary(self) -> dict[str, Any]:
        """The numbers by which two searches are compared."""
        sizes = self.tree.sizes()
        n_selected = len(self.selection.rows)
        return {
            "n_selected": n_selected,
            "n_classes": self.tree.n_classes,
            "share_in_classes": float(sizes.sum() / n_selected),
            "noise_share": float(1 - sizes.sum() / n_selected),
            "median_class_size": float(np.median(sizes)) if len(sizes) else 0.0,
            "neighbour_recall": self.recall,
        }


def search_classes(
    galaxies: EmbeddedGalaxies,
    settings: SearchSettings,
    store: StageStore,
    announce: Announce = lambda stage: None,
) -> ClassSearch:
    """Search embedded galaxies for classes.

    The selection is not stored: its comparisons cost less than the hash that would find it again. A layout without a
    seed is stored as any other, so that the next search over it is of the same layout.

    Parameters
    ----------
    galaxies : N, of which the votes that the selection cuts on are read, and the representation of those selected
    settings : all that decides the result
    store : where stages are found and put
    announce : called with the name of each stage before it is looked for

    Raises
    ------
    UserError
        if nothing is left to search, two galaxies have one id, a representation is not finite, or the settings ask for
        more galaxies than there are
    """
    announce("selection")
    selection = select(galaxies, settings.selection.cuts)
    x = np.ascontiguousarray(galaxies.representation[selection.rows], dtype=np.float32)
    if not x.shape[1]:
        raise UserError(
            "representation: the embeddings hold votes alone. Convert them together with a file of features: "
            "python -m rarezoo.embeddings.convert FEATURES TARGET --predictions VOTES --schema NAME."
        )
    catalog = galaxies.to_pandas(selection.rows)
    check_galaxies(catalog["id_str"].to_numpy(object), x, selection.rows)
    check_varied(x)
    pipeline = Pipeline.of(whitening_of(x, settings.neighbours.whitening)(x), settings, store)
    announce("neighbours")
    stages = {"neighbours": pipeline.neighbours}
    if settings.layout.method == "umap":
        announce("layout")
        stages["layout"] = pipeline.layout
    announce("view")
    stages["view"] = pipeline.view
    announce("spanning tree")
    stages["spanning"] = pipeline.spanning
    announce("classes")
    stages["tree"] = pipeline.tree
    return ClassSearch(
        selection=selection,
        catalog=catalog,
        representation=x,
        pipeline=pipeline,
        graph=graph_of(stages["neighbours"]),
        recall=float(stages["neighbours"].arrays["recall"]),
        layout=stages["layout"].arrays["layout"] if "layout" in stages else None,
        view=stages["view"].arrays["layout"],
        tree=ClassTree.from_arrays(stages["tree"].arrays),
        stages=stages,
    )
