"""Time, memory and recovery of the class search beside fresh fits of umap-learn and hdbscan.

    taskset -c 0,1 python benchmarks/clustering.py sweep --rows 50000
    taskset -c 0,1 python benchmarks/clustering.py sweep --rows 50000 --trees 12 --routes rarezoo
    taskset -c 0,1 python benchmarks/clustering.py stages --rows 50000 100000 200000
    taskset -c 0,1 python benchmarks/clustering.py stages --rows 632000 --trees 12
    taskset -c 0,1 python benchmarks/clustering.py stages --embeddings FILE.h5 --truth truth.parquet

What is searched are planted groups (planted.py), or with --embeddings all galaxies of a survey, or a sample of --rows.

sweep: every layout of n_neighbors 15, 50, 100 and n_components 2, 5, each read off with the same tree settings.

- rarezoo: one search after the other over one store of stages.
- umap + hdbscan, warm: `umap.UMAP().fit` and `hdbscan.HDBSCAN().fit` for each setting, in one process. A layout is
  fitted once for each n_neighbors and n_components, and its time counts for each tree setting, as it would be paid.
- umap + hdbscan, fresh: the same with a process for each setting, as a launcher on a cluster starts them. One process
  is run for each n_neighbors (5 components, first tree setting), and counts for all settings of its n_neighbors.

Layouts of all routes use all threads and no seed. Recovery is the mean over the settings of the mean F1 of each planted
group's best cluster; of a survey it is left out unless --truth names its classes. The view for the eye, which fresh
fits do not make, is counted for rarezoo.

stages: the paper's recipe (n_neighbors 50, 5 components, min_samples 300, leaves of at least 10) stage by stage, then
another min_samples and other tree settings over the same store; and the exponent of each stage's growth with the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from searched import SearchedGalaxies
from speed_tables import print_routes, print_stages

LAYOUTS = list(itertools.product((15, 50, 100), (2, 5)))
# min_samples, min_cluster_size, method
TREES = {
    4: list(itertools.product((10,), (10, 30), ("leaf", "eom"))),
    12: list(itertools.product((10, 100, 300), (10, 30), ("leaf", "eom"))),
}
ROUTES = ["rarezoo", "warm", "fresh"]
TITLES = {"rarezoo": "rarezoo", "warm": "umap + hdbscan, warm", "fresh": "umap + hdbscan, fresh"}


def recovered(labels: np.ndarray, group: np.ndarray | None) -> float:
    """Mean F1 of each known class's best cluster; NaN where none are known."""
    from rarezoo.clustering.scores import recovery

    return float("nan") if group is None else float(recovery(labels, group)["f1"].mean())


def search_settings(
    layout: tuple[int, int], tree: tuple[int, int, str], seed: int | None, width: int | None = None
) -> Any:
    """Settings of one search of rarezoo."""
    from rarezoo.clustering.settings import LayoutSettings, NeighbourSettings, SearchSettings, TreeSettings

    return SearchSettings(
        neighbours=NeighbourSettings(width=width or max(n for n, _ in LAYOUTS)),
        layout=LayoutSettings(n_neighbors=layout[0], n_components=layout[1], seed=seed),
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
        for tree in [(300, 10, "leaf"), *(each for each in trees if each != (300, 10, "leaf"))]:
            start = time.perf_counter()
            search = search_classes(galaxies, search_settings((50, 5), tree, seed), store)
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
    return {**found, **spent()}


def spent() -> dict[str, float]:
    """Seconds since the process began, seconds of all its processors, and its largest resident memory in GB."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return {"seconds": time.perf_counter() - _START, "cpu": cpu, "memory": own.ru_maxrss / 1e6}


def measured(folder: Path, task: str, **options: Any) -> dict[str, Any]:
    """Do one task in a fresh process."""
    command = [sys.executable, __file__, "task", json.dumps({"task": task, "folder": str(folder), **options})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def do_task(options: dict[str, Any]) -> dict[str, Any]:
    """What `measured` asks a fresh process for."""
    folder, trees = Path(options["folder"]), [tuple(tree) for tree in options.get("trees", [])]
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "rarezoo": lambda: sweep_with_rarezoo(folder, trees),
        "warm": lambda: sweep_warm(folder, trees),
        "fresh": lambda: one_fresh(folder, options["n_neighbors"], trees[0]),
        "stages": lambda: stages_of_recipe(folder, options["seed"], trees),
    }
    return tasks[options["task"]]()


def sweep_route(folder: Path, route: str, trees: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """What one route costs for every setting."""
    if route != "fresh":
        return measured(folder, route, trees=trees)
    single = [measured(folder, route, trees=trees, n_neighbors=n) for n in sorted({n for n, _ in LAYOUTS})]
    times = len(LAYOUTS) // len(single) * len(trees)
    return {
        "seconds": times * sum(each["seconds"] for each in single),
        "cpu": times * sum(each["cpu"] for each in single),
        "memory": max(each["memory"] for each in single),
        "recovery": float("nan"),
    }


def print_sweep(folder: Path, routes: Sequence[str], trees: Sequence[tuple[int, int, str]], scored: bool) -> None:
    """Print what a sweep costs on each route."""
    rows = {}
    for route in routes:
        rows[route] = sweep_route(folder, route, trees)
        print(TITLES[route], json.dumps(rows[route]), file=sys.stderr, flush=True)
    print(f"{len(LAYOUTS) * len(trees)} settings\n")
    print_routes({TITLES[route]: row for route, row in rows.items()}, scored)


def main() -> None:
    """Print a table."""
    if sys.argv[1:2] == ["task"]:
        print(json.dumps(do_task(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["sweep", "stages"])
    parser.add_argument("--rows", type=int, nargs="+", help="50,000, or all of a survey, by default")
    parser.add_argument("--embeddings", type=Path, help="of a survey, to be searched in place of planted groups")
    parser.add_argument("--truth", type=Path, help="table of the survey's known classes: id_str, rare_class")
    parser.add_argument("--trees", type=int, choices=TREES, default=4, help="tree settings of each layout")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=ROUTES)
    parser.add_argument("--seed", type=int, help="of the layouts of `stages`, on one thread; all threads without")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    settings = parser.parse_args()
    if settings.truth and not settings.embeddings:
        parser.error("--truth is of a survey: give its --embeddings")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}\n"
    )
    found: dict[int, dict[str, Any]] = {}
    for wanted in settings.rows or [None if settings.embeddings else 50_000]:
        with tempfile.TemporaryDirectory(dir=settings.folder) as name:
            if settings.embeddings:
                galaxies = SearchedGalaxies.embedded(settings.embeddings, settings.truth, wanted)
            else:
                galaxies = SearchedGalaxies.planted(wanted)
            galaxies.save(Path(name))
            n_rows, scored = len(galaxies), galaxies.group is not None
            del galaxies
            if settings.question == "sweep":
                print(f"{n_rows:,} rows, ", end="")
                print_sweep(Path(name), settings.routes, TREES[settings.trees], scored)
            else:
                found[n_rows] = measured(Path(name), "stages", seed=settings.seed, trees=TREES[settings.trees])
                print(n_rows, json.dumps(found[n_rows]), file=sys.stderr, flush=True)
    if found:
        print_stages(found, scored)


_START = time.perf_counter()

if __name__ == "__main__":
    from rarezoo.cli import run_script

    run_script(main, Path(__file__).parent)
