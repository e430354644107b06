"""Images of a catalog, from wherever they are, as square arrays of bytes and as batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rarezoo.data.addresses import ImageError, parse_address
from rarezoo.data.decoding import FITS_SUFFIXES, decode_array, decode_fits, decode_picture, luma, resized


def read_image(path: str | Path, size: int, channels: int = 3, crop: float = 1.0) -> NDArray[np.uint8]:
    """Read an image, cut its central square and resize it with antialiasing.

    JPEG, PNG, TIFF and whatever else Pillow reads become colour or grey (`decode_picture`); FITS is stretched
    (`decode_fits`); arrays of HDF5 are taken as they are or stretched (`decode_array`). Colour becomes one channel by
    luma (ITU-R 601), one channel becomes three equal ones. For 1 and 3 channels, images of 1 and 3 bands are read; for
    any other number, FITS and HDF5 with as many bands.

    Parameters
    ----------
    path : file, member of a tar or row of an HDF5 file, as `addresses` writes them
    size : side of the result in pixels
    channels : of the result
    crop : share of the shorter side that is kept, centred, in (0, 1]

    Returns
    -------
    (channels, size, size)

    Raises
    ------
    ImageError
        if the image is missing, empty, truncated, too large, not an image, has no finite pixel, or another number of
        bands
    """
    bands = _bands(str(path), size, crop)
    if channels == 1 and len(bands) == 3:
        bands = luma(bands)
    if len(bands) != channels and (channels, len(bands)) != (3, 1):
        takes = "1 or 3" if channels in (1, 3) else f"FITS and HDF5 with {channels}"
        raise ImageError(str(path), f"has {len(bands)} bands; for data.channels={channels}, {takes} are read")
    return np.repeat(resized(bands, size, crop), channels // len(bands), axis=0)


def read_picture(path: str | Path, size: int, crop: float = 1.0) -> NDArray[np.uint8]:
    """Read an image of any number of bands for people to look at.

    Where there are neither 1 nor 3, the first, middle and last band are shown as red, green and blue.

    Returns
    -------
    (3, size, size)

    Raises
    ------
    ImageError
        as `read_image`
    """
    bands = _bands(str(path), size, crop)
    return resized(bands[[0, len(bands) // 2, len(bands) - 1]], size, crop)


def _bands(address: str, size: int, crop: float) -> NDArray[np.uint8]:
    """All bands of an image in 8 bits (bands, H, W), at its own size or, for a large JPEG, at a fraction of it."""
    source = parse_address(address)
    try:
        stored = source.read()
        if isinstance(stored, np.ndarray):
            return decode_array(stored)
        if not stored:
            raise ImageError(address, "empty file")
        return (
            decode_fits(stored) if source.name.lower().endswith(FITS_SUFFIXES) else decode_picture(stored, size, crop)
        )
    except ImageError:
        raise
    # Decoders raise a dozen kinds of exception for a damaged file, with no common base; one file must not end a run.
    except Exception as error:
        raise ImageError(address, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


class GalaxyItem(TypedDict):
    """One row of `GalaxyImages`."""

    image: Tensor
    row: int
    counts: Tensor
    failure: str


class GalaxyBatch(TypedDict):
    """What `GalaxyImages.collate` makes of some rows: B could be read, `failed` could not."""

    image: Tensor
    row: Tensor
    counts: Tensor
    failed: list[tuple[int, str]]


class GalaxyImages(Dataset[GalaxyItem]):
    """Images of a catalog, decoded on demand.

    Parameters
    ----------
    files : (N,) addresses as `read_image` takes them, of the whole catalog; those of a `Catalog` are one block of bytes
        that all workers share, where a list would be copied into each as its reference counts change
    size, channels, crop : as in `read_image`
    counts : (N, A) votes of the whole catalog; none by default
    rows : (n,) rows of the catalog that belong to this dataset, in this order; all by default

    An item holds `image`, uint8 (channels, size, size); `row`, that of the catalog; `counts`, float32 (A,); `failure`,
    empty or the reason why the image could not be read and is blank.
    """

    def __init__(
        self,
        files: Sequence[str],
        size: int,
        channels: int = 3,
        counts: NDArray[np.float32] | None = None,
        rows: NDArray[np.int64] | None = None,
        crop: float = 1.0,
    ) -> None:
        self.size = size
        self.channels = channels
        self.crop = crop
        self.rows = np.arange(len(files)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._files = files
        everything = np.zeros((len(files), 0), dtype=np.float32) if counts is None else counts
        self._counts = torch.from_numpy(np.ascontiguousarray(everything[self.rows], dtype=np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> GalaxyItem:
        failure = ""
        try:
            image = torch.from_numpy(read_image(self._files[self.rows[index]], self.size, self.channels, self.crop))
        except ImageError as error:
            failure = error.reason
            image = torch.zeros((self.channels, self.size, self.size), dtype=torch.uint8)
        return {"image": image, "row": int(self.rows[index]), "counts": self._counts[index], "failure": failure}

    def collate(self, items: Sequence[GalaxyItem]) -> GalaxyBatch:
        """Make a batch of the images that could be read, and a list of the others; there may be none of either.

        Returns
        -------
        image : uint8 (B, C, S, S); B may be 0
        row : int64 (B,), rows of the catalog
        counts : float32 (B, A)
        failed : (row of the catalog, reason) of those left out
        """
        good = [item for item in items if not item["failure"]]
        return {
            "image": _stack([item["image"] for item in good], (self.channels, self.size, self.size), torch.uint8),
            "row": torch.tensor([item["row"] for item in good], dtype=torch.int64),
            "counts": _stack([item["counts"] for item in good], tuple(self._counts.shape[1:]), torch.float32),
            "failed": [(item["row"], item["failure"]) for item in items if item["failure"]],
        }


def _stack(tensors: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # default_collate stacks in a worker straight into the memory that the main process reads.
    stacked: Tensor = default_collate(tensors) if tensors else torch.empty((0, *shape), dtype=dtype)
    return stacked
