"""Scores of one method on one survey, each kept in a file of its own until all are gathered.

The table has one row of each of these, told apart by the column `row`:

- class: one known class as one method found it: members, abundance (members / galaxies of the survey), selected, and
  what `recovery`, `chance_recovery` and `discoveries` give
- control: the same of a class that ought not to be found; it has no part in the next
- run: one method: the figures of `summary` over the known classes, discovered_N (classes discovered within N
  montages), chance_mean_f1, seconds, and kinds_* where kinds of artifact were looked for
- representation: one known class in one representation: average_precision, chance, prevalence of `example_precision`
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from known_truth.contest import Found, KnownSurvey, Task
from known_truth.contestants import Contestant
from rarezoo.cli import UserError
from rarezoo.clustering.scores import (
    LOOKED_AT,
    chance_recovery,
    discovered_after,
    discoveries,
    example_precision,
    kind_agreement,
    recovery,
    summary,
)
from rarezoo.clustering.stages import StageStore, content_hash
from rarezoo.provenance import fingerprint, written_beside

# Raise it when the same method on the same survey would be scored otherwise.
FORMAT = 1
# A class of this ending is of galaxies drawn at random from the sample that another class was taken from.
CONTROL = "-at-random"
# Those that every table has; the notes of a method follow them.
COLUMNS = (
    *("survey", "truth", "seed", "method", "representation", "row", "class", "galaxies", "searched"),
    *("members", "abundance", "selected", "cluster", "cluster_size", "overlap", "f1", "purity", "completeness"),
    *("chance_f1", "chance_f1_highest", "chance_found", "discovered_at"),
    *("planted", "found_f1_50", "found_f1_80", "mean_f1", "median_purity", "median_completeness", "clusters"),
    *("clusters_of_no_class", "false_per_true", "share_in_clusters", "chance_mean_f1", "chance_found_f1_50"),
    *("montages", *(f"discovered_{n}" for n in LOOKED_AT), "seconds"),
    *("kinds_n", "kinds_share_in_clusters", "kinds_ami", "kinds_ami_in_clusters"),
    *("kinds_chance_ami", "kinds_chance_highest", "examples", "average_precision", "chance", "prevalence"),
)
_DEALS = 100
_EXAMPLES = 50


def method_scores(survey: KnownSurvey, contestant: Contestant, results: Path, stages: Path) -> pd.DataFrame:
    """Scores of a method on a survey, read where they were kept and computed otherwise.

    Parameters
    ----------
    survey, contestant : which takes part in it
    results : folder of the files that keep scores
    stages : folder of the stages that searches share

    Raises
    ------
    UserError
        if the method cannot run on the survey, or the file cannot be written
    """
    x = _representation(survey, contestant.representation, survey.rows)
    identity = fingerprint([FORMAT, contestant.setup, contestant.kinds, survey.seed, content_hash(x), _truth(survey)])
    path = _score_file(results, survey, contestant.name)
    if (kept := _kept(path, identity)) is not None:
        return kept
    store = StageStore(stages)
    began = time.perf_counter()
    task = Task(x, survey.seed, store)
    found = contestant.find(task)
    # As if no other method had computed stages for it.
    seconds = time.perf_counter() - began + store.summary()["seconds_saved"]
    _check_found(found, task)
    kinds = _kind_figures(survey, contestant, store) if contestant.kinds else {}
    classes = class_rows(survey, found)
    scores = pd.concat([classes, run_row(survey, found, classes, {"seconds": seconds, **kinds})])
    return _keep(path, scores, survey, identity, method=contestant.name, representation=contestant.representation)


def representation_scores(survey: KnownSurvey, representation: str, results: Path) -> pd.DataFrame:
    """Average precision of a representation for each known class, read where it was kept and computed otherwise.

    Parameters
    ----------
    survey : whose searched galaxies are ranked
    representation : name
    results : folder of the files that keep scores

    Raises
    ------
    UserError
        if the file cannot be written
    """
    x = _representation(survey, representation, survey.rows)
    identity = fingerprint([FORMAT, survey.seed, content_hash(x), _truth(survey)])
    path = _score_file(results, survey, f"ranking in {representation}")
    if (kept := _kept(path, identity)) is not None:
        return kept
    members = _known(survey).iloc[survey.rows]
    scores = example_precision(x, members, _EXAMPLES, survey.seed).assign(row="representation")
    return _keep(path, scores, survey, identity, method="", representation=representation)


def gather(results: Path) -> pd.DataFrame:
    """All scores that are kept in a folder, also those of earlier runs, in one table; NaN for what a row has not."""
    kept = [pd.read_parquet(path).drop(columns="identity") for path in sorted(results.glob("*.parquet"))]
    records = pd.DataFrame([record for table in kept for record in table.to_dict("records")])
    return records.reindex(columns=[*COLUMNS, *records.columns.difference(list(COLUMNS))])


def class_rows(survey: KnownSurvey, found: Found) -> pd.DataFrame:
    """One row a known class or control. Members of a class that the selection removed count as missed."""
    inside = survey.classes.iloc[survey.rows]
    members = survey.classes.sum()
    discovered_at = discoveries(found.montages, inside)
    if found.labels is None:
        counts = {"class": members.index, "members": members.to_numpy(), "selected": inside.sum().to_numpy()}
        table = pd.DataFrame(counts)
    else:
        totals = {str(name): int(n) for name, n in members.items()}
        table = recovery(found.labels, inside, totals)
        chance = chance_recovery(found.labels, inside, totals, _DEALS, survey.seed)
        table = table.merge(chance, on="class")
    return table.assign(
        row=np.where(table["class"].str.endswith(CONTROL), "control", "class"),
        abundance=table["members"] / len(survey.ids),
        discovered_at=table["class"].map(discovered_at),
    )


def run_row(survey: KnownSurvey, found: Found, classes: pd.DataFrame, figures: Mapping[str, float]) -> pd.DataFrame:
    """One row with what a method found in all.

    Parameters
    ----------
    survey, found : what was searched, and what was found
    classes : what `class_rows` gave; controls are left out
    figures : further ones
    """
    known = classes[classes["row"] == "class"]
    row: dict[str, Any] = {"row": "run", "class": "", "planted": len(known), "montages": len(found.montages)}
    row |= {f"discovered_{n}": discovered_after(known["discovered_at"], n) for n in LOOKED_AT}
    row |= {**figures, **{f"note_{name}": value for name, value in found.notes.items()}}
    if found.labels is not None:
        row |= summary(known, found.labels, _known(survey).iloc[survey.rows])
        row |= {"chance_mean_f1": known["chance_f1"].mean(), "chance_found_f1_50": known["chance_found"].sum()}
    return pd.DataFrame([row])


def _kind_figures(survey: KnownSurvey, contestant: Contestant, store: StageStore) -> dict[str, float]:
    """How far the clusters of all galaxies before artifacts are removed follow the kinds of artifact."""
    rows = survey.rows_with_artifacts
    if not len(rows):
        return {}
    x = _representation(survey, contestant.representation, rows)
    found = contestant.find(Task(x, survey.seed, store))
    if found.labels is None:
        return {}
    kinds, rng = survey.kinds[rows], np.random.default_rng(survey.seed)
    chance = [kind_agreement(rng.permutation(found.labels), kinds)["ami"] for _ in range(_DEALS)]
    agreement = {f"kinds_{name}": value for name, value in kind_agreement(found.labels, kinds).items()}
    return agreement | {"kinds_chance_ami": float(np.mean(chance)), "kinds_chance_highest": float(np.max(chance))}


def _check_found(found: Found, task: Task) -> None:
    """Refuse what would be scored as something else than it is: the method may be a user's.

    Raises
    ------
    UserError
        if labels are not one a galaxy, or a montage shows a galaxy twice, too many, or one that is not there
    """
    n_rows = len(task.x)
    if found.labels is not None and np.shape(found.labels) != (n_rows,):
        raise UserError(f"labels: {np.shape(found.labels)}, but {n_rows} galaxies were searched. Give one label each.")
    for number, rows in enumerate(found.montages, start=1):
        unlike = len(np.unique(rows)) != len(rows) or len(rows) > task.montage_size
        if unlike or (len(rows) and not 0 <= min(rows) <= max(rows) < n_rows):
            raise UserError(
                f"montage {number}: shows {list(map(int, rows))}. Show at most {task.montage_size} galaxies, each "
                f"once, by row of task.x, which has {n_rows}."
            )


def _known(survey: KnownSurvey) -> pd.DataFrame:
    return survey.classes.loc[:, ~survey.classes.columns.str.endswith(CONTROL)]


def _representation(survey: KnownSurvey, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(survey.representations[name]()[rows], dtype=np.float32)


def _truth(survey: KnownSurvey) -> list[str]:
    """Hashes of all that is known, and of which galaxies are searched."""
    arrays = [survey.classes.to_numpy(), survey.rows, survey.rows_with_artifacts, survey.kinds.astype(str)]
    return [*map(str, survey.classes), *map(content_hash, arrays)]


def _score_file(results: Path, survey: KnownSurvey, what: str) -> Path:
    # Names of methods come from users, and may hold what no name of a file can.
    return results / f"{quote(f'{survey.name}-seed{survey.seed}-{what}', safe=' ')}.parquet"


def _kept(path: Path, identity: str) -> pd.DataFrame | None:
    """Scores in a file, or None where there are none, or they are of other settings or data."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):
        return None
    return table if set(table["identity"]) == {identity} else None


def _keep(path: Path, scores: pd.DataFrame, survey: KnownSurvey, identity: str, **about: str) -> pd.DataFrame:
    described: dict[str, Any] = {"survey": survey.name, "truth": survey.truth, "seed": survey.seed, **about}
    counts: dict[str, Any] = {"galaxies": len(survey.ids), "searched": len(survey.rows), "identity": identity}
    scores = scores.assign(**described, **counts).reset_index(drop=True)
    with written_beside(path) as temporary:
        scores.to_parquet(temporary, index=False)
    return scores
