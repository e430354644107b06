"""Writing `embeddings.h5`, format 1: rows in catalog order, images that failed listed apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from rarezoo.cli import UserError
from rarezoo.data.catalog import Catalog
from rarezoo.embeddings.hdf5 import TEXT, SteadyFile, write_attributes, written_hdf5
from rarezoo.embeddings.parts import Part
from rarezoo.embeddings.store import CARRIED
from rarezoo.models.vote_model import VoteModel
from rarezoo.provenance import canonical_json

_ROWS_PER_CHUNK = 4096
_BYTES_PER_CHUNK = 4 << 20
_ROWS_AT_ONCE = 65_536


def write_embeddings(
    path: Path, catalog: Catalog, parts: Iterable[Part], model: VoteModel, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all parts to one file, which takes its name only when every row is accounted for.

    Parameters
    ----------
    catalog : whose rows the parts name
    parts : in catalog order, each row of the catalog in one of them, once
    model : that gave the representation
    provenance : further attributes: image_root, config (JSON), checkpoint_sha256, catalog_sha256, members

    Returns
    -------
    dict with n_galaxies, n_failed and dim

    Raises
    ------
    UserError
        if nothing could be read, or the file cannot be written
    RuntimeError
        if a row is missing or there twice
    """
    with written_hdf5(path) as (file, disk):
        written, failed = _write_parts(file, disk, parts, len(catalog))
        _check_rows(written, failed, len(catalog))
        _write_catalog(file, disk, catalog, written, model)
        _write_failures(file, catalog, failed)
        about = {"backbone": model.spec.backbone, "transform": canonical_json(model.spec.transform)}
        write_attributes(file, model.schema, {**about, "n_failed": len(failed), **provenance})
        dim = file["representation"].shape[1]
    return {"n_galaxies": len(written), "n_failed": len(failed), "dim": dim}


def _write_parts(
    file: h5py.File, disk: SteadyFile, parts: Iterable[Part], n_rows: int
) -> tuple[np.ndarray, dict[int, str]]:
    rows, n_written = np.empty(n_rows, np.int64), 0
    failed: dict[int, str] = {}
    for part in parts:
        failed |= part.failed
        if n_written + len(part.rows) > n_rows:
            raise RuntimeError(f"the parts hold more than the catalog's {n_rows} rows")
        if len(part.rows):
            rows[n_written : n_written + len(part.rows)] = part.rows
            n_written += len(part.rows)
            for name, values in part.arrays.items():
                _append(file, name, values)
        disk.check()
    return rows[:n_written], failed


def _append(file: h5py.File, name: str, values: np.ndarray) -> None:
    if name not in file:
        width = values.shape[1:]
        n_rows = max(1, min(_ROWS_PER_CHUNK, _BYTES_PER_CHUNK // max(1, values[:1].nbytes)))
        file.create_dataset(name, (0, *width), values.dtype, chunks=(n_rows, *width), maxshape=(None, *width))
    dataset = file[name]
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _check_rows(written: np.ndarray, failed: Iterable[int], n_rows: int) -> None:
    if len(written) == 0:
        raise UserError("none of the catalog's images could be read. Check data.image_root and the files.")
    places = np.asarray(list(failed), np.int64)
    in_order = (written[1:] > written[:-1]).all() and written[0] >= 0 and max(written[-1], *places, 0) < n_rows
    twice = written[np.searchsorted(written, places).clip(max=len(written) - 1)] == places
    if not in_order or len(written) + len(places) != n_rows or twice.any():
        raise RuntimeError(
            f"{n_rows} rows are not there exactly once and in order: {len(written)} and {len(places)} are"
        )


def _write_catalog(file: h5py.File, disk: SteadyFile, catalog: Catalog, rows: np.ndarray, model: VoteModel) -> None:
    table = catalog.table
    for name, column in (("id", "id_str"), ("file_loc", "file_loc")):
        _write_text(file, name, table[column], rows, disk)
    carried = file.create_group(CARRIED, track_order=True)
    for column in table.columns.difference(["id_str", "file_loc", *model.schema.label_cols], sort=False):
        if column in ("ra", "dec"):
            _write_numbers(file, column, table[column].to_numpy(np.float64), rows)
        else:
            _write_carried(carried, str(column), table[column], rows, disk)


def _write_numbers(file: h5py.File, name: str, values: np.ndarray, rows: np.ndarray) -> None:
    dataset = file.create_dataset(name, (len(rows),), values.dtype)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        dataset[start : start + _ROWS_AT_ONCE] = values[rows[start : start + _ROWS_AT_ONCE]]


def _write_text(group: h5py.Group, name: str, column: pd.Series, rows: np.ndarray, disk: SteadyFile) -> None:
    """Piece by piece: as Python's own objects, the names of ten million galaxies take gigabytes."""
    dataset = group.create_dataset(name, (len(rows),), TEXT)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        wanted = rows[start : start + _ROWS_AT_ONCE]
        # Rows taken by their numbers from a whole column of Arrow's are taken from a copy of it.
        values = column.iloc[wanted[0] : wanted[-1] + 1].iloc[wanted - wanted[0]]
        text = ["" if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)]
        # HDF5 ends a text at the first zero byte.
        dataset[start : start + len(text)] = np.asarray([value.replace("\0", "") for value in text], object)
        disk.check()


def _write_carried(group: h5py.Group, column: str, values: pd.Series, rows: np.ndarray, disk: SteadyFile) -> None:
    # In HDF5 a slash parts folders, and a point is the folder itself.
    key = column.replace("/", "|").strip(".") or "column"
    while key in group:
        key += "_"
    if values.dtype.kind in "iufb":
        values = values.iloc[rows]
        with_gaps = not isinstance(values.dtype, np.dtype) and values.isna().any()
        group[key] = values.to_numpy(np.float64, na_value=np.nan) if with_gaps else values.to_numpy()
    else:
        _write_text(group, key, values, rows, disk)
    group[key].attrs["column"] = column


def _write_failures(file: h5py.File, catalog: Catalog, failed: Mapping[int, str]) -> None:
    rows = sorted(failed)
    group = file.create_group("failed")
    for name in ("id_str", "file_loc"):
        column = catalog.table[name]
        group.create_dataset(name, data=np.asarray([column.iloc[row] for row in rows], object), dtype=TEXT)
    group.create_dataset("reason", data=np.asarray([failed[row] for row in rows], object), dtype=TEXT)
