"""Packing the images of a catalog into tar shards that rarezoo and webdataset read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rarezoo.cli import UserError, progress, unwritable
from rarezoo.data.addresses import Hdf5Row, ImageError, parse_address
from rarezoo.data.catalog import Catalog
from rarezoo.data.images import read_image, read_picture
from rarezoo.data.tar_samples import IMAGE_EXTENSIONS, read_shard
from rarezoo.provenance import made_with, write_json, written_beside

RECORD_NAME = "packing.json"
CATALOG_NAME = "catalog.parquet"
FAILED_NAME = "failed.csv"
# Side to which an image that is copied as it is, is decoded to see that it can be.
_TRIAL_SIZE = 16


@dataclass(frozen=True)
class Packing:
    """What decides the bytes of the shards.

    Attributes
    ----------
    size : side of the images in pixels, in JPEG; None copies the files as they are
    quality : of the JPEG, 1 to 100
    rows_per_shard : galaxies of the catalog that share a tar
    """

    size: int | None = None
    quality: int = 92
    rows_per_shard: int = 10_000


def pack(
    catalog: Catalog, folder: Path, packing: Packing, max_failed_share: float = 0.01, workers: int = 0
) -> dict[str, int]:
    """Write `folder`/000000.tar and so on, and `folder`/catalog.parquet with the addresses in them.

    Members are named after the row of the catalog, since WebDataset allows a key no points, and a JSON beside each
    image holds the row's other columns. The same catalog and images give the same bytes. Images that cannot be read
    are left out and listed in `folder`/failed.csv. Shards of an interrupted run are kept where they are whole.

    Parameters
    ----------
    folder : absolute
    max_failed_share : share of the catalog's images that may fail
    workers : processes that decode; with 0, this one does

    Returns
    -------
    n_galaxies, n_failed, n_shards, and n_kept of them that were there

    Raises
    ------
    UserError
        if the folder holds something else or cannot be written, or too many images fail
    """
    if packing.size is None and any(isinstance(parse_address(file), Hdf5Row) for file in catalog.files):
        raise UserError(f"{catalog.path}: rows of HDF5 files are no image files to copy. Give --size, for JPEG.")
    with _claimed(folder, {"catalog_sha256": catalog.sha256, **asdict(packing)}):
        images = _PackedImages(catalog.files, packing)
        log = _FailureList(folder / FAILED_NAME, catalog, max_failed_share)
        starts = range(0, len(catalog), packing.rows_per_shard)
        shards = {
            folder / f"{number:06d}.tar": range(start, min(start + packing.rows_per_shard, len(catalog)))
            for number, start in enumerate(starts)
        }
        lacking = {path: rows for path, rows in shards.items() if not _is_whole(path, rows, catalog, images, log)}
        _write_shards(lacking, catalog, images, log, workers)
        members = {row: name for path, rows in shards.items() for row, name in _members(path, rows, catalog).items()}
        table = catalog.table.iloc[sorted(members)].assign(file_loc=[members[row] for row in sorted(members)])
        log.write()
        with written_beside(folder / CATALOG_NAME) as temporary:
            table.to_parquet(temporary, index=False)
    n_kept = len(shards) - len(lacking)
    return {"n_galaxies": len(table), "n_failed": len(log.reasons), "n_shards": len(shards), "n_kept": n_kept}


class _PackedImage(TypedDict):
    content: bytes
    extension: str
    failure: str


class _PackedImages(Dataset[_PackedImage]):
    """Bytes to be packed for each row of a catalog, or the reason why there are none."""

    def __init__(self, files: Sequence[str], packing: Packing) -> None:
        self._files = files
        self._packing = packing

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> _PackedImage:
        try:
            if self._packing.size is None:
                return self._copied(self._files[row])
            pixels = read_image(self._files[row], self._packing.size)
        except ImageError as error:
            return {"content": b"", "extension": "", "failure": error.reason}
        stream = io.BytesIO()
        # Colours at full resolution: knots of star formation are a few pixels wide.
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
            stream, "JPEG", quality=self._packing.quality, subsampling=0
        )
        return {"content": stream.getvalue(), "extension": "jpg", "failure": ""}

    def _copied(self, file: str) -> _PackedImage:
        source = parse_address(file)
        extension = next((each for each in IMAGE_EXTENSIONS if source.name.lower().endswith(f".{each}")), None)
        if extension is None:
            raise ImageError(file, f"its name ends in none of {', '.join(IMAGE_EXTENSIONS)}")
        read_picture(file, _TRIAL_SIZE)
        return {"content": bytes(source.read()), "extension": extension, "failure": ""}


class _FailureList:
    """Rows that could not be packed, and why; too many of them stop the work."""

    def __init__(self, path: Path, catalog: Catalog, max_failed_share: float) -> None:
        self.reasons: dict[int, str] = {}
        self._path = path
        self._catalog = catalog
        self._max_failed_share = max_failed_share

    def add(self, row: int, reason: str) -> None:
        self.reasons[row] = reason
        if len(self.reasons) > self._max_failed_share * len(self._catalog):
            self.write()
            raise UserError(
                f"{len(self.reasons)} of {len(self._catalog)} images could not be read, more than "
                f"--max-failed-share={self._max_failed_share} allows (first: row {min(self.reasons)}, "
                f"{self._catalog.files[min(self.reasons)]}: {self.reasons[min(self.reasons)]}; all in {self._path}). "
                "Repair or replace them, check --image-root, or raise the share; the same command goes on."
            )

    def write(self) -> None:
        rows = sorted(self.reasons)
        table = self._catalog.table.iloc[rows][["id_str", "file_loc"]]
        with written_beside(self._path) as temporary:
            table.assign(reason=[self.reasons[row] for row in rows]).to_csv(temporary, index=False)


@contextmanager
def _claimed(folder: Path, key: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder that is new, or holds the unfinished or finished shards of the same key."""
    record = folder / RECORD_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is packing here. Wait for it, or choose another folder.") from error
    except OSError as error:
        reason = unwritable(error) or error
        raise UserError(f"{folder}: cannot be written ({reason}). Choose another folder.") from error
    try:
        for abandoned in folder.glob(".*.part*"):
            abandoned.unlink()
        if record.exists():
            _require_same(record, key)
        elif any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"{folder}: is not empty and holds no packed images. Give a folder of their own to shards.")
        else:
            write_json(record, {**made_with(), "packing": dict(key)})
        yield
    finally:
        lock.release()


