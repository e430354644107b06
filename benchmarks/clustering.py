"""Time, memory and recovery of the class search beside fresh fits of umap-learn and hdbscan.

    taskset -c 0,1 python benchmarks/clustering.py sweep --rows 50000
    taskset -c 0,1 python benchmarks/clustering.py sweep --rows 50000 --trees 12 --routes rarezoo
    taskset -c 0,1 python benchmarks/clustering.py single --rows 50000
    taskset -c 0,1 python benchmarks/clustering.py stages --rows 50000 100000 200000
    taskset -c 0,1 python benchmarks/clustering.py stages --rows 632000 --trees 12
    taskset -c 0,1 python benchmarks/clustering.py sweep --embeddings FILE.h5 --truth truth.parquet
    taskset -c 0,1 python benchmarks/clustering.py epochs --rows 50000

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

single: the paper's recipe (n_neighbors 50, 5 components, min_samples 300, leaves of at least 10), once from the start
of a process, and once more from nothing where all is compiled.

stages: the same stage by stage, then another min_samples, other tree settings and twelve label settings over the same
store; and the exponent of each stage's growth with the rows.

epochs: what six seeded layouts of each number of epochs find, mean over the tree settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import search_routes as routes
from search_routes import LAYOUTS, TREES
from searched import SearchedGalaxies
from speed_tables import print_routes, print_stages

ROUTES = ["rarezoo", "warm", "fresh"]
TITLES = {"rarezoo": "rarezoo", "warm": "umap + hdbscan, warm", "fresh": "umap + hdbscan, fresh"}


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
        "rarezoo": lambda: routes.sweep_with_rarezoo(folder, trees),
        "warm": lambda: routes.sweep_warm(folder, trees),
        "fresh": lambda: routes.one_fresh(folder, options["n_neighbors"], trees[0]),
        "single": lambda: routes.recipe_twice(folder, options["route"]),
        "stages": lambda: routes.stages_of_recipe(folder, options["seed"], trees),
        "epochs": lambda: routes.layouts_by_epochs(folder, trees),
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


def print_sweep(folder: Path, asked: Sequence[str], trees: Sequence[tuple[int, int, str]], scored: bool) -> None:
    """Print what a sweep costs on each route."""
    rows = {}
    for route in asked:
        rows[route] = sweep_route(folder, route, trees)
        print(TITLES[route], json.dumps(rows[route]), file=sys.stderr, flush=True)
    print(f"{len(LAYOUTS) * len(trees)} settings\n")
    print_routes({TITLES[route]: row for route, row in rows.items()}, scored)


def print_single(folder: Path) -> None:
    """Print what the paper's recipe costs in a fresh process, and again where all is compiled."""
    found = {route: measured(folder, "single", route=route) for route in ("rarezoo", "warm")}
    print("| the paper's recipe | from the start: s | CPU s | again: s | CPU s |\n|---|---|---|---|---|")
    for route, row in found.items():
        costs = [f"{row[which][unit]:.0f}" for which in ("first", "again") for unit in ("seconds", "cpu")]
        print(f"| {TITLES[route].removesuffix(', warm')} | {' | '.join(costs)} |")


def print_epochs(folder: Path, trees: Sequence[tuple[int, int, str]]) -> None:
    """Print what layouts of few and of many epochs find."""
    print("| layouts | mean F1 of known classes | standard error |\n|---|---|---|")
    for title, (mean, error) in measured(folder, "epochs", trees=trees)["recoveries"].items():
        print(f"| {title} | {mean:.3f} | {error:.3f} |")


def read_settings() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["sweep", "single", "stages", "epochs"])
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
    return settings


def main() -> None:
    """Print a table."""
    if sys.argv[1:2] == ["task"]:
        print(json.dumps(do_task(json.loads(sys.argv[2]))))
        return
    settings = read_settings()
    trees = TREES[settings.trees]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}\n"
    )
    found: dict[int, dict[str, Any]] = {}
    scored = True
    for wanted in settings.rows or [None if settings.embeddings else 50_000]:
        with tempfile.TemporaryDirectory(dir=settings.folder) as name:
            folder = Path(name)
            if settings.embeddings:
                galaxies = SearchedGalaxies.embedded(settings.embeddings, settings.truth, wanted)
            else:
                galaxies = SearchedGalaxies.planted(wanted)
            galaxies.save(folder)
            n_rows, scored = len(galaxies), galaxies.group is not None
            del galaxies
            print(f"{n_rows:,} rows\n", flush=True)
            if settings.question == "sweep":
                print_sweep(folder, settings.routes, trees, scored)
            elif settings.question == "single":
                print_single(folder)
            elif settings.question == "epochs":
                print_epochs(folder, trees)
            else:
                found[n_rows] = measured(folder, "stages", seed=settings.seed, trees=trees)
                print(json.dumps(found[n_rows]), file=sys.stderr, flush=True)
    if found:
        print_stages(found, scored)


if __name__ == "__main__":
    from rarezoo.cli import run_script

    run_script(main, Path(__file__).parent)
