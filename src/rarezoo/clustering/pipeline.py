"""The stages from a representation to classes, each looked for in a store before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.clustering.graph import NeighbourGraph
from rarezoo.clustering.layout import (
    FuzzyGraph,
    check_layout_size,
    fuzzy_graph,
    initial_layout,
    resolve_epochs,
    resolve_init,
    start_components,
    umap_layout,
)
from rarezoo.clustering.neighbours import (
    check_representation,
    find_neighbours,
    graph_width,
    resolve_method,
)
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.spanning import SpanningTree, graph_spanning_tree, spanning_tree
from rarezoo.clustering.stages import Stage, StageStore, content_hash
from rarezoo.clustering.tree import ClassTree, check_tree_size, class_tree
from rarezoo.provenance import versions

Announce = Callable[[str], None]

_VIEW_DIMENSIONS = 2
# Packages whose new versions may compute something else: a stored stage must not hide that.
_MADE_BY: Mapping[str, tuple[str, ...]] = {
    "exact": ("scikit-learn",),
    "ivf": ("faiss-cpu",),
    "pynndescent": ("pynndescent",),
    "cuml": ("cuml",),
    # The eigenvectors are SciPy's, and the principal components scikit-learn's.
    "start": ("umap-learn", "scipy", "scikit-learn"),
    "layout": ("umap-learn",),
    "fast_hdbscan": ("fast_hdbscan",),
    "hdbscan": ("hdbscan",),
    "graph": ("scipy",),
}


@dataclass(frozen=True)
class Pipeline:
    """A representation on its way to classes.

    Attributes
    ----------
    x : (N, D) float32
    settings : all that decides the classes; the selection, which came before, has no part in it
    store : where stages are found and put
    sha256 : of `x`, as `content_hash` gives it
    known : name -> stage, of neighbours, layout or spanning, that was computed elsewhere

    Each stage is looked for when it is first asked for, and then kept: to find one in the store, all of it is hashed.
    """

    x: NDArray[np.float32]
    settings: SearchSettings
    store: StageStore
    sha256: str
    known: Mapping[str, Stage] = field(default_factory=dict)

    @classmethod
    def of(cls, x: NDArray[np.float32], settings: SearchSettings, store: StageStore) -> Pipeline:
        """Refuse what any stage would refuse, before the first of them takes its minutes.

        Raises
        ------
        UserError
            if `x` is not finite or all the same, or the settings ask for more than so few rows can give
        """
        check_representation(x)
        layout, tree = settings.layout, settings.tree
        for n_components in {_VIEW_DIMENSIONS, layout.n_components if layout.method == "umap" else _VIEW_DIMENSIONS}:
            check_layout_size(x.shape, layout.n_neighbors, n_components, resolve_init(layout.init, len(x)))
        check_tree_size(len(x), tree.min_samples, tree.min_cluster_size)
        return cls(x, settings, store, content_hash(x))

    @cached_property
    def neighbours(self) -> Stage:
        """Neighbours in the representation: indices, distances, and facts of the search, such as recall."""
        if "neighbours" in self.known:
            return self.known["neighbours"]
        return stored_neighbours(self.x, self.sha256, neighbour_parameters(self.settings, len(self.x)), self.store)

    @cached_property
    def layout(self) -> Stage:
        """Layout in as many dimensions as the settings say."""
        return self.known.get("layout") or self._laid_out(self.settings.layout.n_components)

    @cached_property
    def view(self) -> Stage:
        """Layout in two dimensions, for the eye."""
        settings = self.settings.layout
        if settings.method == "umap" and settings.n_components == _VIEW_DIMENSIONS:
            return self.layout
        return self._laid_out(_VIEW_DIMENSIONS)

    def _laid_out(self, dimensions: int) -> Stage:
        settings, fuzzy = self.settings.layout, self._fuzzy
        start = self._start(dimensions)
        parameters = settings.model_dump(include={"min_dist", "densmap", "seed", "n_epochs"})
        parameters["n_epochs"] = resolve_epochs(settings.n_epochs, len(self.x), settings.densmap)
        inputs = {"fuzzy": fuzzy.digest, "start": start.digest, **made_by("layout")}
        if settings.densmap:
            inputs["representation"] = self.sha256

        def compute() -> dict[str, NDArray]:
            places = np.array(start.arrays["start"][:, :dimensions])
            return {"layout": umap_layout(FuzzyGraph.from_arrays(fuzzy.arrays), places, self.x, **parameters)}

        return self.store.get("layout", {**parameters, "n_components": dimensions}, inputs, compute)

    @cached_property
    def spanning(self) -> Stage:
        """Spanning tree of the layout, or of the neighbour graph where there is none."""
        tree = self.settings.tree
        if "spanning" in self.known:
            return self.known["spanning"]
        if self.settings.layout.method == "none":
            neighbours = self.neighbours

            def from_graph() -> dict[str, NDArray]:
                return graph_spanning_tree(graph_of(neighbours), tree.min_samples).to_arrays()

            parameters: dict[str, object] = {"min_samples": tree.min_samples}
            inputs = {"neighbours": neighbours.digest, **made_by("graph")}
            return self.store.get("spanning", parameters, inputs, from_graph)
        layout = self.layout

        def from_layout() -> dict[str, NDArray]:
            return spanning_tree(layout.arrays["layout"], tree.min_samples, tree.engine).to_arrays()

        parameters = {"min_samples": tree.min_samples, "engine": tree.engine}
        return self.store.get("spanning", parameters, {"layout": layout.digest, **made_by(tree.engine)}, from_layout)

    @cached_property
    def tree(self) -> Stage:
        """Classes, read off the spanning tree."""
        spanning = self.spanning
        parameters = self._tree_parameters
        inputs = {"spanning": spanning.digest, **made_by("fast_hdbscan")}
        return self.store.get("tree", parameters, inputs, lambda: self.read_off().to_arrays())

    def read_off(self) -> ClassTree:
        """Classes, read off the spanning tree without a look into the store."""
        return class_tree(SpanningTree.from_arrays(self.spanning.arrays), **self._tree_parameters)

    @property
    def _tree_parameters(self) -> dict[str, Any]:
        tree = self.settings.tree
        parameters = tree.model_dump(exclude={"engine", "min_samples"})
        return parameters | {"max_cluster_size": tree.most_in_a_class(len(self.x))}

    @cached_property
    def _fuzzy(self) -> Stage:
        neighbours, n_neighbors = self.neighbours, self.settings.layout.n_neighbors

        def compute() -> dict[str, NDArray]:
            return fuzzy_graph(graph_of(neighbours), n_neighbors).to_arrays()

        inputs = {"neighbours": neighbours.digest, **made_by("layout")}
        return self.store.get("fuzzy", {"n_neighbors": n_neighbors}, inputs, compute)

    def _start(self, dimensions: int) -> Stage:
        settings, fuzzy = self.settings.layout, self._fuzzy
        init = resolve_init(settings.init, len(self.x))
        graph = FuzzyGraph.from_arrays(fuzzy.arrays)
        n_components = start_components(graph, self.x.shape, dimensions, init)
        parameters = {"init": init, "n_components": n_components, "seed": settings.seed}
        inputs = {"fuzzy": fuzzy.digest, **made_by("start")}
        # A spectral start of a graph in pieces looks at where these lie.
        if init != "random":
            inputs["representation"] = self.sha256

        def compute() -> dict[str, NDArray]:
            return {"start": initial_layout(self.x, graph, n_components, init, settings.seed)}

        return self.store.get("start", parameters, inputs, compute)


def neighbour_parameters(settings: SearchSettings, n_rows: int) -> dict[str, Any]:
    """How the neighbours of so many galaxies are found, whatever settings say so: n_neighbors and method."""
    found, needed = settings.neighbours, settings.layout.n_neighbors
    if settings.layout.method == "none":
        needed = max(needed, settings.tree.min_samples + 1)
    return {
        "n_neighbors": graph_width(found.width, needed, n_rows),
        "method": resolve_method(found.method, n_rows, found.exact_below),
    }


def stored_neighbours(x: NDArray[np.float32], sha256: str, parameters: Mapping[str, Any], store: StageStore) -> Stage:
    """Neighbours of galaxies as a stage of that name: indices, distances, and facts of the search, such as recall.

    Parameters
    ----------
    x : (N, D)
    sha256 : of `x`, as `content_hash` gives it
    parameters : n_neighbors and method, see `find_neighbours`
    store : where the stage is found and put
    """

    def compute() -> dict[str, NDArray]:
        graph, facts = find_neighbours(x, **parameters)
        numbers = {name: np.array(value) for name, value in facts.items()}
        return {"indices": graph.indices, "distances": graph.distances, **numbers}

    inputs = {"representation": sha256, **made_by(parameters["method"])}
    return store.get("neighbours", parameters, inputs, compute)


def graph_of(neighbours: Stage) -> NeighbourGraph:
    """The graph that the first stage holds."""
    return NeighbourGraph(neighbours.arrays["indices"], neighbours.arrays["distances"])


def made_by(*steps: str) -> dict[str, str]:
    """Versions of the packages that decide what steps compute; of all steps for none."""
    return {name: versions().get(name, "") for step in steps or _MADE_BY for name in _MADE_BY[step]}
