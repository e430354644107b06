"""Galaxy catalogs: read from any usual table format, checked in full before the first image is opened."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.util import hash_array

from rarezoo.cli import UserError, did_you_mean
from rarezoo.data.addresses import Files, missing_files
from rarezoo.data.tables import read_table
from rarezoo.provenance import sha256_of_file

OnBadVotes = Literal["error", "drop"]

_CHOICES = ("error", "drop")
_COORDINATES = {"ra": (-180.0, 360.0), "dec": (-90.0, 90.0)}
_MAX_FAULTS_SHOWN = 20
_TEXTS_AT_ONCE = 262_144
_LOOKED_UP_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Catalog:
    """Checked rows of a catalog.

    Attributes
    ----------
    path : the table
    table : (N rows, all columns of the file), numbered from 0; `id_str` and `file_loc` are text, `ra` and `dec` float64
    files : (N,) absolute addresses of the images, as `addresses` writes them
    label_cols : (A,) names of the vote columns that were asked for
    counts : (N, A) float32, votes per answer; A is 0 where no vote columns were asked for
    sha256 : of the file
    n_dropped : rows of the file that were left out because of their votes
    """

    path: Path
    table: pd.DataFrame
    files: Sequence[str]
    label_cols: tuple[str, ...]
    counts: NDArray[np.float32]
    sha256: str
    n_dropped: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> NDArray[np.object_]:
        """(N,) `id_str` of each row."""
        return self.table["id_str"].to_numpy(dtype=object)


def read_catalog(
    path: Path | str,
    label_cols: Sequence[str] = (),
    image_root: Path | str | None = None,
    on_bad_votes: OnBadVotes = "error",
    fractional_votes: bool = False,
    check_files: bool = True,
) -> Catalog:
    """Read a catalog and find all its faults.

    Parameters
    ----------
    path : .parquet, .pq, .csv, .csv.gz, .fits, .fit, .fits.gz, .ecsv or .vot (tables with columns of arrays, as FITS
        allows, lose those columns with a warning)
    label_cols : vote columns that must be there
    image_root : folder that `file_loc` is relative to; the catalog's own by default
    on_bad_votes : refuse rows whose votes are negative, missing, infinite, not numbers, or fractional; or drop them
    fractional_votes : accept fractional (debiased) votes. They are never rounded.
    check_files : look whether every image file exists

    Raises
    ------
    UserError
        naming file, column, row (counted from 0), id, value and the fix, for whatever is wrong
    """
    path = Path(path)
    if on_bad_votes not in ("error", "drop"):
        raise UserError(f"data.on_bad_votes={on_bad_votes}: no such choice. {did_you_mean(on_bad_votes, _CHOICES)}")
    root = _image_root(path, image_root)
    table = read_table(path)
    # Arrow keeps what reading took for more of its kind: hundreds of MB of it for ten million galaxies.
    pa.default_memory_pool().release_unused()
    _require_columns(path, table, ("id_str", "file_loc", *label_cols))
    if table.empty:
        raise UserError(f"{path}: the catalog has no rows. Give a catalog with at least one galaxy.")
    table = table.assign(**{name: _as_text(path, table[name]) for name in ("id_str", "file_loc")})
    counts, bad_rows, vote_faults = _check_votes(table, label_cols, fractional_votes)
    table, coordinate_faults = _check_coordinates(table)
    faults = _check_text(table) + coordinate_faults
    if on_bad_votes == "error" or bad_rows.all():
        faults += vote_faults
        bad_rows = np.zeros(len(table), dtype=bool)
    _refuse(path, faults)

    kept = np.flatnonzero(~bad_rows)
    if len(kept) < len(table):
        table, counts = table.iloc[kept].reset_index(drop=True), counts[kept]
    files = Files(root, table["file_loc"])
    if check_files:
        _require_files(path, root, files, kept, table["id_str"])
    pa.default_memory_pool().release_unused()
    return Catalog(
        path=path,
        table=table,
        files=files,
        label_cols=tuple(label_cols),
        counts=counts,
        sha256=sha256_of_file(path),
        n_dropped=len(bad_rows) - len(kept),
    )


def _image_root(path: Path, image_root: Path | str | None) -> str:
    if image_root is None:
        return str(path.absolute().parent)
    root = Path(image_root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"data.image_root={image_root}: no such folder. Give the folder that file_loc is relative to.")
    return str(root)


def _require_columns(path: Path, table: pd.DataFrame, required: Sequence[str]) -> None:
    columns = [str(name) for name in table.columns]
    missing = [name for name in required if name not in columns]
    if not missing:
        return
    if len(missing) == 1:
        raise UserError(f"{path}: column '{missing[0]}' is missing. {did_you_mean(missing[0], columns)}")
    near = {name: difflib.get_close_matches(name, columns, n=1, cutoff=0.7) for name in missing}
    listed = ", ".join(f"'{name}'" + (f" (did you mean '{near[name][0]}'?)" if near[name] else "") for name in missing)
    raise UserError(f"{path}: {len(missing)} columns are missing: {listed}. {did_you_mean('', columns)}")


def _as_text(path: Path, column: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(column):
        raise UserError(
            f"{path}: column '{column.name}' holds floating-point numbers (first: {column.iloc[0]}), which do not keep "
            "long ids exact. Write it as text."
        )
    if pd.api.types.infer_dtype(column, skipna=True) == "bytes":
        column = column.str.decode("utf-8", errors="replace")
    return column.astype("string").fillna("").astype("str")


def _check_text(table: pd.DataFrame) -> list[str]:
    ids = table["id_str"]
    empty_ids, empty_files = _blank(ids), _blank(table["file_loc"])
    repeated = _repeated(ids) & ~empty_ids
    faults = []
    if empty_ids.any():
        faults.append(_fault("id_str", "empty id", empty_ids, ids, ids) + ". Give every galaxy an id.")
    if repeated.any():
        earlier = int(np.flatnonzero((ids == ids[int(np.argmax(repeated))]).to_numpy())[0])
        text = _fault("id_str", "duplicate id", repeated, ids, ids)
        faults.append(f"{text}, which row {earlier} has too. Every galaxy needs an id of its own.")
    if empty_files.any():
        text = _fault("file_loc", "empty path", empty_files, ids, table["file_loc"])
        faults.append(f"{text}. Give the path of each galaxy's image.")
    return faults


def _pieces(column: pd.Series) -> Iterator[pd.Series]:
    return (column.iloc[start : start + _TEXTS_AT_ONCE] for start in range(0, len(column), _TEXTS_AT_ONCE))


def _blank(column: pd.Series) -> NDArray[np.bool_]:
    return np.concatenate([(piece.str.strip() == "").to_numpy() for piece in _pieces(column)])


def _repeated(ids: pd.Series) -> NDArray[np.bool_]:
    """Where an id is that an earlier row has. Their hashes take a tenth of the memory that the ids themselves do."""
    hashes = np.empty(len(ids), np.uint64)
    for number, piece in enumerate(_pieces(ids)):
        start = number * _TEXTS_AT_ONCE
        hashes[start : start + len(piece)] = hash_array(piece.to_numpy(object), categorize=False)
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return np.zeros(len(ids), dtype=bool)
    return ids.duplicated().to_numpy()


def _check_coordinates(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Coordinates as float64 degrees; those that are not known may be missing."""
    faults = []
    for name in _COORDINATES.keys() & table.columns:
        low, high = _COORDINATES[name]
        values, missing = _as_numbers(table[name])
        wrong = ~missing & ~((values >= low) & (values <= high))
        del missing
        if wrong.any():
            text = _fault(name, "impossible coordinate", wrong, table["id_str"], table[name])
            faults.append(f"{text}. Coordinates are decimal degrees, '{name}' within {low:g} to {high:g}.")
        if table[name].dtype != np.float64:
            table = table.assign(**{name: values})
    return table, sorted(faults)


