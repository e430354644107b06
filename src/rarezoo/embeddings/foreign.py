"""Files of representations and predictions that other programs write, and how they are read.

Zoobot writes HDF5 of three datasets: `predictions` (galaxy, feature) or (galaxy, answer, pass ...), `id_str` and
`label_cols`, which are feat_0, feat_1, ... for features. The representations of GZ DESI are published as parquet:
`id_str`, `ra`, `dec`, feat_pca_0, feat_pca_1, ...
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.embeddings.rows import PIECE_BYTES, Rows
from rarezoo.votes import load_schema
from rarezoo.votes.tree_files import tree_names

Kind = Literal["features", "predictions", "parquet"]

ZOOBOT_DATASETS = ("predictions", "id_str", "label_cols")
_FEATURE = re.compile(r"feat_(pca_)?\d+")
_DAMAGE = (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError)
_SAID = {
    "features": "a Zoobot file of features",
    "predictions": "a Zoobot file of predicted votes",
    "parquet": "a parquet table of representations",
}


class Foreign(Protocol):
    """Galaxies of a foreign file.

    Attributes
    ----------
    path : the file
    kind : what it holds
    ids : (N,) text
    columns : names of the features or answers
    """

    path: Path
    kind: Kind
    ids: pa.Array
    columns: list[str]

    def coordinates(self) -> dict[str, NDArray[np.float64]]:
        """`ra` and `dec`, (N,) degrees, where the file has them."""
        ...

    def pieces(self) -> Iterator[NDArray[np.floating]]:
        """Values (rows, columns), or (rows, columns, passes ...), in order; some MB at a time."""
        ...


class ZoobotFile:
    """HDF5 as Zoobot writes it; see `Foreign`.

    Attributes
    ----------
    shape : of the values, (N, columns) or (N, columns, passes ...)

    Raises
    ------
    UserError
        if its datasets do not agree in size
    """

    def __init__(self, path: Path, file: h5py.File, kind: Kind) -> None:
        self.path = path
        self.kind = kind
        self.columns: list[str] = file["label_cols"].asstr()[:].tolist()
        self._values = Rows(file["predictions"])
        self.shape = self._values.shape
        ids = Rows(file["id_str"])
        if self.shape[:2] != (len(ids), len(self.columns)) or not all(self.shape[1:]):
            raise UserError(
                f"{path}: 'predictions' is of shape {self.shape}, with {len(ids)} ids and {len(self.columns)} label "
                "columns. Predict again."
            )
        self.ids = pa.chunked_array(
            [pa.array(piece, pa.string()) for piece in ids.pieces()], pa.string()
        ).combine_chunks()

    def coordinates(self) -> dict[str, NDArray[np.float64]]:
        """None."""
        return {}

    def pieces(self) -> Iterator[NDArray[np.floating]]:
        """Values, piece by piece."""
        for span in self._values.spans():
            with _reading(self.path):
                piece = self._values[span]
            yield piece

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Values of some rows, in any order."""
        with _reading(self.path):
            return self._values[rows]


class ParquetTable:
    """Parquet as the representations of GZ DESI are published; see `Foreign`.

    Raises
    ------
    UserError
        if its ids are numbers that are not whole
    """

    kind: Kind = "parquet"

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self.path = path
        self.columns: list[str] = [name for name in file.schema_arrow.names if _FEATURE.fullmatch(name)]
        self._file = file
        ids = self._column("id_str")
        if pa.types.is_floating(ids.type):
            raise UserError(f"{path}: column 'id_str' holds floating-point numbers, which do not keep long ids exact.")
        self.ids = ids.cast(pa.string())

    def coordinates(self) -> dict[str, NDArray[np.float64]]:
        """`ra` and `dec` where the table has them."""
        with _reading(self.path):
            names = [name for name in ("ra", "dec") if name in self._file.schema_arrow.names]
            return {name: self._column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names}

    def pieces(self) -> Iterator[NDArray[np.floating]]:
        """Features in the order of `columns`, piece by piece."""
        batches = self._file.iter_batches(max(1, PIECE_BYTES // (4 * len(self.columns))), columns=self.columns)
        while True:
            with _reading(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                piece = np.empty((batch.num_rows, len(self.columns)), np.float32)
                for index, name in enumerate(self.columns):
                    piece[:, index] = batch.column(name).to_numpy(zero_copy_only=False)
            yield piece

    def _column(self, name: str) -> pa.Array:
        return self._file.read(columns=[name]).column(0).combine_chunks()


@contextmanager
def open_foreign(path: Path) -> Iterator[ZoobotFile | ParquetTable]:
    """Open a file of another program.

    Raises
    ------
    UserError
        if there is no such file, it is of no kind that is known here, or it is damaged
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    kind = kind_of(path)
    if kind is None:
        raise UserError(
            f"{path}: is neither HDF5 with {', '.join(ZOOBOT_DATASETS)}, as Zoobot writes it, nor parquet with id_str "
            "and feat_pca_0, feat_pca_1, ..., as GZ DESI's representations are published. Embeddings of this program "
            "are converted with --to."
        )
    with ExitStack() as stack:
        with _reading(path):
            if kind == "parquet":
                # Read ahead, whole columns would stay in memory until the last row.
                table = stack.enter_context(pq.ParquetFile(path, pre_buffer=False))
                opened: ZoobotFile | ParquetTable = ParquetTable(path, table)
            else:
                opened = ZoobotFile(path, stack.enter_context(h5py.File(path, "r")), kind)
        yield opened


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read ({reason}). It is damaged: copy it anew.") from error


def kind_of(path: Path) -> Kind | None:
    """What a foreign file holds; None for a file of no kind that is known here."""
    try:
        with path.open("rb") as stream:
            is_parquet = stream.read(4) == b"PAR1"
        if is_parquet:
            names = pq.read_schema(path).names
            return "parquet" if "id_str" in names and any(map(_FEATURE.fullmatch, names)) else None
        with h5py.File(path, "r") as file:
            if not all(name in file for name in ZOOBOT_DATASETS):
                return None
            return "features" if all(map(_FEATURE.fullmatch, file["label_cols"].asstr()[:])) else "predictions"
    except _DAMAGE:
        return None


def features_in_order(path: Path, columns: list[str]) -> list[int]:
    """Places of feat_0, feat_1, ... (or feat_pca_0, ...) among the columns.

    Raises
    ------
    UserError
        if one is missing or there twice
    """
    prefix = columns[0].rstrip("0123456789")
    wanted = [f"{prefix}{index}" for index in range(len(columns))]
    if absent := [name for name in wanted if name not in columns]:
        raise UserError(f"{path}: has {len(columns)} features, and none is '{absent[0]}'. Take the whole file.")
    return [columns.index(name) for name in wanted]


def how_to_convert(path: Path) -> str | None:
    """For a foreign file, what it is and the command that converts it; None for any other."""
    kind = kind_of(path)
    if kind is None:
        return None
    command = ["python", "-m", "rarezoo.embeddings.convert", str(path), str(path.with_name(f"{path.stem}_format1.h5"))]
    if kind == "predictions":
        with h5py.File(path, "r") as file:
            command += ["--schema", tree_with(file["label_cols"].asstr()[:].tolist()) or "NAME"]
    return f"{path}: is {_SAID[kind]}, not embeddings of this program. Convert it: {shlex.join(command)}"


def tree_with(label_cols: list[str]) -> str | None:
    """Name of the tree, of those that come along, that has just these answers."""
    return next((name for name in tree_names() if set(load_schema(name).label_cols) == set(label_cols)), None)
