"""Results of the search's stages on disk, each under the hash of what it was made from, so that it is made once."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.provenance import canonical_json, fingerprint, made_with, sha256_of_file, write_json, written_beside

RECORD_NAME = "stage.json"
# Raise it when the layout of a stage's folder changes or a stage computes something else from the same inputs.
FORMAT = 3
# What file systems without locks answer: NFS without its lock service, Lustre mounted without flock, some of FUSE's.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

# A file may change twice within a tick of its clock, which then does not tell.
_CLOCK_TICK = 2.0
# Files that this process has hashed, as they were then: a sweep in one process need not hash a gigabyte for each job.
_whole: dict[Path, tuple[int, int, int, str]] = {}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage's result.

    Attributes
    ----------
    key : name and hash, which is also the folder's name
    arrays : name -> array, memory-mapped and read-only
    info : content of stage.json: name, parameters, inputs, arrays, versions, created, and what computing it took:
        seconds, cpu_seconds (of all threads and of processes that it waited for), peak_memory_bytes (of the process
        while it computed; since its start where the system cannot tell)
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

    What is there is used after the hash of each file is checked. Where the file system has no locks, two processes that
    want the same stage at once may both compute it, and the first to finish gives it to both.

    Parameters
    ----------
    root : the folder; it is made when the first stage is written
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._used: dict[str, tuple[dict[str, Any], bool]] = {}

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
        folder = self.root / f"{name}-{fingerprint(identity)[:12]}"
        stage = _load(folder, identity) or self._compute(folder, identity, compute)
        # Of a stage that is asked for again, the first time tells whether this search computed it.
        self._used.setdefault(stage.key, (stage.info, stage.reused))
        return stage

    def summary(self) -> dict[str, Any]:
        """What was computed and what was reused through this object; a stage that was asked for twice counts once.

        Returns
        -------
        stages_computed, stages_reused, seconds_computed, seconds_saved (what the reused ones once took), and `stages`:
        the same by name of stage as computed, reused, seconds, cpu_seconds (of those computed), seconds_saved, and the
        largest peak_memory_bytes
        """
        stages: dict[str, dict[str, Any]] = {}
        for info, reused in self._used.values():
            counted = stages.setdefault(
                info["name"],
                {"computed": 0, "reused": 0, "seconds": 0.0, "cpu_seconds": 0.0, "seconds_saved": 0.0},
            )
            counted["reused" if reused else "computed"] += 1
            counted["seconds_saved" if reused else "seconds"] += info["seconds"]
            counted["cpu_seconds"] += 0.0 if reused else info["cpu_seconds"]
            counted["peak_memory_bytes"] = max(counted.get("peak_memory_bytes", 0), info["peak_memory_bytes"])
        return {
            "stages_computed": sum(counted["computed"] for counted in stages.values()),
            "stages_reused": sum(counted["reused"] for counted in stages.values()),
            "seconds_computed": sum(counted["seconds"] for counted in stages.values()),
            "seconds_saved": sum(counted["seconds_saved"] for counted in stages.values()),
            "stages": stages,
        }

    def _compute(
        self, folder: Path, identity: Mapping[str, Any], compute: Callable[[], Mapping[str, NDArray]]
    ) -> Stage:
        with self._locked(folder.name) as alone:
            if found := _load(folder, identity):
                return found
            if folder.exists():
                log.warning("%s is damaged and is computed again.", folder)
            if alone:
                clear_leftovers(folder)
            try:
                _write(folder, identity, compute)
            except (OSError, UserError):
                # Where locks do not hold, another process may have put it there first, and a folder that is not empty
                # is not replaced.
                if found := _load(folder, identity):
                    return found
                raise
        made = _load(folder, identity, reused=False)
        if made is None:
            raise UserError(
                f"{folder}: what was written cannot be read back. Check the disk, or choose another folder."
            )
        return made

    @contextmanager
    def _locked(self, key: str) -> Iterator[bool]:
        """Hold a lock of the operating system's, which ends with its process however that ends; False for no lock."""
        lock = stage_lock(self.root / key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("Waiting for another process that computes %s.", self.root / key)
                lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(
                    f"{self.root}: cannot be written ({error.strerror}). Choose another folder for the stages with "
                    "stages=..."
                ) from error
            log.warning("%s: the file system has no locks. Jobs may compute the same stage twice.", self.root)
        try:
            yield lock.is_locked
        finally:
            lock.release()


class _HashedStream:
    """A file that is hashed while it is written: by what was meant, not by what the disk made of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._sha256.update(content)
        return self._stream.write(content)

    def sha256(self) -> str:
        return self._sha256.hexdigest()


def stage_lock(folder: Path) -> FileLock:
    """Lock that a process holds while it computes the stage of a folder, or removes it."""
    # filelock's own way out where the file system has no locks, a file that marks one, would outlive a process that is
    # killed on another node.
    return FileLock(folder.with_name(f".{folder.name}.lock"), fallback_to_soft=False)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left of a stage; for the holder of its lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.part*"):
        shutil.rmtree(leftover, ignore_errors=True)


def content_hash(array: NDArray) -> str:
    """Hash of an array's values, dtype and shape."""
    content = hashlib.sha256(np.ascontiguousarray(array).data if array.size else b"")
    return fingerprint([str(array.dtype), array.shape, content.hexdigest()])


def _write(folder: Path, identity: Mapping[str, Any], compute: Callable[[], Mapping[str, NDArray]]) -> None:
    arrays, cost = _measured(compute)
    with written_beside(folder) as temporary:
        temporary.mkdir()
        described = {name: _save(temporary / f"{name}.npy", np.asarray(array)) for name, array in arrays.items()}
        record = json.loads(canonical_json({**identity, **made_with(), "arrays": described, **cost}))
        write_json(temporary / RECORD_NAME, {**record, "sha256": fingerprint(record)})


def _save(path: Path, array: NDArray) -> dict[str, Any]:
    with path.open("wb") as stream:
        # Given a file of its own, numpy writes around Python, and then a full disk has no error number.
        hashed = _HashedStream(stream)
        np.save(hashed, array, allow_pickle=False)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": hashed.sha256()}


def _load(folder: Path, identity: Mapping[str, Any], reused: bool = True) -> Stage | None:
    """The stage in a folder, or None where it is not there, not whole, or not what was asked for."""
    try:
        info = json.loads((folder / RECORD_NAME).read_text())
        written = info.pop("sha256")
        if written != fingerprint(info) or any(info[field] != value for field, value in identity.items()):
            return None
        arrays = {name: _read(folder / f"{name}.npy", wanted) for name, wanted in info["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with suppress(OSError):
        # The time of the last use, by which stages that nobody needs any more are found.
        os.utime(folder / RECORD_NAME)
    return Stage(folder.name, arrays, info, reused)


def _read(path: Path, described: Mapping[str, Any]) -> NDArray:
    status = path.stat()
    seen = (status.st_ino, status.st_size, status.st_mtime_ns, described["sha256"])
    if _whole.get(path) != seen:
        if sha256_of_file(path) != described["sha256"]:
            raise ValueError(f"{path} is not what was written")
        if time.time() - status.st_mtime > _CLOCK_TICK:
            _whole[path] = seen
    array: NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _measured(compute: Callable[[], Mapping[str, NDArray]]) -> tuple[Mapping[str, NDArray], dict[str, float | int]]:
    with suppress(OSError):
        # Linux forgets the peak so far (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    arrays = compute()
    cost: dict[str, float | int] = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(_cpu_seconds() - cpu_start, 3),
        "peak_memory_bytes": _peak_memory(),
    }
    return arrays, cost


def _cpu_seconds() -> float:
    """User and system time of all threads of this process, and of the processes that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _peak_memory() -> int:
    """Most memory that the process has held since its peak was last forgotten, in bytes."""
    try:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
