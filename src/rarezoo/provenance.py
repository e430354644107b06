"""What an output was made from and with; files and folders that appear under their final name only when complete."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rarezoo.cli import UserError, unwritable

RECORD_NAME = "run.json"
SWEEP_MARK = "multirun.yaml"
_PACKAGES = (
    "rarezoo",
    "torch",
    "lightning",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "umap-learn",
    "pynndescent",
    "faiss-cpu",
    "cuml",
    "fast_hdbscan",
    "hdbscan",
)


def canonical_json(value: object) -> str:
    """JSON text that is the same for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted name -> value; an empty group is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON-like value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def git_commit() -> str | None:
    """Commit of the source tree that this package runs from, with '-dirty' where files differ; None outside git."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {name: installed for name in _PACKAGES if (installed := _version_of(name))}
    return {"python": platform.python_version(), **found}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        if find_spec(package) is None:
            return None
    # Some wheels are named after the CUDA that they are built for, as cuml-cu12 is.
    return next((version(wheel) for wheel in packages_distributions().get(package, ())), None)


def made_with() -> dict[str, Any]:
    """Time, versions and commit, as every output records them."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or folder to; it takes the final name only on success.

    Raises
    ------
    UserError
        if the folder cannot be written to or the disk is full
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".part{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        # mkstemp makes private files; outputs follow the user's umask as any other file does.
        temporary.unlink()
        yield temporary
        _replace(temporary, path)
    except OSError as error:
        reason = unwritable(error)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written ({reason}). Choose another folder, or free space and permissions."
        ) from error
    finally:
        if temporary is not None:
            _remove(temporary)


@contextmanager
def only_one(folder: Path, option: str) -> Iterator[None]:
    """Hold the lock beside a folder that processes share, and clear away what a killed one left half-made there.

    Parameters
    ----------
    folder : that is made whole or not at all, by `written_beside`
    option : that says where it is, for the error

    Raises
    ------
    UserError
        if nothing can be written there
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        reason = unwritable(error) or error
        raise UserError(f"{folder}: cannot be written ({reason}). Choose another folder with {option}=...") from error
    try:
        for half_made in folder.parent.glob(f".{glob.escape(folder.name)}.*.part*"):
            shutil.rmtree(half_made, ignore_errors=True)
        yield
    finally:
        lock.release()


def _replace(temporary: Path, path: Path) -> None:
    if temporary.is_dir() and path.exists():
        retired = temporary.with_name(temporary.name + ".old")
        path.rename(retired)
        temporary.rename(path)
        _remove(retired)
    else:
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def sweep_of(folder: Path) -> Path | None:
    """Folder of the sweep that a job's folder belongs to, which Hydra marks; None for a run on its own."""
    return folder.parent if (folder.parent / SWEEP_MARK).is_file() else None


class RunFolder:
    """Output folder of one stage. It knows whether its work is new, unfinished, done, or that of another run.

    Parameters
    ----------
    path : the folder
    stage : name of the stage
    settings : resolved settings that decide the result, JSON-like
    inputs : what the result is made from, name -> content hash
    overwrite : take over a folder that holds another run
    unfinished_work : name of what an interrupted run leaves in the folder to go on from. Another run's folder is
        taken over without asking where it is neither complete nor holds this.
    result : file without which a run is not complete, whatever its record says
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        overwrite: bool = False,
        unfinished_work: str | None = None,
        result: Path | None = None,
    ) -> None:
        self.path = path
        self._key = {"stage": stage, "settings": dict(settings), "inputs": dict(inputs)}
        self._lock = FileLock(path / ".lock")
        self._acquire()
        # Nobody else writes here now, so what is half-written is what a killed process left.
        elsewhere = result.parent.glob(f".{glob.escape(result.name)}.*.part*") if result else ()
        for abandoned in (*path.glob(".*.part*"), *elsewhere):
            _remove(abandoned)
        previous = self._previous()
        self.complete = False
        self.resumable = False
        same = previous is not None and fingerprint(previous["key"]) == fingerprint(self._key)
        worth_keeping = unfinished_work is not None and (path / unfinished_work).exists()
        if previous and not overwrite and not same and (previous["complete"] or worth_keeping):
            self.close()
            raise self._refusal(previous)
        if previous and not overwrite and same:
            self.complete = bool(previous["complete"]) and (result is None or result.is_file())
            self.resumable = not self.complete
        self.summary: dict[str, Any] = previous["summary"] if previous and self.complete else {}
        if not self.complete:
            self._write(complete=False)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record that all outputs are in place, with what is worth knowing about them."""
        self.summary = dict(summary)
        self._write(complete=True)

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.path}: another process is writing here. Wait for it, or choose another name with name=..."
            ) from error
        except OSError as error:
            reason = unwritable(error) or error
            raise UserError(
                f"{self.path}: cannot be written ({reason}). Choose another folder with output_dir=..."
            ) from error

    def _previous(self) -> dict[str, Any] | None:
        record = self.path / RECORD_NAME
        if not record.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(record.read_text())
            return found if {"key", "complete", "summary"} <= found.keys() else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None

    def _refusal(self, previous: Mapping[str, Any]) -> UserError:
        before, now = ({k: str(v) for k, v in flat(key).items()} for key in (previous["key"], self._key))
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        shown = "; ".join(
            f"{name.removeprefix('settings.')}: {before.get(name)} there, {now.get(name)} now" for name in changed[:4]
        )
        return UserError(
            f"{self.path}: holds a run that differs ({shown}{'; ...' if len(changed) > 4 else ''}). "
            "Choose another name with name=..., or replace it with overwrite=true."
        )

    def _write(self, complete: bool) -> None:
        key = json.loads(canonical_json(self._key))
        write_json(self.path / RECORD_NAME, {**made_with(), "key": key, "complete": complete, "summary": self.summary})
