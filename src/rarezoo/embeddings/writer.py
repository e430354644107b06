"""Writing `embeddings.h5`, format 1: rows in catalog order, images that failed listed apart."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rarezoo.cli import UserError
from rarezoo.data.catalog import Catalog
from rarezoo.data.datamodule import FailureLog
from rarezoo.embeddings.store import CARRIED, FORMAT
from rarezoo.models.vote_model import VoteModel
from rarezoo.provenance import canonical_json, fingerprint, made_with, written_beside

_TEXT = h5py.string_dtype("utf-8")
_ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class EmbeddedBatch:
    """Result for the images of one batch that could be read.

    Attributes
    ----------
    rows : (B,) rows of the catalog
    representation : (B, D)
    concentrations : (B, A)
    features : (B, F), before the bottleneck; not written
    """

    rows: np.ndarray
    representation: np.ndarray
    concentrations: np.ndarray
    features: np.ndarray | None = None


def embed_batch(model: VoteModel, batch: Mapping[str, Any], device: torch.device) -> EmbeddedBatch:
    """Representation and concentrations of one batch of the data module."""
    if len(batch["image"]) == 0:
        return EmbeddedBatch(
            np.empty(0, np.int64),
            np.empty((0, model.representation_dim), np.float32),
            np.empty((0, len(model.schema.label_cols)), np.float32),
            np.empty((0, model.n_features), np.float32),
        )
    embedded = model.embed(batch["image"].to(device, non_blocking=True))
    found = (embedded.representation, embedded.concentrations, embedded.features)
    return EmbeddedBatch(batch["row"].numpy(), *map(_to_numpy, found))


def write_embeddings(
    path: Path,
    catalog: Catalog,
    batches: Iterable[EmbeddedBatch],
    failures: FailureLog,
    model: VoteModel,
    provenance: Mapping[str, Any],
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write all batches to one file, which takes its name only when every row is accounted for.

    Parameters
    ----------
    catalog : whose rows the batches name
    batches : each row at most once, in catalog order
    failures : rows that could not be read, complete once the batches are used up
    provenance : further attributes: image_root, config (JSON), checkpoint_sha256, catalog_sha256
    dtype : of the representation, float32 or float16

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
    dim, n_answers = model.representation_dim, len(model.schema.label_cols)
    with written_beside(path) as temporary, _SteadyFile(temporary) as disk:
        _require_space(path, len(catalog) * (dim * np.dtype(dtype).itemsize + n_answers * 4))
        with h5py.File(disk, "w") as file:
            representation = _growing(file, "representation", dim, dtype)
            concentrations = _growing(file, "concentrations", n_answers, "float32")
            rows: list[np.ndarray] = []
            for batch in batches:
                _append(representation, batch.representation)
                _append(concentrations, batch.concentrations)
                rows.append(batch.rows)
                disk.check()
            written = np.concatenate(rows) if rows else np.empty(0, np.int64)
            _check_rows(written, failures.reasons, len(catalog))
            _write_catalog(file, catalog, written, model)
            _write_failures(file, catalog, failures)
            _write_attributes(file, model, provenance, len(failures))
        disk.check()
    return {"n_galaxies": len(written), "n_failed": len(failures), "dim": dim}


class _SteadyFile(io.FileIO):
    """A file that keeps in memory what the disk did not take: HDF5 crashes the process where a write fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
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
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"{path}: takes at least {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there. "
            "Free space, or choose another folder with output_dir=..."
        )


def _check_rows(written: np.ndarray, failed: Iterable[int], n_rows: int) -> None:
    if len(written) == 0:
        raise UserError("none of the catalog's images could be read. Check data.image_root and the files.")
    seen = np.bincount(np.concatenate([written, np.asarray(list(failed), np.int64)]), minlength=n_rows)
    if len(seen) > n_rows or (seen != 1).any() or (np.diff(written) <= 0).any():
        raise RuntimeError(f"rows are not there exactly once and in order: {np.flatnonzero(seen != 1)[:5]}")


def _write_catalog(file: h5py.File, catalog: Catalog, rows: np.ndarray, model: VoteModel) -> None:
    table = catalog.table.iloc[rows]
    file.create_dataset("id", data=table["id_str"].to_numpy(object), dtype=_TEXT)
    file.create_dataset("file_loc", data=table["file_loc"].to_numpy(object), dtype=_TEXT)
    carried = file.create_group(CARRIED, track_order=True)
    for column in table.columns.difference(["id_str", "file_loc", *model.schema.label_cols], sort=False):
        if column in ("ra", "dec"):
            file.create_dataset(column, data=table[column].to_numpy(np.float64))
        else:
            _write_carried(carried, str(column), table[column])


def _write_carried(group: h5py.Group, column: str, values: pd.Series) -> None:
    # In HDF5 a slash parts folders, and a point is the folder itself.
    key = column.replace("/", "|").strip(".") or "column"
    while key in group:
        key += "_"
    if values.dtype.kind in "iufb":
        with_gaps = not isinstance(values.dtype, np.dtype) and values.isna().any()
        group[key] = values.to_numpy(np.float64, na_value=np.nan) if with_gaps else values.to_numpy()
    else:
        text = ["" if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)]
        # HDF5 ends a text at the first zero byte.
        group.create_dataset(key, data=[value.replace("\0", "") for value in text], dtype=_TEXT)
    group[key].attrs["column"] = column


def _write_failures(file: h5py.File, catalog: Catalog, failures: FailureLog) -> None:
    rows = sorted(failures.reasons)
    group = file.create_group("failed")
    for name in ("id_str", "file_loc"):
        group.create_dataset(name, data=catalog.table[name].iloc[rows].to_numpy(object), dtype=_TEXT)
    group.create_dataset("reason", data=np.asarray([failures.reasons[row] for row in rows], object), dtype=_TEXT)


def _write_attributes(file: h5py.File, model: VoteModel, provenance: Mapping[str, Any], n_failed: int) -> None:
    made = made_with()
    tree = model.schema.to_tree()
    attributes = {
        "format": FORMAT,
        "created": made["created"],
        "rarezoo": made["versions"].get("rarezoo", ""),
        "versions": canonical_json(made["versions"]),
        "git_commit": made["git_commit"] or "",
        # The order of the questions is that of the columns, so keys are not sorted.
        "schema": json.dumps(tree),
        "schema_sha256": fingerprint(tree),
        "backbone": model.spec.backbone,
        "transform": canonical_json(model.spec.transform),
        "n_failed": n_failed,
        **provenance,
    }
    for name, value in attributes.items():
        file.attrs[name] = value
    file.attrs.create("label_cols", list(model.schema.label_cols), dtype=_TEXT)
    file.attrs["complete"] = True


def _growing(file: h5py.File, name: str, width: int, dtype: str) -> h5py.Dataset:
    return file.create_dataset(name, (0, width), maxshape=(None, width), dtype=dtype, chunks=(_ROWS_PER_CHUNK, width))


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _to_numpy(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array
