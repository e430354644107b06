"""Results of the search's stages on disk, each under the hash of what it was made from, so that it is made once."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.provenance import canonical_json, fingerprint, made_with, sha256_of_file, write_json, written_beside

RECORD_NAME = "stage.json"
# Raise it when the layout of a stage's folder changes or a stage computes something else from the same inputs.
FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage's result.

    Attributes
    ----------
    key : name and hash, which is also the folder's name
    arrays : name -> array, memory-mapped and read-only
    info : content of stage.json: name, parameters, inputs, arrays, seconds, peak_memory_bytes, versions, created
    reused : it was found in the store, not computed
    """

    key: str
    arrays: dict[str, NDArray]
    info: dict[str, Any]
    reused: bool

    @property
    def digest(self) -> str:
        """Hash of the arrays' content: what a stage that is made from this one gives as its input."""
        return fingerprint({name: array["sha256"] for name, array in self.info["arrays"].items()})


class StageStore:
    """Folder of stages that any number of processes may share.

    Parameters
    ----------
    root : the folder; it is made when the first stage is written
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def get(
        self,
        name: str,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, str],
        compute: Callable[[], Mapping[str, NDArray]],
    ) -> Stage:
        """Give a stage's result, from the store where it is whole there, computed and stored otherwise.

        Parameters
        ----------
        name : of the stage
        parameters : all settings that decide the result, JSON-like
        inputs : name -> content hash or version of what it is made from
        compute : makes the arrays; called by one process at a time for the same stage

        Raises
        ------
        UserError
            if the folder cannot be written to
        """
        identity = json.loads(
            canonical_json({"format": FORMAT, "name": name, "parameters": dict(parameters), "inputs": dict(inputs)})
        )
        key = f"{name}-{fingerprint(identity)[:12]}"
        folder = self.root / key
        if found := _load(folder, identity, reused=True):
            return found
        with self._locked(key):
            if found := _load(folder, identity, reused=True):
                return found
            if folder.exists():
                log.warning("%s is damaged and is computed again.", folder)
            self._clear_leftovers(key)
            _write(folder, identity, compute)
        made = _load(folder, identity, reused=False)
        if made is None:
            raise UserError(
                f"{folder}: what was written cannot be read back. Check the disk, or choose another folder."
            )
        return made

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold a lock of the operating system's, which ends with its process however that ends."""
        lock = FileLock(self.root / f".{key}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("Waiting for another process that computes %s.", self.root / key)
                lock.acquire()
        except OSError as error:
            raise UserError(
                f"{self.root}: cannot be written ({error.strerror}). Choose another folder for the stages."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _clear_leftovers(self, key: str) -> None:
        for leftover in self.root.glob(f".{key}.*.part*"):
            shutil.rmtree(leftover, ignore_errors=True)


def content_hash(array: NDArray) -> str:
    """Hash of an array's values, dtype and shape."""
    content = hashlib.sha256(np.ascontiguousarray(array).data if array.size else b"")
    return fingerprint([str(array.dtype), array.shape, content.hexdigest()])


def _write(folder: Path, identity: Mapping[str, Any], compute: Callable[[], Mapping[str, NDArray]]) -> None:
    start = time.perf_counter()
    arrays = compute()
    seconds = time.perf_counter() - start
    with written_beside(folder) as temporary:
        temporary.mkdir()
        described: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            described[name] = {
                "shape": list(np.shape(array)),
                "dtype": str(array.dtype),
                "sha256": sha256_of_file(path),
            }
        record = {**identity, **made_with(), "arrays": described, "seconds": round(seconds, 3)}
        write_json(temporary / RECORD_NAME, record | {"peak_memory_bytes": _peak_memory()})


def _load(folder: Path, identity: Mapping[str, Any], reused: bool) -> Stage | None:
    """The stage in a folder, or None where it is not there, not whole, or not what was asked for."""
    try:
        info = json.loads((folder / RECORD_NAME).read_text())
        if any(info[field] != value for field, value in identity.items()):
            return None
        arrays = {name: _read(folder / f"{name}.npy", wanted) for name, wanted in info["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Stage(folder.name, arrays, info, reused)


def _read(path: Path, described: Mapping[str, Any]) -> NDArray:
    if sha256_of_file(path) != described["sha256"]:
        raise ValueError(f"{path} is not what was written")
    array: NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _peak_memory() -> int:
    """Most memory that the process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
