"""A worker's share of a simulated survey: a run of galaxies, their votes and their picture files; and the workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data.simulate.picture import take_picture
from rarezoo.data.simulate.population import Galaxy, draw_population
from rarezoo.data.simulate.rare import draw_rare
from rarezoo.data.simulate.votes import simulate_votes

CHUNK_SIZE = 200
"""Galaxies that share a generator. Part of what a seed means: another size gives another survey."""
JPEG_QUALITY = 92
_PER_FOLDER = 1000
_FOOTPRINT_DEC = (-18.0, 34.0)
_CHUNK_STREAM, _PICTURE_STREAM = 1, 2

Tables = tuple[pa.Table, pa.Table]

_stop: Event | None = None


@dataclass(frozen=True)
class Chunk:
    """A run of galaxies and all that decides what they are.

    Attributes
    ----------
    folder : of the survey; pictures go to images/ in it
    start, stop : indices of the first galaxy and of the first one after
    size : side of the cutouts, px
    seed : of the survey
    artifact_share : 0..1
    decision_tree : question -> answers and parents
    rare : index -> rare class, for the galaxies of this run that belong to one
    """

    folder: Path
    start: int
    stop: int
    size: int
    seed: int
    artifact_share: float
    decision_tree: Mapping[str, Mapping[str, Any]]
    rare: Mapping[int, str]


class StoppedError(Exception):
    """The survey was interrupted while this chunk was being made."""


def start_worker(stop: Event) -> None:
    """Make a process ready for chunks: it heeds `stop`, and ends when its parent does, however that ends."""
    global _stop
    _stop = stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def made_in_order(chunks: Iterable[Chunk], workers: int) -> Generator[Tables, None, None]:
    """Make chunks in so many processes and give their tables in order; no more than a few wait at any time.

    Close the generator before its folder is removed: it ends when no worker writes any more.

    Raises
    ------
    UserError
        if a worker process is killed
    """
    if workers == 1:
        yield from map(simulate_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(stop,))
    remaining = iter(chunks)
    try:
        waiting: deque[Future[Tables]] = deque()
        with _interrupts_held_back():
            waiting.extend(pool.submit(simulate_chunk, chunk) for chunk in islice(remaining, 2 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(simulate_chunk, chunk) for chunk in islice(remaining, 1))
    except BrokenProcessPool as error:
        stop.set()
        raise UserError(
            f"data.workers={workers}: a worker process was ended from outside, as when memory runs out. "
            "Try fewer, e.g. data.workers=1."
        ) from error
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait. Processes started meanwhile never see it: their parent alone decides what an interrupt means."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def simulate_chunk(chunk: Chunk) -> Tables:
    """Write the pictures of a chunk; return its rows of the catalog and of the truth.

    Raises
    ------
    StoppedError
        if the survey is interrupted
    """
    rng = _generator(chunk.seed, _CHUNK_STREAM, chunk.start // CHUNK_SIZE)
    n = chunk.stop - chunk.start
    galaxies = draw_population(n, chunk.size, chunk.artifact_share, rng)
    for index, name in chunk.rare.items():
        galaxies[index - chunk.start] = draw_rare(name, chunk.size, rng)
    parameters = pd.DataFrame([vars(galaxy) for galaxy in galaxies])
    ra, dec = rng.uniform(0, 360, n), _declinations(n, rng)
    votes = simulate_votes(parameters, chunk.decision_tree, rng)
    _write_pictures(chunk, galaxies)
    indices = range(chunk.start, chunk.stop)
    ids = pa.array([id_of(index) for index in indices])
    files = pa.array([file_of(index) for index in indices])
    counts = {name: votes[name].to_numpy(np.int32) for name in votes}
    catalog = pa.table({"id_str": ids, "file_loc": files, "ra": ra, "dec": dec, **counts})
    return catalog, pa.table({"id_str": ids, **_truth_columns(parameters)})


def id_of(index: int) -> str:
    """Identifier of the galaxy with this number."""
    return f"SIM{index:09d}"


def file_of(index: int) -> str:
    """Its picture, relative to the catalog's folder."""
    return f"images/{index // _PER_FOLDER:04d}/{id_of(index)}.jpg"


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _declinations(n: int, rng: np.random.Generator) -> np.ndarray:
    """Degrees, even in area between the limits of the footprint."""
    low, high = np.sin(np.radians(_FOOTPRINT_DEC))
    return np.degrees(np.arcsin(rng.uniform(low, high, n)))


def _write_pictures(chunk: Chunk, galaxies: Sequence[Galaxy]) -> None:
    for index, galaxy in enumerate(galaxies, start=chunk.start):
        if _stop is not None and _stop.is_set():
            raise StoppedError
        picture = take_picture(galaxy, chunk.size, _generator(chunk.seed, _PICTURE_STREAM, index))
        path = chunk.folder / file_of(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=JPEG_QUALITY, subsampling=0)


def _truth_columns(parameters: pd.DataFrame) -> dict[str, pa.Array]:
    """Named and typed as the fields of `Galaxy`, classes first."""
    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64()}
    names = [field.name for field in fields(Galaxy)]
    first = ["rare_class", "artifact", "morphology"]
    kinds = {field.name: types[str(field.type)] for field in fields(Galaxy)}
    ordered = first + [name for name in names if name not in first]
    return {name: pa.array(parameters[name].tolist(), kinds[name]) for name in ordered}
