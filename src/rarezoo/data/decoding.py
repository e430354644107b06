"""Bytes and arrays of an image to square pictures of 8 bits, whatever their format, mode and size."""

from __future__ import annotations

import gzip
import io
import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

try:
    import simplejpeg
except ImportError:
    # There are no wheels for every platform. Pillow gives the same pixels, more slowly.
    simplejpeg = None

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
# Of the decoder's scales, n/8, only these are computed fast; the others take longer than full decoding.
_SHRINKINGS = (8, 4, 2)
_UNSIGNED_16_BIT = 65535
_GZIP = b"\x1f\x8b"


def decode_picture(content: bytes, size: int, crop: float) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, TIFF and whatever else Pillow reads.

    The EXIF orientation is applied, transparency is laid on black. 16-bit images are divided by 257; other integers
    beyond 8 bits, and floats, are stretched like FITS.

    Parameters
    ----------
    content : of the file
    size, crop : as in `resized`, to which the result goes: a JPEG that is much larger is decoded at a fraction of it

    Returns
    -------
    (1 or 3, H, W)

    Raises
    ------
    Exception
        of many kinds, if the file is truncated, too large or not an image
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            shrinking = _shrinking(min(image.size) * crop, size)
            quickly = _decode_jpeg(content, image, shrinking)
            if quickly is not None:
                return quickly
            if shrinking > 1:
                image.draft(None, (image.width // shrinking, image.height // shrinking))
            image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return _bands_first(np.array(Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")))
    if image.mode.startswith(("I", "F")):
        return to_levels(_wide_values(image)[np.newaxis])
    return _bands_first(np.array(image.convert("L" if image.mode in ("1", "L") else "RGB")))


def decode_fits(content: bytes) -> NDArray[np.uint8]:
    """Decode and stretch the first HDU with an image, (H, W) or (bands, H, W), its first row at the bottom.

    Returns
    -------
    (bands, H, W), first row at the top

    Raises
    ------
    Exception
        of many kinds, if the file is damaged, holds no image or has no finite pixel
    """
    from astropy.io import fits  # slow to import, and most surveys come as JPEG

    content = gzip.decompress(content) if content.startswith(_GZIP) else content
    with fits.open(io.BytesIO(content), memmap=False) as hdus:
        data = next((hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim > 1), None)
    if data is None:
        raise ValueError("no HDU holds an image")
    bands = data.reshape(-1, *data.shape[-2:])
    if data.ndim > 3 and len(bands) != data.shape[-3]:
        raise ValueError(f"has {data.ndim} dimensions; (H, W) or (bands, H, W) are read")
    # FITS counts rows from the bottom, pictures from the top: without this, spirals would wind the other way.
    return _stretched(bands[:, ::-1])


def decode_array(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring an array to 8 bits, with its bands first.

    Parameters
    ----------
    values : (H, W), (H, W, C) or (C, H, W), first row at the top; the shorter of the first and the last axis is C, and
        the last where they are equal

    Returns
    -------
    (C, H, W)

    Raises
    ------
    ValueError
        if it has another number of axes, or no finite pixel
    """
    if values.ndim not in (2, 3):
        raise ValueError(f"has {values.ndim} dimensions; (H, W), (H, W, C) or (C, H, W) are read")
    bands_last = values.ndim == 3 and values.shape[2] <= values.shape[0]
    return to_levels(values if values.ndim == 3 and not bands_last else _bands_first(values))


def to_levels(bands: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring (bands, H, W) to 8 bits: unsigned 16 bits are divided by 257, other types than bytes stretched like FITS.

    Raises
    ------
    ValueError
        if no pixel is finite
    """
    if bands.dtype == np.uint8:
        return bands
    if bands.dtype.kind == "u" and bands.dtype.itemsize == 2:
        levels: NDArray[np.uint8] = np.rint(bands / 257.0).astype(np.uint8)
        return levels
    return _stretched(bands)


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


def luma(bands: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One band from red, green and blue (3, H, W), by ITU-R 601."""
    return np.array(Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0))).convert("L"))[np.newaxis]


def resized(bands: NDArray[np.uint8], size: int, crop: float) -> NDArray[np.uint8]:
    """Cut the central square and resize it with antialiasing.

    Parameters
    ----------
    bands : (bands, H, W)
    size : side of the result in pixels
    crop : share of the shorter side that is kept, in (0, 1]

    Returns
    -------
    (bands, size, size), contiguous
    """
    height, width = bands.shape[1:]
    side = max(1, round(min(height, width) * crop))
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(bands[:, top : top + side, left : left + side])
    # Bilinear: no ringing around stars. The filter widens when it shrinks, so that nothing is aliased. torch computes
    # what Pillow does, within one grey level, several times faster.
    small = torch.nn.functional.interpolate(square[None], (size, size), mode="bilinear", antialias=True)[0]
    levels: NDArray[np.uint8] = small.contiguous().numpy()
    return levels


def _shrinking(side: float, size: int) -> int:
    """By how much a JPEG of this side may be decoded smaller: 8, 4, 2 or not at all."""
    return next((times for times in _SHRINKINGS if side >= times * _DRAFT_MARGIN * size), 1)


def _decode_jpeg(content: bytes, image: Image.Image, shrinking: int) -> NDArray[np.uint8] | None:
    """Pixels of an upright JPEG in grey or colour without any damage; None leaves it to Pillow to decode or refuse."""
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    height, width = (-(-side // shrinking) if shrinking > 1 else 0 for side in (image.height, image.width))
    colours = "GRAY" if image.mode == "L" else "RGB"
    try:
        return _bands_first(simplejpeg.decode_jpeg(content, colours, min_height=height, min_width=width))
    except ValueError:
        return None


def _bands_first(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def _wide_values(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    # Older Pillow opens 16-bit PNG in its 32-bit mode.
    if values.dtype.kind == "i" and values.min() >= 0 and values.max() <= _UNSIGNED_16_BIT:
        return values.astype(np.uint16)
    return values


def _stretched(bands: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.isfinite(bands).any():
        raise ValueError("no finite pixel")
    return asinh_stretch(bands)
