"""The same search again, from other seeds, on random samples, and on what has no classes: what trust is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.clustering.pipeline import Announce, Pipeline, made_by, passing_store
from rarezoo.clustering.settings import SearchSettings, TreeSettings, TrustSettings
from rarezoo.clustering.stability import gaussian_like, permuted
from rarezoo.clustering.stages import Stage
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

    Each repeat is a stage of the search's store, so that a run which is broken off goes on after the last of them; what
    a repeat computes on the way is not kept. A tree without a layout has no seed, and is not repeated by it.

    Parameters
    ----------
    search : whose stages are in its store
    announce : called before each repeat
    """
    n_seeds = trust.seeds if search.settings.layout.method == "umap" else 0
    by_seed, by_sample, controls = [], [], []
    for number in range(1, n_seeds + 1):
        announce(f"repeat with seed {number} of {n_seeds}")
        by_seed.append(_by_seed(search, number).arrays["labels"])
    for number in range(1, trust.bootstraps + 1):
        announce(f"repeat on sample {number} of {trust.bootstraps}")
        found = _by_sample(search, number, trust.share)
        by_sample.append((found.arrays["rows"], found.arrays["labels"]))
    for number in range(1, trust.controls + 1):
        announce(f"control {number} of {trust.controls}")
        controls.append(ClassTree.from_arrays(_control(search, number, trust).arrays))
    return Repeats(by_seed, by_sample, controls)


def shrunk(tree: TreeSettings, share: float) -> TreeSettings:
    """Settings under which a class of a sample is as dense and as large as the whole class under the given ones."""
    least = {
        "min_samples": max(1, round(share * tree.min_samples)),
        "min_cluster_size": max(2, round(share * tree.min_cluster_size)),
        "max_cluster_size": round(share * tree.max_cluster_size),
    }
    return tree.model_copy(update=least)


def _by_seed(search: Pipeline, number: int) -> Stage:
    layout = search.settings.layout
    seed = None if layout.seed is None else (layout.seed + number) % 2**32
    settings = search.settings.model_copy(update={"layout": layout.model_copy(update={"seed": seed})})
    neighbours = search.neighbours

    def compute() -> dict[str, NDArray]:
        with passing_store(search.store) as store:
            again = replace(search, settings=settings, store=store, known=neighbours)
            return {"labels": again.classes.labels}

    return _stage(search, "seed", {"number": number}, settings, compute)


def _by_sample(search: Pipeline, number: int, share: float) -> Stage:
    settings = search.settings.model_copy(update={"tree": shrunk(search.settings.tree, share)})

    def compute() -> dict[str, NDArray]:
        n_rows = len(search.x)
        chosen = np.random.default_rng(number).choice(n_rows, round(share * n_rows), replace=False)
        rows = np.sort(chosen)
        with passing_store(search.store) as store:
            return {"rows": rows, "labels": Pipeline.of(search.x[rows], settings, store).classes.labels}

    return _stage(search, "sample", {"number": number, "share": share}, settings, compute)


def _control(search: Pipeline, number: int, trust: TrustSettings) -> Stage:
    draw = {"gaussian": gaussian_like, "permuted": permuted}[trust.control]

    def compute() -> dict[str, NDArray]:
        with passing_store(search.store) as store:
            return Pipeline.of(draw(search.x, number), search.settings, store).classes.to_arrays()

    return _stage(search, "control", {"number": number, "control": trust.control}, search.settings, compute)


def _stage(
    search: Pipeline,
    name: str,
    about: Mapping[str, Any],
    settings: SearchSettings,
    compute: Callable[[], dict[str, NDArray]],
) -> Stage:
    parameters = {**about, **settings.model_dump(exclude={"selection"})}
    return search.store.get(name, parameters, {"representation": search.sha256, **made_by()}, compute)