def _check_votes(
    table: pd.DataFrame, label_cols: Sequence[str], fractional_votes: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
    """Votes as an array, the rows where any is bad, and what to say about them."""
    counts = np.zeros((len(table), len(label_cols)), dtype=np.float32)
    bad_rows = np.zeros(len(table), dtype=bool)
    faults = []
    kinds = set()
    for position, name in enumerate(label_cols):
        values, missing = _as_numbers(table[name])
        for kind, bad in _bad_votes(values, missing, fractional_votes):
            faults.append(_fault(name, f"{kind} count", bad, table["id_str"], table[name]) + ".")
            bad_rows |= bad
            kinds.add(kind)
        with np.errstate(over="ignore"):
            counts[:, position] = values
    if len(faults) > _MAX_FAULTS_SHOWN:
        faults = [*faults[:_MAX_FAULTS_SHOWN], f"{len(faults) - _MAX_FAULTS_SHOWN} more faults in vote columns."]
    if faults:
        faults[-1] += "\nVote columns hold numbers of votes >= 0. "
        if "fractional" in kinds:
            faults[-1] += "Fractional (debiased) votes are accepted with data.fractional_votes=true. "
        if "missing" in kinds:
            faults[-1] += "Write 0 where a question was not asked. "
        faults[-1] += "Repair the rows, or drop them with data.on_bad_votes=drop."
    return counts, bad_rows, faults


def _bad_votes(
    values: NDArray[np.float64], missing: NDArray[np.bool_], fractional_votes: bool
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    # Beyond float32 a count would become infinite in the array of votes.
    infinite = np.abs(values) > np.finfo(np.float32).max
    kinds = {
        "non-numeric": np.isnan(values) & ~missing,
        "missing": missing,
        "infinite": infinite,
        "negative": (values < 0) & ~infinite,
        "fractional": np.isfinite(values) & (values >= 0) & (values != np.floor(values)) & (not fractional_votes),
    }
    return ((kind, bad) for kind, bad in kinds.items() if bad.any())


def _as_numbers(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values as float64, NaN where they are no numbers; and where the column has no value at all."""
    missing = column.isna().to_numpy(dtype=bool)
    if not pd.api.types.is_numeric_dtype(column):
        column = column.astype("string")
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return values, missing


def _fault(column: str, what: str, where: NDArray[np.bool_], ids: pd.Series, values: pd.Series) -> str:
    first, count = int(np.argmax(where)), int(where.sum())
    shown = "" if values is ids else f", value {values.iloc[first]!s}"
    plural = what if count == 1 else f"{what}s"
    return f"column '{column}' has {count} {plural} (first: row {first}, id {ids.iloc[first]}{shown})"


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))


def _require_files(path: Path, root: str, files: Sequence[str], rows: NDArray[np.int64], ids: pd.Series) -> None:
    pieces = range(0, len(files), _LOOKED_UP_AT_ONCE)
    missing = [start + at for start in pieces for at in missing_files(files[start : start + _LOOKED_UP_AT_ONCE])]
    if not missing:
        return
    plural = "image file does" if len(missing) == 1 else "image files do"
    raise UserError(
        f"{path}: {len(missing)} of {len(files)} {plural} not exist "
        f"(first: row {rows[missing[0]]}, id {ids.iloc[missing[0]]}, {files[missing[0]]}).\n"
        f"file_loc is taken relative to {root}. Give another folder with data.image_root=..., or leave the rows out."
    )
