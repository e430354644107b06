"""The same search again, from other seeds, on random samples, and on what has no classes: what trust is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.clustering.layout import resolve_init
from rarezoo.clustering.passing import passing_store
from rarezoo.clustering.pipeline import Announce, Pipeline, made_by, neighbour_parameters
from rarezoo.clustering.settings import SearchSettings, TreeSettings, TrustSettings
from rarezoo.clustering.stability import gaussian_like, permuted
from rarezoo.clustering.stages import Stage, StageStore
from rarezoo.clustering.tree import ClassTree


@dataclass(frozen=True)
class Repeats:
    """What the repeats of a search of N galaxies found.

    Attributes
    ----------
    by_seed : (N,) labels of each layout of another seed
    by_sample : rows of the search that were drawn, ascending, and their labels
    controls : classes found where there are none
    """

    by_seed: list[NDArray[np.int32]]
    by_sample: list[tuple[NDArray[np.int64], NDArray[np.int32]]]
    controls: list[ClassTree]


def repeat_search(search: Pipeline, trust: TrustSettings, announce: Announce = lambda stage: None) -> Repeats:
    """Repeat a search as often as the settings say.

    Of each repeat the search's store keeps the layout and the spanning tree, so that a run which is broken off goes on
    after the last of them and a sweep of tree settings lays each out once; its neighbours and graph, which are large,
    are not kept. A tree without a layout has no seed, and is not repeated by it.

    Parameters
    ----------
    search : whose stages are in its store
    announce : called before each repeat

    Raises
    ------
    UserError
        if a sample is too small for the settings
    """
    n_seeds = trust.seeds if search.settings.layout.method == "umap" else 0
    by_seed, by_sample, controls = [], [], []
    for number in range(1, n_seeds + 1):
        announce(f"repeat with seed {number} of {n_seeds}")
        by_seed.append(_by_seed(search, number).labels)
    for number in range(1, trust.bootstraps + 1):
        announce(f"repeat on sample {number} of {trust.bootstraps}")
        by_sample.append(_by_sample(search, number, trust.share))
    for number in range(1, trust.controls + 1):
        announce(f"control {number} of {trust.controls}")
        controls.append(_control(search, number, trust))
    return Repeats(by_seed, by_sample, controls)


def shrunk(tree: TreeSettings, share: float) -> TreeSettings:
    """Settings under which a class of a sample is as dense and as large as the whole class under the given ones."""
    smallest = max(2, round(share * tree.min_cluster_size))
    largest = tree.max_cluster_size
    if largest >= 1:
        # Of 0 galaxies would be no limit at all.
        largest = max(smallest, round(share * largest))
    least = max(1, round(share * tree.min_samples))
    return tree.model_copy(update={"min_samples": least, "min_cluster_size": smallest, "max_cluster_size": largest})


def _by_seed(search: Pipeline, number: int) -> ClassTree:
    layout = search.settings.layout
    seed = None if layout.seed is None else (layout.seed + number) % 2**32
    settings = search.settings.model_copy(update={"layout": layout.model_copy(update={"seed": seed})})
    neighbours = search.neighbours

    def again(store: StageStore) -> Pipeline:
        return replace(search, settings=settings, store=store, known={"neighbours": neighbours})

    return _repeated(search, "seed", {"number": number}, settings, again)


def _by_sample(search: Pipeline, number: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    settings = search.settings.model_copy(update={"tree": shrunk(search.settings.tree, share)})
    n_rows = len(search.x)
    rows = np.sort(np.random.default_rng(number).choice(n_rows, round(share * n_rows), replace=False))

    def again(store: StageStore) -> Pipeline:
        try:
            return Pipeline.of(search.x[rows], settings, store)
        except UserError as error:
            raise UserError(
                f"trust.share={share}: a sample holds {len(rows)} of {n_rows} galaxies, which is too few. {error} "
                "Or raise trust.share, or set trust.bootstraps=0."
            ) from error

    return rows, _repeated(search, "sample", {"number": number, "share": share}, settings, again).labels


def _control(search: Pipeline, number: int, trust: TrustSettings) -> ClassTree:
    draw = {"gaussian": gaussian_like, "permuted": permuted}[trust.control]

    def again(store: StageStore) -> Pipeline:
        return Pipeline.of(draw(search.x, number), search.settings, store)

    return _repeated(search, "control", {"number": number, "control": trust.control}, search.settings, again)


def _repeated(
    search: Pipeline,
    name: str,
    about: Mapping[str, Any],
    settings: SearchSettings,
    again: Callable[[StageStore], Pipeline],
) -> ClassTree:
    """Classes of one repeat: its layout, or its spanning tree where nothing is laid out, is a stage of that name."""
    n_rows = round(about.get("share", 1) * len(search.x))
    parameters = {**about, "neighbours": neighbour_parameters(settings, n_rows)}
    if settings.layout.method == "umap":
        init = resolve_init(settings.layout.init, n_rows)
        kept, parameters["layout"] = "layout", settings.layout.model_dump() | {"init": init}
    else:
        kept, parameters["min_samples"] = "spanning", settings.tree.min_samples

    def compute() -> dict[str, NDArray]:
        with passing_store(search.store) as store:
            stage: Stage = getattr(again(store), kept)
            return {array: np.array(values) for array, values in stage.arrays.items()}

    stage = search.store.get(name, parameters, {"representation": search.sha256, **made_by()}, compute)
    return replace(search, settings=settings, known={kept: stage}).read_off()