def _require_same(record: Path, key: Mapping[str, Any]) -> None:
    try:
        before = json.loads(record.read_text())["packing"]
        changed = [
            f"{name}: {before.get(name)} there, {key[name]} now" for name in key if before.get(name) != key[name]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record}: cannot be read ({error}). Remove the folder, or give another one.") from error
    if changed:
        raise UserError(
            f"{record.parent}: holds images packed from another catalog or otherwise ({'; '.join(changed)}). "
            "Give another folder, or remove this one."
        )


def _members(shard: Path, rows: range, catalog: Catalog) -> dict[int, str]:
    """Row -> address, relative to the folder, of the images in a shard."""
    beside = f"{shard.parent}/"
    found = {sample["id_str"]: sample["file_loc"].removeprefix(beside) for sample in read_shard(shard)}
    ids = catalog.table["id_str"].iloc[rows.start : rows.stop]
    return {row: found[name] for row, name in zip(rows, ids, strict=True) if name in found}


def _is_whole(shard: Path, rows: range, catalog: Catalog, images: _PackedImages, log: _FailureList) -> bool:
    """Whether a shard is there undamaged, and what it lacks still cannot be read."""
    try:
        members = _members(shard, rows, catalog)
    except UserError:
        return False
    failures = {row: images[row]["failure"] for row in rows if row not in members}
    if not all(failures.values()):
        return False
    for row, reason in failures.items():
        log.add(row, reason)
    return True


def _write_shards(
    shards: Mapping[Path, range], catalog: Catalog, images: _PackedImages, log: _FailureList, workers: int
) -> None:
    if not shards:
        return
    order = [row for rows in shards.values() for row in rows]
    loader = DataLoader(images, batch_size=None, sampler=order, num_workers=workers)
    packed = progress(loader, "packing", total=len(order), unit="image")
    for path, rows in shards.items():
        records = catalog.table.iloc[rows.start : rows.stop].drop(columns="file_loc").to_dict("records")
        with written_beside(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, record in zip(rows, records, strict=True):
                image = next(packed)
                if image["failure"]:
                    log.add(row, image["failure"])
                else:
                    _add(tar, f"{row:09d}.{image['extension']}", image["content"])
                    _add(tar, f"{row:09d}.json", _as_json(record))
    # The bar is complete when it has been asked for more.
    next(packed, None)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A new TarInfo has no owner and no time, so that the same images give the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _as_json(record: Mapping[Any, Any]) -> bytes:
    plain = {str(name): _plain(value) for name, value in record.items()}
    return json.dumps(plain, ensure_ascii=False, default=str).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)) else value
