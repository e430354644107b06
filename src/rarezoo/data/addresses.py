"""Where an image is: a file of its own, bytes within a tar, or a row of an HDF5 file; each written as one string."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import weakref
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, overload

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

HDF5_SUFFIXES = (".h5", ".hdf5")

_IN_TAR = re.compile(r"(.+?\.tar)#(.+)@([0-9]+)\+([0-9]+)", re.DOTALL | re.IGNORECASE)
_IN_HDF5 = re.compile(r"(.+?\.(?:h5|hdf5))#(.+)\[([0-9]+)\]", re.DOTALL | re.IGNORECASE)

# Containers that a process keeps open. Most systems allow it 1024 files, and a loader needs some for its batches.
_OPEN_TARS = 128
_OPEN_DATASETS = 16
# HDF5 keeps this much of a file's decompressed chunks, so that the images of one chunk are not decompressed one by one.
_CHUNK_CACHE_BYTES = 64 * 2**20
# Up to this many images of one folder are looked up one by one; above it, listing the folder is cheaper.
_LOOKUPS_PER_FOLDER = 64


class ImageError(Exception):
    """An image that cannot be used: `path` is its address, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageFile:
    """A file that holds one image. Its address is its path."""

    container: str

    def __str__(self) -> str:
        return self.container

    @property
    def name(self) -> str:
        """What tells the format by its end."""
        return self.container

    def read(self) -> bytes:
        """All bytes."""
        return Path(self.container).read_bytes()


@dataclass(frozen=True)
class TarMember:
    """Bytes of one member of an uncompressed tar. Its address is `shards/000012.tar#J0931.jpg@51200+20480`.

    Attributes
    ----------
    container : path of the tar, which ends in .tar
    name : of the member, without ./ and the like
    offset, length : of the member's content, bytes
    """

    container: str
    name: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.container}#{self.name}@{self.offset}+{self.length}"

    def read(self) -> bytes:
        """The member's content.

        Raises
        ------
        ImageError
            if the tar ends before, or another member is there
        OSError
            if the tar cannot be read
        """
        # Positioned reads leave alone the place in the file, which processes made by fork share.
        block = os.pread(_open_tar(self.container).number, tarfile.BLOCKSIZE + self.length, self._header_offset())
        if len(block) < tarfile.BLOCKSIZE + self.length:
            raise ImageError(str(self), "the tar ends before the image does")
        self._check_header(block[: tarfile.BLOCKSIZE])
        return block[tarfile.BLOCKSIZE :]

    def _header_offset(self) -> int:
        if self.offset < tarfile.BLOCKSIZE:
            raise ImageError(str(self), "no member of a tar begins there")
        return self.offset - tarfile.BLOCKSIZE

    def _check_header(self, header: bytes) -> None:
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ImageError(str(self), "no member of the tar begins there") from error
        # The header has room for 100 bytes; writers shorten longer names there, and some replace what is not ASCII.
        comparable = self.name.isascii() and len(self.name) < tarfile.LENGTH_NAME
        if found.size != self.length or (comparable and posixpath.normpath(found.name) != self.name):
            raise ImageError(str(self), f"the tar has '{found.name}' of {found.size} bytes there")


@dataclass(frozen=True)
class Hdf5Row:
    """One row of a dataset of images. Its address is `images.h5#images[17]`.

    Attributes
    ----------
    container : path of the HDF5 file, which ends in one of `HDF5_SUFFIXES`
    dataset : (N, H, W), (N, H, W, C) or (N, C, H, W), any number type
    row : counted from 0
    """

    container: str
    dataset: str
    row: int

    name: ClassVar[str] = ""

    def __str__(self) -> str:
        return f"{self.container}#{self.dataset}[{self.row}]"

    def read(self) -> NDArray[Any]:
        """The image as it is stored, (H, W), (H, W, C) or (C, H, W).

        Raises
        ------
        ImageError
            if there is no such dataset or row
        OSError
            if the file cannot be read
        """
        # HDF5's own state does not survive a fork: each process opens the file for itself.
        dataset = _open_dataset(self.container, self.dataset, os.getpid())
        if not isinstance(dataset, h5py.Dataset):
            raise ImageError(str(self), f"the file has no dataset '{self.dataset}'")
        if dataset.ndim == 0 or self.row >= len(dataset):
            raise ImageError(str(self), f"dataset '{self.dataset}' has shape {dataset.shape}, no row {self.row}")
        return np.asarray(dataset[self.row])


Source = ImageFile | TarMember | Hdf5Row


def parse_address(address: str) -> Source:
    """Tell what an address names. All that has the form of neither a tar member nor a row of HDF5 is a path."""
    if "#" in address:
        if found := _IN_TAR.fullmatch(address):
            return TarMember(found[1], found[2], int(found[3]), int(found[4]))
        if found := _IN_HDF5.fullmatch(address):
            return Hdf5Row(found[1], found[2], int(found[3]))
    return ImageFile(address)


class Files(Sequence[str]):
    """Addresses of a catalog's images, joined to their folder where they are looked up.

    As Python's own strings, those of ten million galaxies take more than a gigabyte, in each process.

    Parameters
    ----------
    root : folder that they are relative to
    locations : (N,) `file_loc`
    """

    def __init__(self, root: str, locations: pd.Series) -> None:
        self._root = root
        self._locations = locations.array

    def __len__(self) -> int:
        return len(self._locations)

    @overload
    def __getitem__(self, rows: int) -> str: ...

    @overload
    def __getitem__(self, rows: slice) -> list[str]: ...

    def __getitem__(self, rows: int | slice) -> str | list[str]:
        """Address of one row, or of a range of them."""
        if isinstance(rows, slice):
            return [os.path.join(self._root, location) for location in self._locations[rows]]  # noqa: PTH118 (millions)
        return os.path.join(self._root, self._locations[rows])  # noqa: PTH118 (millions)


def missing_files(addresses: Sequence[str]) -> list[int]:
    """Positions of the images whose file, or the tar or HDF5 file that holds them, is not there; in order."""
    files = [parse_address(address).container for address in addresses]
    folders: dict[str, list[int]] = defaultdict(list)
    for position, file in enumerate(files):
        folders[file.rpartition(os.sep)[0]].append(position)

    def missing_in(folder: str) -> list[int]:
        positions = folders[folder]
        if len(positions) <= _LOOKUPS_PER_FOLDER:
            return [position for position in positions if not Path(files[position]).is_file()]
        wanted = {files[position].rpartition(os.sep)[2]: position for position in positions}
        absent = set(wanted)
        try:
            with os.scandir(folder) as entries:
                absent.difference_update(entry.name for entry in entries if entry.name in wanted and entry.is_file())
        except OSError:
            return positions
        return [position for position in positions if files[position].rpartition(os.sep)[2] in absent]

    with ThreadPoolExecutor(max_workers=16) as pool:
        return sorted(position for found in pool.map(missing_in, folders) for position in found)


class _Descriptor:
    """An open file that is closed when nobody holds it: the cache may forget it while another thread reads."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


@lru_cache(maxsize=_OPEN_TARS)
def _open_tar(path: str) -> _Descriptor:
    return _Descriptor(path)


@lru_cache(maxsize=_OPEN_DATASETS)
def _open_dataset(path: str, name: str, pid: int) -> h5py.Dataset | h5py.Group | None:
    # Nothing is written, and some network file systems know no locks.
    file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, locking="best-effort")
    return file.get(name)
