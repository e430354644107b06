"""How well methods find rare classes that are known: planted, graded by astronomers, or injected.

    python benchmarks/recovery.py --suite small
    python benchmarks/recovery.py --suite full --data DATA
    python benchmarks/recovery.py --methods paper-scaled,k-means --extra my_methods.py

Without --data, surveys are simulated; with a folder that holds efigi/, sdss/ and goods/, real ones are searched too.
Methods are those of benchmarks/known_truth/methods.yaml; `--extra` adds those of a Python file:

    from known_truth.contest import Found, Task

    def mine(task: Task) -> Found:
        labels = ...                                  # (M,) int32 class of each row of task.x, -1 for none
        montages = [...]                              # rows to look at, the most promising montage first
        return Found(montages, labels)

    METHODS = {"mine": mine}

Networks, embeddings and stages are kept below --out, and each score in a file of results/: the same command again goes
on where it was broken off, and new methods are compared with those that ran before. It writes recovery.parquet (its
columns: known_truth/scoring.py), recovery.html and recovery.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from known_truth.contest import KnownSurvey
from known_truth.contestants import Contestant, chosen, read_extra, read_methods
from known_truth.page import write_page
from known_truth.scoring import gather, method_scores, representation_scores
from known_truth.surveys import suite

from rarezoo.cli import EXIT_USER_ERROR, UserError, announce, closing_lines, console, quiet_libraries
from rarezoo.provenance import git_commit, written_beside


def main() -> None:
    """Run the methods on each survey as it is made, and bring the outputs up to date after each."""
    arguments = read_arguments()
    quiet_libraries()
    began, out = time.perf_counter(), arguments.out
    try:
        contestants = read_methods()
        for path in arguments.extra:
            contestants |= read_extra(path)
        taking_part = chosen(contestants, arguments.methods)
        left_out: list[str] = []
        for survey in suite(arguments.suite, out, arguments.data, arguments.seeds):
            left_out += run_survey(survey, taking_part, out)
            outputs = write_outputs(out, left_out, time.perf_counter() - began)
    except UserError as error:
        console.print(f"Error: {error}", markup=False, style="bold red")
        sys.exit(EXIT_USER_ERROR)
    closing_lines(outputs, {"seconds": time.perf_counter() - began}, f"open {outputs['page']} in a browser")


def read_arguments() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("small", "full"), default="small", help="how many and how large surveys")
    parser.add_argument("--out", type=Path, default=Path("outputs/recovery"), help="folder to write to")
    parser.add_argument("--data", type=Path, help="folder with efigi/, sdss/ and goods/")
    parser.add_argument("--methods", type=_names, default=[], help="names, separated by commas; all if left out")
    parser.add_argument("--extra", type=Path, action="append", default=[], help="Python file with METHODS")
    parser.add_argument("--seeds", type=_numbers, help="in place of the suite's own, separated by commas")
    return parser.parse_args()


def run_survey(survey: KnownSurvey, contestants: list[Contestant], out: Path) -> list[str]:
    """Score the methods that take part, and the representations that they search.

    Returns
    -------
    why some could not run
    """
    left_out = []
    taking_part = [contestant for contestant in contestants if contestant.takes_part(survey)]
    title = f"{survey.name}, seed {survey.seed}"
    announce(f"{title}: {len(survey.rows)} of {len(survey.ids)} galaxies, {survey.classes.shape[1]} known classes")
    for contestant in taking_part:
        try:
            scores = method_scores(survey, contestant, out / "results", out / "stages")
        except UserError as error:
            left_out.append(f"{title}: {contestant.name}: {error}")
            announce(f"  {contestant.name}: left out: {error}")
            continue
        announce(f"  {contestant.name}: {_in_words(scores[scores['row'] == 'run'].iloc[0])}")
    for representation in dict.fromkeys(contestant.representation for contestant in taking_part):
        scores = representation_scores(survey, representation, out / "results")
        announce(f"  ranking in {representation}: average precision {scores['average_precision'].mean():.3f}")
    return left_out


def write_outputs(out: Path, left_out: list[str], seconds: float) -> dict[str, Path]:
    """Gather all scores, and write the table and the pages."""
    scores = gather(out / "results")
    table = out / "recovery.parquet"
    with written_beside(table) as temporary:
        scores.to_parquet(temporary, index=False)
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "commit": git_commit() or "unknown",
        "seconds of the last run": f"{seconds:.0f}",
    }
    return {"table": table, **write_page(scores, facts, left_out, out)}


def _in_words(run: pd.Series) -> str:
    found = "" if pd.isna(run.get("found_f1_50")) else f"found {run['found_f1_50']:.0f} of {run['planted']:.0f} "
    clusters = "" if not found else f"in {run['clusters']:.0f} clusters, "
    return f"{found}{clusters}discovered {run['discovered_100']:.0f} in 100 montages, {run['seconds']:.0f} s"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


if __name__ == "__main__":
    main()
