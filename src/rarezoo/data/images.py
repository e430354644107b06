"""One galaxy image file to one square array of bytes, whatever its format, mode and size."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, default_collate

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")

# Softening of the stretch: the larger, the more of the range goes to faint light. The default of astropy's
# make_lupton_rgb.
ASINH_Q = 8.0
# Percentiles of the pixels that become black and white. The lower one lies within the noise of the sky, so that faint
# outskirts stay visible; the upper one keeps a few saturated pixels from darkening the galaxy.
ASINH_PERCENTILES = (1.0, 99.8)

# JPEG decoding may halve the image repeatedly as long as it stays this many times larger than what is asked for: then
# the difference to full decoding stays below one grey level on average.
_DRAFT_MARGIN = 2.0
_UNSIGNED_16_BIT = 65535
_MODES = {1: "L", 3: "RGB"}


class ImageError(Exception):
    """An image that cannot be used: `path` says which, `reason` why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | Path, size: int, channels: int = 3, crop: float = 1.0) -> NDArray[np.uint8]:
    """Read an image, cut its central square and resize it with antialiasing.

    JPEG, PNG, TIFF and whatever else Pillow reads: the EXIF orientation is applied, transparency is laid on black,
    colour becomes one channel by luma (ITU-R 601), one channel becomes three equal ones. 16-bit images are divided by
    257; other integers beyond 8 bits, and floats, are stretched like FITS.
    FITS: the first HDU with an image, (H, W) or (bands, H, W), its first row at the bottom; `asinh_stretch` is applied.
    For 1 and 3 channels, files of 1 and 3 bands are read; for any other number, FITS with as many bands.

    Parameters
    ----------
    path : file
    size : side of the result in pixels
    channels : of the result
    crop : share of the shorter side that is kept, centred, in (0, 1]

    Returns
    -------
    (channels, size, size)

    Raises
    ------
    ImageError
        if the file is missing, empty, truncated, too large, not an image, has no finite pixel, or another number of
        bands
    """
    path = str(path)
    bands = _open(path, size, crop)
    if isinstance(bands, Image.Image) and channels in _MODES:
        bands = [bands if bands.mode == _MODES[channels] else bands.convert(_MODES[channels])]
    elif isinstance(bands, Image.Image) or len(bands) != channels:
        found = len(bands.getbands()) if isinstance(bands, Image.Image) else len(bands)
        takes = "1 or 3 are read" if channels in _MODES else f"FITS with {channels} is read"
        raise ImageError(path, f"has {found} bands; for data.channels={channels}, {takes}")
    return _pixels(bands, size, crop)


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
    bands = _open(str(path), size, crop)
    if isinstance(bands, Image.Image):
        return _pixels([bands.convert("RGB")], size, crop)
    return _pixels([bands[0], bands[len(bands) // 2], bands[-1]], size, crop)


def asinh_stretch(bands: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Compress the range of linear fluxes so that faint outskirts and bright cores are both seen.

    The mean I of the bands above black is mapped to asinh(Q I / w) / asinh(Q), where w is white, and each band by the
    same factor, which keeps its colour; where a band exceeds white, all bands of that pixel are scaled down
    (Lupton et al. 2004, PASP 116, 133, eqs 2-4). Black is the lower of `ASINH_PERCENTILES` in each band, white the
    upper one of I. Pixels without a finite value become black.

    Parameters
    ----------
    bands : (bands, H, W), any unit, at least one pixel finite

    Returns
    -------
    (bands, H, W)
    """
    finite = np.isfinite(bands)
    flux = np.where(finite, bands, np.nan).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a band may be empty where others are not
        black = np.nanpercentile(flux, ASINH_PERCENTILES[0], axis=(1, 2), keepdims=True)
    flux = np.where(finite, np.maximum(flux - black, 0.0), 0.0)
    intensity = flux.mean(axis=0)
    white = np.percentile(intensity[finite.any(axis=0)], ASINH_PERCENTILES[1])
    if white <= 0:
        white = max(float(intensity.max()), np.finfo(np.float64).tiny)
    mapped = np.arcsinh(ASINH_Q * intensity / white) / math.asinh(ASINH_Q)
    scaled = flux * np.divide(mapped, intensity, out=np.zeros_like(mapped), where=intensity > 0)
    scaled /= np.maximum(scaled.max(axis=0), 1.0)
    levels: NDArray[np.uint8] = np.rint(255.0 * scaled).astype(np.uint8)
    return levels


def _open(path: str, size: int, crop: float) -> Image.Image | list[Image.Image]:
    """A picture, or one for each band where Pillow has no mode for as many."""
    try:
        if Path(path).stat().st_size == 0:
            raise ImageError(path, "empty file")
        return _open_fits(path) if path.lower().endswith(FITS_SUFFIXES) else _open_picture(path, size, crop)
    except ImageError:
        raise
    # Decoders raise a dozen kinds of exception for a damaged file, with no common base; one file must not end a run.
    except Exception as error:
        raise ImageError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _open_picture(path: str, size: int, crop: float) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            _draft(image, size, crop)
            image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return _eight_bits(path, image)


def _draft(image: Image.Image, size: int, crop: float) -> None:
    """Let the JPEG decoder shrink the image where far more pixels are stored than are asked for."""
    wanted = _DRAFT_MARGIN * size / (min(image.size) * crop)
    if wanted <= 0.5:
        image.draft(None, (math.ceil(image.width * wanted), math.ceil(image.height * wanted)))


def _eight_bits(path: str, image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    # Older Pillow opens 16-bit PNG in its 32-bit mode.
    if image.mode != "F" and values.min() >= 0 and values.max() <= _UNSIGNED_16_BIT:
        return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
    return _stretched(path, values[np.newaxis])


def _stretched(path: str, bands: NDArray[Any]) -> Image.Image:
    pixels = _levels(path, bands)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _levels(path: str, bands: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.isfinite(bands).any():
        raise ImageError(path, "no finite pixel")
    return asinh_stretch(bands)


def _open_fits(path: str) -> Image.Image | list[Image.Image]:
    from astropy.io import fits  # slow to import, and most surveys come as JPEG

    with fits.open(path, memmap=False) as hdus:
        data = next((hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim > 1), None)
    if data is None:
        raise ImageError(path, "no HDU holds an image")
    bands = data.reshape(-1, *data.shape[-2:])
    if data.ndim > 3 and len(bands) != data.shape[-3]:
        raise ImageError(path, f"has {data.ndim} dimensions; (H, W) or (bands, H, W) are read")
    # FITS counts rows from the bottom, pictures from the top: without this, spirals would wind the other way.
    bands = bands[:, ::-1]
    if len(bands) in _MODES:
        return _stretched(path, bands)
    return [Image.fromarray(levels) for levels in _levels(path, bands)]


def _central_square(image: Image.Image, size: int, crop: float) -> Image.Image:
    side = max(1, round(min(image.size) * crop))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Bilinear: no ringing around stars. Pillow widens the filter when it shrinks, so that nothing is aliased.
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _pixels(images: Sequence[Image.Image], size: int, crop: float) -> NDArray[np.uint8]:
    squares = [np.asarray(_central_square(image, size, crop)) for image in images]
    return np.ascontiguousarray(np.dstack(squares).transpose(2, 0, 1))


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
    files : (N,) paths, of the whole catalog
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
        # One block of bytes: a list of strings would be copied into every worker as its reference counts change.
        self._files = np.array([os.fsencode(files[row]) for row in self.rows], dtype=np.bytes_)
        everything = np.zeros((len(files), 0), dtype=np.float32) if counts is None else counts
        self._counts = torch.from_numpy(np.ascontiguousarray(everything[self.rows], dtype=np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> GalaxyItem:
        failure = ""
        try:
            image = torch.from_numpy(read_image(os.fsdecode(self._files[index]), self.size, self.channels, self.crop))
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
