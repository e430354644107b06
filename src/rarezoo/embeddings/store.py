"""Reading `embeddings.h5`, format 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from rarezoo.cli import UserError
from rarezoo.votes import Schema, expected_vote_fractions

FORMAT = 1
CARRIED = "carried"
_REQUIRED = ("id", "representation", "concentrations", "file_loc")
_CHUNK_ROWS = 65_536


class Rows:
    """A dataset on disk that gives any of its rows without holding the others in memory.

    Parameters
    ----------
    dataset : HDF5 dataset (N, width)
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int | np.ndarray) -> np.ndarray:
        """Rows by slice, number, array of numbers or mask, as numpy does; HDF5's own look-up of many rows is slow."""
        if not isinstance(rows, np.ndarray):
            found: np.ndarray = self._dataset[rows]
            return found
        # numpy's own rules for masks, and for numbers that are negative or out of range.
        numbers = np.arange(len(self))[rows]
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        picked = np.empty((len(numbers), self.shape[1]), self.dtype)
        for start in range(0, len(self), _CHUNK_ROWS):
            first, last = np.searchsorted(ascending, [start, start + _CHUNK_ROWS])
            if last > first:
                piece = self._dataset[start : start + _CHUNK_ROWS]
                picked[order[first:last]] = piece[ascending[first:last] - start]
        return picked


class Embeddings:
    """An open file of embeddings; arrays are read from disk where they are indexed.

    Attributes
    ----------
    path : the file
    representation : (N, D), float32 or float16; index it to read rows
    concentrations : (N, A), float32
    schema : decision tree that the A answers belong to
    label_cols : names of the A answers
    attributes : what the file says of itself (format, created, git_commit, config, checkpoint_sha256, ...)
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.attributes: dict[str, Any] = dict(file.attrs)
        self.schema = Schema.from_tree(json.loads(self.attributes["schema"]), str(path))
        self.label_cols = self.schema.label_cols
        self.representation = Rows(file["representation"])
        self.concentrations = Rows(file["concentrations"])
        self._file = file

    def __len__(self) -> int:
        return len(self.representation)

    @property
    def ids(self) -> np.ndarray:
        """(N,) identifiers as text."""
        return np.asarray(self._file["id"].asstr()[:], dtype=object)

    @property
    def files(self) -> np.ndarray:
        """(N,) paths of the images, joined to the folder that they were read from."""
        root = Path(str(self.attributes["image_root"]))
        return np.asarray([str(root / location) for location in self._file["file_loc"].asstr()[:]], dtype=object)

    def vote_fractions(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Expected vote fractions (rows, A), float32; a slice is read piece by piece."""
        if not isinstance(rows, slice):
            return self._fractions(self.concentrations[rows])
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self._fractions(self.concentrations[rows])
        pieces = [
            self._fractions(self.concentrations[at : min(at + _CHUNK_ROWS, stop)])
            for at in range(start, stop, _CHUNK_ROWS)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, len(self.label_cols)), np.float32)

    def to_pandas(self) -> pd.DataFrame:
        """One row per galaxy: id_str, file, ra, dec where known, carried columns; without the representation."""
        table = pd.DataFrame({"id_str": self.ids, "file_loc": self.files})
        for name in ("ra", "dec"):
            if name in self._file:
                table[name] = self._file[name][:]
        for key, dataset in self._file.get(CARRIED, {}).items():
            column = dataset.attrs.get("column", key)
            table[column] = dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]
        return table

    def failed(self) -> pd.DataFrame:
        """Images that could not be read: id_str, file_loc, reason."""
        group = self._file["failed"]
        return pd.DataFrame({name: group[name].asstr()[:] for name in ("id_str", "file_loc", "reason")})

    def _fractions(self, concentrations: np.ndarray) -> np.ndarray:
        return expected_vote_fractions(torch.from_numpy(concentrations), self.schema).numpy()


@contextmanager
def open_embeddings(path: str | Path) -> Iterator[Embeddings]:
    """Open a file of embeddings for reading.

    Raises
    ------
    UserError
        if there is no such file, it is not HDF5, not of this format, not complete, or its arrays do not agree
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"embeddings={path}: there is no such file. Run embed.py first, or give embeddings=<file>.h5.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path}: is not a whole HDF5 file ({error}). Run embed.py again with overwrite=true."
        ) from error
    with file:
        try:
            _check(path, file)
            embeddings = Embeddings(path, file)
        except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}). Run embed.py again with overwrite=true.") from error
        yield embeddings


def _check(path: Path, file: h5py.File) -> None:
    found = file.attrs.get("format", "none")
    if not np.array_equal(found, FORMAT):
        raise UserError(f"{path}: has format {found}, not embeddings format {FORMAT}. Give a file that embed.py wrote.")
    missing = [name for name in _REQUIRED if name not in file]
    if missing or not file.attrs.get("complete", False):
        raise UserError(f"{path}: is not complete ({', '.join(missing) or 'complete is false'}). Run embed.py again.")
    lengths = {name: file[name].shape[0] for name in _REQUIRED}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: its arrays differ in length ({lengths}). Run embed.py again with overwrite=true.")
    if file["representation"].ndim != 2 or file["concentrations"].ndim != 2:
        raise ValueError("representation and concentrations are not tables")
    n_columns, n_answers = file["concentrations"].shape[1], len(file.attrs["label_cols"])
    if n_columns != n_answers:
        raise UserError(
            f"{path}: has concentrations of {n_columns} answers, and names {n_answers}. "
            "Run embed.py again with overwrite=true."
        )
