"""Tables from disk: parquet, CSV, FITS, ECSV and VOTable, as data frames."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from rarezoo.cli import UserError

_MISSING_FIELDS = ["", "NaN", "nan", "NA", "N/A", "null", "NULL", "None"]


def _read_csv(path: Path) -> pd.DataFrame:
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    _refuse_repeated(header)
    # Ids such as 00123 and 'NA' are text; elsewhere an empty field or 'NaN' is a missing value.
    missing = dict.fromkeys(header, _MISSING_FIELDS)
    missing |= {"id_str": [], "file_loc": []}
    table = pd.read_csv(
        path,
        dtype={"id_str": str, "file_loc": str},
        keep_default_na=False,
        na_values=missing,
        float_precision="round_trip",
        low_memory=False,
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("rows have more fields than the header")
    return table


def _refuse_repeated(columns: list[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ValueError(f"columns appear more than once: {', '.join(twice)}")


def _read_parquet(path: Path) -> pd.DataFrame:
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        # One row group after the other: all at once take half as much memory again.
        groups = [file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups)]
        whole = pa.concat_tables([file.schema_arrow.empty_table(), *groups]).unify_dictionaries()
    del groups
    table: pd.DataFrame = whole.to_pandas(split_blocks=True, self_destruct=True)
    _refuse_repeated([str(name) for name in table.columns])
    unnamed = all(name is None for name in table.index.names)
    return table.reset_index(drop=unnamed).rename(columns=str)


def _read_astropy(path: Path, kind: str) -> pd.DataFrame:
    from astropy.table import Table  # slow to import, and most catalogs do not need it

    options = {"character_as_bytes": False} if kind == "fits" else {}
    table = Table.read(path, format=kind, **options)
    arrays = [name for name in table.colnames if table[name].ndim > 1]
    if arrays:
        table.remove_columns(arrays)
        warnings.warn(f"{path}: columns of arrays are left out: {', '.join(arrays)}", stacklevel=2)
    frame: pd.DataFrame = table.to_pandas(index=False)
    return frame


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".fits": lambda path: _read_astropy(path, "fits"),
    ".fit": lambda path: _read_astropy(path, "fits"),
    ".fits.gz": lambda path: _read_astropy(path, "fits"),
    ".ecsv": lambda path: _read_astropy(path, "ascii.ecsv"),
    ".vot": lambda path: _read_astropy(path, "votable"),
}


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with all its columns, rows numbered from 0, `id_str` and `file_loc` of a CSV as they are written.

    FITS tables may have columns of arrays; those are left out, with a warning that names them.

    Raises
    ------
    UserError
        if there is no such file, its suffix is none of those of a table, or it is damaged
    """
    if not path.is_file():
        neighbours = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, neighbours, n=1)
        hint = f" Did you mean '{path.with_name(near[0])}'?" if near else ""
        raise UserError(f"{path}: no such file. Give the catalog with data.catalog=...{hint}")
    suffix = next((suffix for suffix in _READERS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: not a known kind of table. Catalogs end in {', '.join(_READERS)}.")
    try:
        return _READERS[suffix](path)
    # The readers raise a dozen kinds of exception for a damaged file, with no common base.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be read as a {suffix} table ({reason}). Write the catalog anew.") from error
