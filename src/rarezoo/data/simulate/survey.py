"""The embedded data set: a survey of rendered galaxies with volunteers' votes, and planted rare classes to find."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rarezoo.cli import UserError, progress
from rarezoo.data.simulate.chunks import CHUNK_SIZE, Chunk, made_in_order
from rarezoo.data.simulate.rare import RARE_CLASSES
from rarezoo.provenance import (
    canonical_json,
    fingerprint,
    made_with,
    only_one,
    sha256_of_file,
    write_json,
    written_beside,
)

RECORD_NAME = "survey.json"
SIMULATION_VERSION = 1
"""Raised whenever the same arguments give other pictures or votes: an older survey is then not taken for a new one."""
MIN_SIZE = 32
_MAX_SEED = 2**63 - 1
_ROW_GROUP = 5000
_PLACES_STREAM = 0
_OPTIONS = {"size": "data.survey_size", "seed": "data.survey_seed"}
_FIX = "Choose another folder with data.root=..., or remove this one."
Tree = Mapping[str, Mapping[str, Any]]


def simulate_survey(
    root: Path,
    n_galaxies: int,
    size: int,
    seed: int,
    decision_tree: Tree,
    rare_share_min: float = 0.0005,
    rare_share_max: float = 0.005,
    artifact_share: float = 0.04,
    workers: int | None = None,
) -> bool:
    """Make a simulated survey, or find it made.

    Writes `root`/images/0000/SIM000000012.jpg and so on, `root`/catalog.parquet (id_str, file_loc, ra, dec, votes),
    `root`/truth.parquet (rare class, artifact and the physical parameters, of which the catalog tells nothing) and
    `root`/survey.json. Catalog and truth have the same bytes for the same arguments, whatever the number of workers.
    The folder appears when it is complete. A process that finds another one at work waits for it.

    Parameters
    ----------
    root : folder of the survey
    n_galaxies : number of galaxies, rare ones included
    size : side of the cutouts, px; the same seed gives the same galaxies at any size
    seed : 0 or more
    decision_tree : question -> {"answers": [...], "asked_after": None, a label column, or several}
    rare_share_min, rare_share_max : shares of the first and the last of `RARE_CLASSES` among all galaxies, the others
        spaced evenly in logarithm between them; both 0 plants none
    artifact_share : probability that a galaxy's picture is spoilt
    workers : processes; None takes as many as this process may use cores

    Returns
    -------
    True if the survey was made, False if it was there

    Raises
    ------
    UserError
        if an argument is out of range, or `root` holds something else
    """
    arguments = {
        "n_galaxies": n_galaxies,
        "size": size,
        "seed": seed,
        "rare_share_min": rare_share_min,
        "rare_share_max": rare_share_max,
        "artifact_share": artifact_share,
    }
    _check(arguments, workers)
    key = {**arguments, "decision_tree": fingerprint(decision_tree), "simulation": SIMULATION_VERSION}
    if _is_made(root, key):
        return False
    with only_one(root, "data.root"):
        if _is_made(root, key):
            return False
        with written_beside(root) as folder:
            _write_survey(folder, key, decision_tree, workers or _usable_cores())
    return True


def rare_counts(n_galaxies: int, rare_share_min: float, rare_share_max: float) -> dict[str, int]:
    """Number of members of each rare class: its share times the number of galaxies, rounded."""
    if rare_share_max == 0:
        return dict.fromkeys(RARE_CLASSES, 0)
    shares = np.geomspace(rare_share_min, rare_share_max, len(RARE_CLASSES))
    return {name: round(float(share) * n_galaxies) for name, share in zip(RARE_CLASSES, shares, strict=True)}


def _rare_places(counts: Mapping[str, int], n_galaxies: int, seed: int) -> dict[int, str]:
    """Index -> rare class, scattered over the survey."""
    names = [name for name, count in counts.items() for _ in range(count)]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PLACES_STREAM,)))
    places = rng.choice(n_galaxies, len(names), replace=False)
    return dict(sorted(zip(places.tolist(), names, strict=True)))


def _check(arguments: Mapping[str, Any], workers: int | None) -> None:
    shares = ("rare_share_min", "rare_share_max", "artifact_share")
    ceiling = 1 / len(RARE_CLASSES)
    limits: dict[str, tuple[float, float]] = {
        "n_galaxies": (1, 10**9 - 1),
        "size": (MIN_SIZE, 4096),
        "seed": (0, _MAX_SEED),
        "rare_share_min": (0, ceiling),
        "rare_share_max": (0, ceiling),
        "artifact_share": (0, 1),
    }
    for name, (low, high) in limits.items():
        value = arguments[name]
        kinds = (int, float) if name in shares else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            what = "a number" if name in shares else "a whole number"
            raise UserError(f"{_option(name)}={value}: must be {what} from {low:g} to {high:g}.")
    low, high = arguments["rare_share_min"], arguments["rare_share_max"]
    if low > high or (low == 0) != (high == 0):
        raise UserError(
            f"data.rare_share_min={low}, data.rare_share_max={high}: the least share must be above 0 and no more than "
            "the largest. Set both to 0 to plant no rare classes."
        )
    planted = sum(rare_counts(arguments["n_galaxies"], low, high).values())
    if planted > arguments["n_galaxies"]:
        raise UserError(
            f"data.n_galaxies={arguments['n_galaxies']}: fewer than the {planted} rare galaxies that "
            f"data.rare_share_min={low} and data.rare_share_max={high} ask for. Take more galaxies or smaller shares."
        )
    if workers is not None and workers < 1:
        raise UserError(f"data.workers={workers}: must be at least 1, or auto.")


def _option(argument: str) -> str:
    return _OPTIONS.get(argument, f"data.{argument}")


def _is_made(root: Path, key: Mapping[str, Any]) -> bool:
    """Whether this very survey is there; refuses a folder that holds another survey or anything else."""
    record = root / RECORD_NAME
    if not record.exists():
        if root.is_dir() and not any(root.iterdir()):
            return False
        if root.exists():
            raise UserError(f"{root}: is there and holds no simulated survey. {_FIX}")
        return False
    try:
        before = json.loads(record.read_text())["arguments"]
        names = [name for name in key if before.get(name) != json.loads(canonical_json(key[name]))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record}: cannot be read ({error}). {_FIX}") from error
    if not names:
        return True
    raise UserError(
        f"{root}: holds a survey that differs ({'; '.join(_difference(n, before, key) for n in names)}). {_FIX}"
    )


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "decision_tree":
        return "made for another decision tree (schema=...)"
    if name == "simulation":
        return f"made by version {before.get(name)} of the simulation, this is {now[name]}"
    return f"{_option(name)}: {before.get(name)} there, {now[name]} now"


def _write_survey(folder: Path, key: Mapping[str, Any], decision_tree: Tree, workers: int) -> None:
    folder.mkdir()
    n_galaxies = key["n_galaxies"]
    counts = rare_counts(n_galaxies, key["rare_share_min"], key["rare_share_max"])
    places = _rare_places(counts, n_galaxies, key["seed"])
    n_chunks = -(-n_galaxies // CHUNK_SIZE)
    with closing(made_in_order(_chunks(folder, key, decision_tree, places), min(workers, n_chunks))) as made:
        _write_tables(folder, progress(made, "Simulating galaxies", total=n_chunks, unit=f"x{CHUNK_SIZE}"))
    tables = ("catalog.parquet", "truth.parquet")
    record = {
        **made_with(),
        "arguments": dict(key),
        "rare_classes": counts,
        "sha256": {name: sha256_of_file(folder / name) for name in tables},
    }
    write_json(folder / RECORD_NAME, record)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(folder: Path, key: Mapping[str, Any], decision_tree: Tree, places: Mapping[int, str]) -> Iterator[Chunk]:
    for start in range(0, key["n_galaxies"], CHUNK_SIZE):
        stop = min(start + CHUNK_SIZE, key["n_galaxies"])
        yield Chunk(
            folder=folder,
            start=start,
            stop=stop,
            size=key["size"],
            seed=key["seed"],
            artifact_share=key["artifact_share"],
            decision_tree=decision_tree,
            rare={index: places[index] for index in range(start, stop) if index in places},
        )


def _write_tables(folder: Path, made: Iterable[tuple[pa.Table, pa.Table]]) -> None:
    """Append the rows of catalog and truth to their files as they come."""
    catalog, truth = _TableWriter(folder / "catalog.parquet"), _TableWriter(folder / "truth.parquet")
    try:
        for catalog_rows, truth_rows in made:
            catalog.add(catalog_rows)
            truth.add(truth_rows)
    finally:
        catalog.close()
        truth.close()


class _TableWriter:
    """Parquet file that grows by row groups of at least `_ROW_GROUP` rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        if sum(len(table) for table in self._rows) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        rows = pa.concat_tables(self._rows).combine_chunks()
        self._rows = []
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, rows.schema)
        self._writer.write_table(rows)
