"""Time, memory and recall of the ways to find the nearest neighbours of every galaxy.

    taskset -c 0,1 python benchmarks/neighbours.py --rows 50000 200000
    taskset -c 0,1 python benchmarks/neighbours.py --rows 50000 --pynndescent

exact (scikit-learn), ivf (faiss) and, with --pynndescent, pynndescent search planted groups (planted.py) for 100
neighbours, each in a process of its own. Seconds and CPU seconds are those of `find_neighbours`, which judges what an
approximate search found, and in which pynndescent compiles; the peak is of the whole process, the data included. Recall
is the share of the true neighbours of 1,000 galaxies other than those by which a search is tuned and judged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from planted import plant

N_NEIGHBORS = 100
# `find_neighbours` draws those that it tunes and judges by with the seeds 1 and 0.
_OTHER_ROWS = 2


def measure(path: Path, method: str) -> dict[str, float]:
    """Search in this process: seconds, cpu, memory (GB), recall, and of ivf n_cells and n_probe."""
    from rarezoo.clustering.neighbours import find_neighbours, recall

    x = np.load(path)
    start, cpu = time.perf_counter(), time.process_time()
    graph, facts = find_neighbours(x, N_NEIGHBORS, method)  # type: ignore[arg-type]
    spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {**facts, **spent, "memory": memory, "recall": recall(graph, x, seed=_OTHER_ROWS)}


def measured(path: Path, method: str) -> dict[str, float]:
    """Search in a fresh process."""
    command = [sys.executable, __file__, "task", str(path), method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{method} failed")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_methods(n_rows: int, methods: list[str], folder: Path) -> None:
    """Print a row of the table for each method."""
    # Small samples hold groups as well, of up to a thirtieth of their rows.
    x = plant(n_rows, largest=min(1500, n_rows // 30)).representation
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "x.npy"
        np.save(path, x)
        del x
        for method in methods:
            row = measured(path, method)
            cells = f" ({row['n_probe']:.0f} of {row['n_cells']:.0f} cells)" if "n_probe" in row else ""
            print(
                f"| {n_rows:,} | {method}{cells} | {row['seconds']:.1f} | {row['cpu']:.1f} | {row['memory']:.1f} "
                f"| {row['recall']:.4f} |",
                flush=True,
            )


def main() -> None:
    """Print a table."""
    if sys.argv[1:2] == ["task"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("--pynndescent", action="store_true", help="which takes minutes: search with pynndescent too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    settings = parser.parse_args()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}; {N_NEIGHBORS} neighbours\n"
    )
    print("| rows | method | s | CPU s | GB | recall |\n|---|---|---|---|---|---|")
    for n_rows in settings.rows:
        print_methods(n_rows, ["exact", "ivf", *(["pynndescent"] if settings.pynndescent else [])], settings.folder)


if __name__ == "__main__":
    from rarezoo.cli import run_script

    run_script(main, Path(__file__).parent)
