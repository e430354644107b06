"""What the writers of HDF5 here have in common: a disk that may fill up, and what a file says of itself."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from rarezoo.cli import UserError
from rarezoo.embeddings.store import FORMAT
from rarezoo.provenance import canonical_json, fingerprint, made_with, written_beside
from rarezoo.signals import held_signals
from rarezoo.votes import Schema

TEXT = h5py.string_dtype("utf-8")


@contextmanager
def written_hdf5(path: Path) -> Iterator[tuple[h5py.File, SteadyFile]]:
    """Give a new HDF5 file, which takes its name when it is whole, and the disk, to be checked now and then.

    Raises
    ------
    UserError
        if the folder cannot be written to or the disk is full
    KeyboardInterrupt
        where the disk is checked, if the run was interrupted
    """
    with written_beside(path) as temporary, held_signals() as let_through, SteadyFile(temporary, let_through) as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.check()


def require_room(path: Path, needed: int) -> None:
    """Refuse to start what cannot be written in the end.

    Parameters
    ----------
    path : of a file to be written; its folder is made
    needed : bytes

    Raises
    ------
    UserError
        if the folder cannot be written to, or has less room
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({os.strerror(error.errno or 0)}). "
            "Choose another folder, or free space and permissions."
        ) from error
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"{path}: takes at least {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there. "
            "Free space, or choose another folder with output_dir=..."
        )


class SteadyFile(io.FileIO):
    """A file that keeps in memory what the disk did not take: HDF5 crashes the process where a write fails.

    Parameters
    ----------
    path : of the file
    let_through : of `held_signals`; HDF5 crashes where a signal interrupts a write, too
    """

    def __init__(self, path: Path, let_through: Callable[[], None]) -> None:
        super().__init__(path, "w+")
        self._let_through = let_through
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise what a write has met, if anything, and let signals through that were held back."""
        self._let_through()
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write, or keep in memory."""
        start, whole = self.tell(), memoryview(data).cast("B")
        left = whole
        try:
            while left and self._error is None:
                left = left[os.write(self.fileno(), left) :]
        except OSError as error:
            self._error = error
        if left:
            self._kept.append((start, bytes(whole)))
            self.seek(start + len(whole))
        return len(whole)

    def readinto(self, buffer: Any) -> int:
        """Read what was written, wherever it is."""
        start, target = self.tell(), memoryview(buffer).cast("B")
        n_read = super().readinto(target) or 0
        if self._error is None:
            return n_read
        target[n_read:] = bytes(len(target) - n_read)
        for at, piece in self._kept:
            first, last = max(at, start), min(at + len(piece), start + len(target))
            if first < last:
                target[first - start : last - start] = piece[first - at : last - at]
        return len(target)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file as far as the disk lets it."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0


def write_attributes(file: h5py.File, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Write what a file of format 1 says of itself, and with it that the file is complete.

    Parameters
    ----------
    schema : of the concentrations; without questions where there are none
    attributes : further ones; image_root and n_failed among them
    """
    made = made_with()
    tree = schema.to_tree()
    common = {
        "format": FORMAT,
        "created": made["created"],
        "rarezoo": made["versions"].get("rarezoo", ""),
        "versions": canonical_json(made["versions"]),
        "git_commit": made["git_commit"] or "",
        # The order of the questions is that of the columns, so keys are not sorted.
        "schema": json.dumps(tree),
        "schema_sha256": fingerprint(tree),
    }
    for name, value in {**common, **attributes}.items():
        file.attrs[name] = value
    file.attrs.create("label_cols", list(schema.label_cols), dtype=TEXT)
    file.attrs["complete"] = True
