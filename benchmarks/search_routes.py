"""What benchmarks/clustering.py times: rarezoo's search, and fresh fits of umap-learn and hdbscan."""

from __future__ import annotations

import itertools
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from searched import SearchedGalaxies

LAYOUTS = list(itertools.product((15, 50, 100), (2, 5)))
# min_samples, min_cluster_size, method
TREES = {
    4: list(itertools.product((10,), (10, 30), ("leaf", "eom"))),
    12: list(itertools.product((10, 100, 300), (10, 30), ("leaf", "eom"))),
}
# The paper's: n_neighbors, n_components; min_samples, min_cluster_size, method.
RECIPE = (50, 5), (300, 10, "leaf")
LABELS = list(itertools.product((300,), (10, 15, 20, 30, 50, 100), ("leaf", "eom")))
EPOCHS = (50, 100, 200)


def recovered(labels: np.ndarray, group: np.ndarray | None) -> float:
    """Mean F1 of each known class's best cluster; NaN where none are known."""
    from rarezoo.clustering.scores import recovery

    return float("nan") if group is None else float(recovery(labels, group)["f1"].mean())


def search_settings(
    layout: tuple[int, int], tree: tuple[int, int, str], seed: int | None, n_epochs: int | None = None
) -> Any:
    """Settings of one search of rarezoo."""
    from rarezoo.clustering.settings import LayoutSettings, NeighbourSettings, SearchSettings, TreeSettings

    return SearchSettings(
        neighbours=NeighbourSettings(width=max(n for n, _ in LAYOUTS)),
        layout=LayoutSettings(n_neighbors=layout[0], n_components=layout[1], seed=seed, n_epochs=n_epochs),
        tree=TreeSettings(min_samples=tree[0], min_cluster_size=tree[1], method=tree[2]),
    )


