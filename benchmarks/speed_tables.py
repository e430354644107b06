"""Tables of benchmarks/clustering.py, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def print_routes(routes: Mapping[str, Mapping[str, float]], scored: bool) -> None:
    """Print what each route costs, beside the first.

    Parameters
    ----------
    routes : title -> seconds, cpu, memory (GB) and recovery
    scored : whether classes are known, so that there is a recovery
    """
    first = next(iter(routes.values()))
    _print_header(["route", "s", "CPU s", "times the wall", "times the CPU", "GB"], scored)
    for title, row in routes.items():
        print(
            f"| {title} | {row['seconds']:.0f} | {row['cpu']:.0f} | {row['seconds'] / first['seconds']:.1f} "
            f"| {row['cpu'] / first['cpu']:.1f} | {row['memory']:.1f} |" + _score(row, scored)
        )


def print_stages(found: dict[int, dict[str, Any]], scored: bool) -> None:
    """Print the stages at each size, their growth, and the searches over the stored layout."""
    print("| stage | " + " | ".join(f"{n:,}: s (CPU s, GB)" for n in found) + " | exponent |")
    print("|---|" + "---|" * (len(found) + 1))
    for stage in next(iter(found.values()))["stages"]:
        rows = [found[n]["stages"].get(stage) for n in found]
        shown = [
            ""
            if row is None
            else f"{row['seconds']:.1f} ({row['cpu_seconds'] or float('nan'):.1f}, "
            f"{(row['peak_memory_bytes'] or 0) / 1e9:.1f})"
            for row in rows
        ]
        print(f"| {stage} | {' | '.join(shown)} | {_growth(list(found), rows)} |")
    for n, facts in found.items():
        recipe = facts["recipe"]
        print(
            f"\n{n:,} rows, the recipe: {recipe['seconds']:.0f} s, {recipe['cpu']:.0f} CPU s, "
            f"{recipe['memory']:.1f} GB, recall {facts['recall']:.4f}\n"
        )
        _print_header(["min_samples, min_cluster_size, method", "s", "classes"], scored)
        for each in facts["searches"]:
            tree = ", ".join(map(str, each["tree"]))
            print(f"| {tree} | {each['seconds']:.1f} | {each['classes']} |" + _score(each, scored))
        print(f"\ntwelve label settings, read off again: {facts['labels']:.1f} s")


def _growth(sizes: Sequence[int], rows: Sequence[dict[str, Any] | None]) -> str:
    """Slope of the logarithm of CPU seconds against that of the rows."""
    known = [(n, row["cpu_seconds"]) for n, row in zip(sizes, rows, strict=True) if row and row["cpu_seconds"]]
    if len(known) < 2:
        return ""
    logs = np.log(np.array(known, dtype=float))
    return f"{np.polyfit(logs[:, 0], logs[:, 1], 1)[0]:.2f}"


def _print_header(columns: Sequence[str], scored: bool) -> None:
    names = [*columns, *(["mean F1"] if scored else [])]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")


def _score(row: Mapping[str, float], scored: bool) -> str:
    return f" {row['recovery']:.3f} |" if scored else ""
