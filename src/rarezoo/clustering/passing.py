"""Stores for what is not worth keeping, which do not outlive the process that made them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rarezoo.clustering.stages import StageStore, stage_lock

_PREFIX = ".passing-"
# A store that was just made may not be locked yet.
_SECONDS_TO_LOCK = 60.0


@contextmanager
def passing_store(beside: StageStore) -> Iterator[StageStore]:
    """A store on the same disk as another, which is removed at the end.

    That of a process that was killed is removed by the next one, and by `rarezoo.clustering.tidy`.
    """
    beside.root.mkdir(parents=True, exist_ok=True)
    clear_passing(beside.root)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=beside.root) as folder:
        lock = _lock(Path(folder))
        # Where the file system has no locks, nothing is removed that another process may use.
        with suppress(OSError):
            lock.acquire()
        try:
            yield StageStore(Path(folder))
        finally:
            lock.release()


def clear_passing(root: Path) -> list[str]:
    """Remove the passing stores in a folder whose processes are gone; give their names."""
    removed = []
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < _SECONDS_TO_LOCK:
                continue
            with _lock(folder).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, Timeout):
            continue
        removed.append(folder.name)
    return removed


def _lock(folder: Path) -> FileLock:
    return stage_lock(folder / "passing")