def sweep_with_rarezoo(folder: Path, trees: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """Every setting over one store."""
    from rarezoo.clustering.search import search_classes
    from rarezoo.clustering.stages import StageStore

    galaxies, scores = SearchedGalaxies.load(folder), []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for layout, tree in itertools.product(LAYOUTS, trees):
            found = search_classes(galaxies, search_settings(layout, tree, None), StageStore(Path(name)))
            scores.append(recovered(found.tree.labels, galaxies.group))
    return {"recovery": float(np.mean(scores)), **spent()}


def sweep_warm(folder: Path, trees: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """Fresh fits for every setting in this process; the time of a layout counts for each of its trees."""
    galaxies, scores = SearchedGalaxies.load(folder), []
    seconds, cpu = 0.0, 0.0
    for layout in LAYOUTS:
        before = spent()
        places = fit_umap(galaxies.representation, *layout)
        after = spent()
        seconds += (len(trees) - 1) * (after["seconds"] - before["seconds"])
        cpu += (len(trees) - 1) * (after["cpu"] - before["cpu"])
        scores += [recovered(fit_hdbscan(places, *tree), galaxies.group) for tree in trees]
    whole = spent()
    whole |= {"seconds": whole["seconds"] + seconds, "cpu": whole["cpu"] + cpu}
    return {"recovery": float(np.mean(scores)), **whole}


def one_fresh(folder: Path, n_neighbors: int, tree: tuple[int, int, str]) -> dict[str, Any]:
    """One setting in this process."""
    galaxies = SearchedGalaxies.load(folder)
    labels = fit_hdbscan(fit_umap(galaxies.representation, n_neighbors, 5), *tree)
    return {"recovery": recovered(labels, galaxies.group), **spent()}


def fit_umap(x: np.ndarray, n_neighbors: int, n_components: int) -> np.ndarray:
    """Lay out as umap-learn does by itself, with all threads."""
    import umap

    fitted: np.ndarray = umap.UMAP(n_neighbors=n_neighbors, n_components=n_components, min_dist=0.0).fit_transform(x)
    return fitted


def fit_hdbscan(places: np.ndarray, min_samples: int, min_cluster_size: int, method: str) -> np.ndarray:
    """Labels of hdbscan by its own defaults, with all cores."""
    from hdbscan import HDBSCAN

    labels: np.ndarray = HDBSCAN(
        min_samples=min_samples,
        min_cluster_size=min_cluster_size,
        cluster_selection_method=method,
        core_dist_n_jobs=-1,
    ).fit_predict(places)
    return labels


def stages_of_recipe(folder: Path, seed: int | None, trees: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """The paper's recipe, then other trees over the same layout: seconds of each stage and of each search."""
    from rarezoo.clustering.search import search_classes
    from rarezoo.clustering.stages import StageStore

    galaxies = SearchedGalaxies.load(folder)
    found: dict[str, Any] = {"stages": {}, "searches": []}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = StageStore(Path(name))
        for tree in [RECIPE[1], *(each for each in trees if each != RECIPE[1])]:
            start = time.perf_counter()
            search = search_classes(galaxies, search_settings(RECIPE[0], tree, seed), store)
            seconds = time.perf_counter() - start
            score = recovered(search.tree.labels, galaxies.group)
            facts = {"tree": tree, "seconds": seconds, "classes": search.tree.n_classes, "recovery": score}
            found["searches"].append(facts)
            for title, stage in search.stages.items():
                if not stage.reused:
                    key = title if not found["stages"].get(title) else f"{title}, {' '.join(map(str, tree))}"
                    taken = ("seconds", "cpu_seconds", "peak_memory_bytes")
                    found["stages"][key] = {each: stage.info.get(each) for each in taken}
            if len(found["searches"]) == 1:
                every = store.summary()["stages"]
                found["stages"] |= {name: every[name] for name in ("fuzzy", "start")}
                found["recall"] = search.recall
                # Each stage begins to count its memory anew.
                highest = max(stage["peak_memory_bytes"] for stage in every.values()) / 1e9
                found["recipe"] = spent() | {"memory": highest}
        start = time.perf_counter()
        for tree in LABELS:
            search_classes(galaxies, search_settings(RECIPE[0], tree, seed), store)
        found["labels"] = time.perf_counter() - start
    return {**found, **spent()}


def recipe_twice(folder: Path, route: str) -> dict[str, Any]:
    """The paper's recipe once from the start of the process, and once more from nothing where all is compiled."""
    from rarezoo.clustering.search import search_classes
    from rarezoo.clustering.stages import StageStore

    galaxies, costs = SearchedGalaxies.load(folder), [{"seconds": 0.0, "cpu": 0.0}]
    for _ in range(2):
        if route == "rarezoo":
            with tempfile.TemporaryDirectory(dir=folder) as name:
                store = StageStore(Path(name))
                labels = search_classes(galaxies, search_settings(*RECIPE, None), store).tree.labels
        else:
            labels = fit_hdbscan(fit_umap(galaxies.representation, *RECIPE[0]), *RECIPE[1])
        costs.append(spent())
    first, again = ({key: costs[i + 1][key] - costs[i][key] for key in ("seconds", "cpu")} for i in range(2))
    return {"first": first, "again": again, "recovery": recovered(labels, galaxies.group), **spent()}


def layouts_by_epochs(folder: Path, trees: Sequence[tuple[int, int, str]], n_layouts: int = 6) -> dict[str, Any]:
    """Mean and standard error, over layouts, of what the trees recover on average, for each number of epochs."""
    from rarezoo.clustering.search import search_classes
    from rarezoo.clustering.stages import StageStore

    galaxies, found = SearchedGalaxies.load(folder), {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = StageStore(Path(name))
        for n_epochs, n_neighbors in itertools.product(EPOCHS, (15, 50)):
            scores = []
            for seed in range(n_layouts):
                asked = [search_settings((n_neighbors, 5), tree, seed, n_epochs) for tree in trees]
                labels = [search_classes(galaxies, each, store).tree.labels for each in asked]
                scores.append(np.mean([recovered(each, galaxies.group) for each in labels]))
            error = np.std(scores, ddof=1) / len(scores) ** 0.5
            found[f"{n_epochs} epochs, {n_neighbors} neighbours"] = (float(np.mean(scores)), float(error))
    return {"recoveries": found, **spent()}


def spent() -> dict[str, float]:
    """Seconds since the process began, seconds of all its processors, and its largest resident memory in GB."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return {"seconds": time.perf_counter() - _START, "cpu": cpu, "memory": own.ru_maxrss / 1e6}


_START = time.perf_counter()
