"""Catalogs of images that are packed together: one is written for shards of tars, or for a dataset in an HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset

from rarezoo.cli import UserError, did_you_mean, progress
from rarezoo.data.addresses import HDF5_SUFFIXES, Hdf5Row
from rarezoo.data.tar_samples import find_shards, read_shard
from rarezoo.provenance import canonical_json, written_beside

INDEX_VERSION = 1
"""Raised whenever the same images give another catalog: an older one is then made anew."""
_RECORD = b"rarezoo.made_from"
_MAX_WORKERS = 16


def catalog_shards(pattern: str, catalog: Path) -> bool:
    """Write a catalog of the galaxies in tar shards, or find it written for the same files.

    Parameters
    ----------
    pattern : as `find_shards` takes it
    catalog : parquet to write; its file_loc are absolute addresses

    Returns
    -------
    True if it was written, False if it was there for files of the same names, sizes and times

    Raises
    ------
    UserError
        naming the shard that is missing, compressed, damaged or empty, or the catalog that is not of this making
    """
    shards = find_shards(pattern)
    record = _record("shards", shards)
    if _is_made(catalog, record):
        return False
    table = pd.concat(_read_shards(shards), ignore_index=True)
    if table.empty:
        raise UserError(f"data.shards={pattern}: {len(shards)} tars hold no images. Give shards of a survey.")
    _write(catalog, table, record)
    return True


def catalog_hdf5(images: Path, dataset: str, ids: str | None, catalog: Path) -> bool:
    """Write a catalog of the images in an HDF5 file, or find it written for the same file.

    Parameters
    ----------
    images : HDF5 file
    dataset : in it, (N, H, W), (N, H, W, C) or (N, C, H, W)
    ids : dataset (N,) in it that names the galaxies; None takes `id_str` beside the images if there is one, else the
        number of the row
    catalog : parquet to write; numbers and texts (N,) beside the images become its columns

    Returns
    -------
    True if it was written, False if it was there for a file of the same name, size and time

    Raises
    ------
    UserError
        naming the file that is missing or damaged, the dataset that is not there or has another shape, or the catalog
        that is not of this making
    """
    if not images.is_file():
        raise UserError(f"data.images={images}: there is no such file. Give an HDF5 file of images.")
    if images.suffix.lower() not in HDF5_SUFFIXES:
        raise UserError(f"data.images={images}: HDF5 files end in {' or '.join(HDF5_SUFFIXES)}. Rename it.")
    record = _record("hdf5", [images.absolute()], dataset=dataset, ids=ids)
    if _is_made(catalog, record):
        return False
    try:
        with h5py.File(images, "r", locking="best-effort") as file:
            table = _hdf5_table(images, file, dataset, ids)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{images}: is not a whole HDF5 file ({error}). Copy or write it anew.") from error
    _write(catalog, table, record)
    return True


class _Shards(Dataset[tuple[pd.DataFrame, str]]):
    """Rows of each shard, or what is wrong with it: an error would lose its kind on the way out of a process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[pd.DataFrame, str]:
        try:
            return pd.DataFrame(read_shard(self._paths[index])), ""
        except UserError as error:
            return pd.DataFrame(), str(error)


def usable_cores() -> int:
    """Cores that this process may use; a scheduler often grants fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_shards(shards: Sequence[Path]) -> list[pd.DataFrame]:
    workers = min(_MAX_WORKERS, usable_cores(), len(shards) - 1)
    loader = DataLoader(_Shards(shards), batch_size=None, num_workers=workers)
    tables = []
    for table, fault in progress(loader, "reading the headers of shards", total=len(shards), unit="shard"):
        if fault:
            raise UserError(fault)
        tables.append(table)
    return tables


def _hdf5_table(path: Path, file: h5py.File, dataset: str, ids: str | None) -> pd.DataFrame:
    images = _dataset(path, file, "data.dataset", dataset)
    if images.ndim not in (3, 4):
        raise UserError(
            f"data.dataset={dataset}: in {path} it has shape {images.shape}; images are (N, H, W), (N, H, W, C) or "
            f"(N, C, H, W). {did_you_mean('', _names(file, 3, 4))}"
        )
    beside = {str(name): values for name, values in images.parent.items() if _is_column(values, len(images))}
    names = _dataset(path, file, "data.ids", ids) if ids is not None else beside.get("id_str")
    if names is not None and names.shape != (len(images),):
        raise UserError(
            f"data.ids={ids}: has shape {names.shape}, and there are {len(images)} images. "
            f"{did_you_mean('', _names(file, 1))}"
        )
    columns: dict[str, Any] = {
        "id_str": [f"{row:0{len(str(len(images)))}d}" for row in range(len(images))]
        if names is None
        else _values(names),
        "file_loc": [str(Hdf5Row(str(path.absolute()), dataset.strip("/"), row)) for row in range(len(images))],
    }
    return pd.DataFrame(columns | {name: _values(each) for name, each in beside.items() if name not in columns})


def _dataset(path: Path, file: h5py.File, option: str, name: str) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{option}={name}: {path} has no such dataset. {did_you_mean(name, _names(file, 1, 3, 4))}")
    return found


def _names(file: h5py.File, *dimensions: int) -> list[str]:
    names: list[str] = []
    file.visititems(
        lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) and node.ndim in dimensions else None
    )
    return names


def _is_column(node: Any, n_rows: int) -> bool:
    if not isinstance(node, h5py.Dataset) or node.shape != (n_rows,):
        return False
    return node.dtype.kind in "iufb" or h5py.check_string_dtype(node.dtype) is not None


def _values(column: h5py.Dataset) -> np.ndarray:
    if h5py.check_string_dtype(column.dtype) is not None:
        return np.asarray(column.asstr(errors="replace")[:], dtype=object)
    values: np.ndarray = column[:]
    return values.astype(values.dtype.newbyteorder("="))


def _record(kind: str, files: Sequence[Path], **options: str | None) -> str:
    """What a catalog is made from, as text that changes with it."""
    stats = [(path, path.stat()) for path in files]
    listed = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return canonical_json({"version": INDEX_VERSION, "kind": kind, "files": listed, **options})


def _is_made(catalog: Path, record: str) -> bool:
    if catalog.suffix != ".parquet":
        raise UserError(f"data.catalog={catalog}: is to be written, as parquet. Give a name that ends in .parquet.")
    if not catalog.exists():
        return False
    try:
        found = (pq.read_schema(catalog).metadata or {}).get(_RECORD)
    except (pa.ArrowException, OSError):
        found = None
    if found is None:
        raise UserError(
            f"data.catalog={catalog}: is there, and was not made from images that are packed together. Give another "
            "path to write the catalog to, or read this one with data=catalog."
        )
    return bool(found == record.encode())


def _write(catalog: Path, table: pd.DataFrame, record: str) -> None:
    try:
        rows = pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{catalog}: a column mixes numbers and text, or holds what is no text ({reason}). "
            "Give each column one type in all of the images' rows."
        ) from error
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), _RECORD: record.encode()})
    with written_beside(catalog) as temporary:
        pq.write_table(rows, temporary)
