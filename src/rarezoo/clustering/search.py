"""The class search from end to end: select, neighbours, layout, tree, each stage stored so that it is paid for once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.layout import check_layout_size, resolve_init, umap_layout
from rarezoo.clustering.neighbours import NeighbourGraph, check_representation, neighbour_graph, recall, resolve_method
from rarezoo.clustering.select import Selection, VotedGalaxies, select
from rarezoo.clustering.settings import LayoutSettings, SearchSettings
from rarezoo.clustering.stages import Stage, StageStore, content_hash
from rarezoo.clustering.tree import ClassTree, build_tree, check_tree_size
from rarezoo.provenance import versions

Announce = Callable[[str], None]


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


@dataclass(frozen=True)
class ClassSearch:
    """What a search found. All but `selection.rows` has one row a selected galaxy.

    Attributes
    ----------
    selection : which rows of the embedding were searched
    graph : neighbours in the representation
    recall : share of the true neighbours that the graph holds, measured on 1,000 galaxies; 1 for the exact search
    layout : (M, n_components), what was clustered
    view : (M, 2), for the eye
    tree : classes
    stages : neighbours, layout, view and tree, as the store holds them
    """

    selection: Selection
    graph: NeighbourGraph
    recall: float
    layout: NDArray[np.float32]
    view: NDArray[np.float32]
    tree: ClassTree
    stages: Mapping[str, Stage]

    def summary(self) -> dict[str, float | int]:
        """The numbers by which two searches are compared."""
        sizes = self.tree.sizes()
        n_selected = len(self.selection.rows)
        return {
            "n_selected": n_selected,
            "n_classes": self.tree.n_classes,
            "share_in_classes": float(sizes.sum() / n_selected),
            "median_class_size": float(np.median(sizes)) if len(sizes) else 0.0,
            "neighbour_recall": self.recall,
            "seconds_computed": sum(stage.info["seconds"] for stage in self._distinct() if not stage.reused),
            "stages_reused": sum(stage.reused for stage in self._distinct()),
        }

    def _distinct(self) -> list[Stage]:
        return list({stage.key: stage for stage in reversed(list(self.stages.values()))}.values())


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
        if nothing is left to search, or the settings ask for more galaxies than there are
    """
    announce("selection")
    selection = select(galaxies, settings.selection.cuts)
    x = np.ascontiguousarray(galaxies.representation[selection.rows], dtype=np.float32)
    _check(x, settings)
    announce("neighbours")
    neighbours = _neighbours(x, settings, store)
    announce("layout")
    layout = _layout(x, neighbours, settings.layout, store)
    announce("view")
    # In two dimensions the key is that of the layout, which is then found, not computed.
    view = _layout(x, neighbours, settings.layout.model_copy(update={"n_components": 2}), store)
    announce("tree")
    tree = _tree(layout, settings, store)
    return ClassSearch(
        selection=selection,
        graph=_graph(neighbours),
        recall=float(neighbours.arrays["recall"]),
        layout=layout.arrays["layout"],
        view=view.arrays["layout"],
        tree=ClassTree.from_arrays(tree.arrays),
        stages={"neighbours": neighbours, "layout": layout, "view": view, "tree": tree},
    )


def _check(x: NDArray[np.float32], settings: SearchSettings) -> None:
    """Refuse what any stage would refuse, before the first of them takes its minutes."""
    if not x.shape[1]:
        raise UserError(
            "representation: the embeddings hold votes alone. Convert them together with a file of features: "
            "python -m rarezoo.embeddings.convert FEATURES TARGET --predictions VOTES --schema NAME."
        )
    check_representation(x)
    layout, tree = settings.layout, settings.tree
    for n_components in (layout.n_components, 2):
        check_layout_size(x.shape, layout.n_neighbors, n_components, resolve_init(layout.init, len(x)))
    check_tree_size(len(x), tree.min_samples, tree.min_cluster_size)


def _neighbours(x: NDArray[np.float32], settings: SearchSettings, store: StageStore) -> Stage:
    n_neighbors, seed = settings.layout.n_neighbors, settings.layout.seed
    method = resolve_method(settings.neighbours.method, len(x), settings.neighbours.exact_below)

    def compute() -> dict[str, NDArray]:
        graph = neighbour_graph(x, n_neighbors, method, seed=seed)
        share = 1.0 if method == "exact" else recall(graph, x)
        return {"indices": graph.indices, "distances": graph.distances, "recall": np.array(share)}

    parameters: dict[str, object] = {"n_neighbors": n_neighbors, "method": method}
    inputs = {"representation": content_hash(x)}
    if method == "approximate":
        parameters["seed"] = seed
        inputs["pynndescent"] = versions().get("pynndescent", "")
    return store.get("neighbours", parameters, inputs, compute)


def _graph(neighbours: Stage) -> NeighbourGraph:
    return NeighbourGraph(neighbours.arrays["indices"], neighbours.arrays["distances"])


def _layout(x: NDArray[np.float32], neighbours: Stage, settings: LayoutSettings, store: StageStore) -> Stage:
    parameters = settings.model_dump() | {"init": resolve_init(settings.init, len(x))}
    # A new version of umap-learn may lay out otherwise, and a stored layout must not hide that.
    inputs = {
        "representation": neighbours.info["inputs"]["representation"],
        "neighbours": neighbours.digest,
        "umap-learn": versions().get("umap-learn", ""),
    }
    return store.get("layout", parameters, inputs, lambda: {"layout": umap_layout(x, _graph(neighbours), **parameters)})


def _tree(layout: Stage, settings: SearchSettings, store: StageStore) -> Stage:
    parameters = settings.tree.model_dump()
    inputs = {"layout": layout.digest, "hdbscan": versions().get("hdbscan", "")}
    return store.get("tree", parameters, inputs, lambda: build_tree(layout.arrays["layout"], **parameters).to_arrays())
