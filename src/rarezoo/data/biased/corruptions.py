"""Ten ways to spoil a small photograph, each recognisable, with the strengths of CIFAR-10-C.

Strengths are those that Hendrycks & Dietterich (2019, ICLR) chose for 32 px (make_cifar_c.py in their repository); the
kinds are the ten of "type 0" in Nam et al. (2020). Of the libraries with these corruptions, imagecorruptions and its
descendants have the strengths for 224 px only, several times as strong, and need OpenCV, numba and scikit-image. Here
NumPy, SciPy and Pillow do, and every draw comes from one generator. What differs is said where it does.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float64]
"""(H, W, 3) from 0 to 1."""
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]

_MUD = np.array([63.0, 42.0, 20.0]) / 255.0
_WATER = np.array([175.0, 238.0, 238.0]) / 255.0
_FROST = np.array([0.82, 0.90, 1.0])
_LUMA = np.array([0.299, 0.587, 0.114])


def corrupt(image: NDArray[np.uint8], kind: int, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Spoil an image in one of ten ways.

    Parameters
    ----------
    image : (3, S, S)
    kind : place in `CORRUPTIONS`
    severity : 1 to 5

    Returns
    -------
    (3, S, S)
    """
    pixels = image.transpose(1, 2, 0) / 255.0
    spoilt = np.clip(list(CORRUPTIONS.values())[kind](pixels, severity - 1, rng), 0.0, 1.0)
    levels: NDArray[np.uint8] = np.rint(255.0 * spoilt).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(2, 0, 1))


def snow(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Falling flakes on a whitened picture."""
    mean, spread, zoom, threshold, length, sigma, keep = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    side = len(pixels)
    flakes = ndimage.zoom(rng.normal(mean, spread, (side, side)), zoom, order=1)
    start = (len(flakes) - side) // 2
    flakes = flakes[start : start + side, start : start + side]
    flakes = np.clip(np.where(flakes < threshold, 0.0, flakes), 0.0, 1.0)
    flakes = _moved(flakes, length, sigma, np.deg2rad(rng.uniform(-135, -45)))[..., np.newaxis]
    grey = (pixels @ _LUMA)[..., np.newaxis]
    whitened = keep * pixels + (1 - keep) * np.maximum(pixels, 1.5 * grey + 0.5)
    return np.asarray(whitened + flakes + np.rot90(flakes, k=2))


def frost(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Ice on a window: bluish white ridges of noise, where CIFAR-10-C lays on one of six photographs."""
    keep, amount = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    ridges = 1.0 - np.abs(2.0 * _clouds(len(pixels), 2.0, rng) - 1.0)
    return np.asarray(keep * pixels + amount * ridges[..., np.newaxis] ** 2 * _FROST)


def fog(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Drifting fog, of value noise in octaves where CIFAR-10-C has diamonds and squares."""
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    brightest = float(pixels.max())
    return (pixels + amount * _clouds(len(pixels), decay, rng)[..., np.newaxis]) * (brightest / (brightest + amount))


def brightness(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Lighter: a higher value in HSV."""
    hsv = rgb_to_hsv(pixels)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[level], 0.0, 1.0)
    return np.asarray(hsv_to_rgb(hsv))


def contrast(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Paler: closer to the mean of each colour."""
    mean: Pixels = pixels.mean(axis=(0, 1))
    return (pixels - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def spatter(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Drops of water (the three weaker ones, without the shading of their rims) or of mud."""
    mean, spread, size, threshold, amount = (
        (0.62, 0.1, 0.7, 0.7, 0.5),
        (0.65, 0.1, 0.8, 0.7, 0.5),
        (0.65, 0.3, 1.0, 0.69, 0.5),
        (0.65, 0.1, 0.7, 0.69, 0.6),
        (0.65, 0.1, 0.5, 0.68, 0.6),
    )[level]
    liquid = ndimage.gaussian_filter(rng.normal(mean, spread, pixels.shape[:2]), size, mode="nearest")
    if level < 3:
        drops = np.where(liquid < threshold, 0.0, liquid)
        return np.asarray(pixels + amount * (drops / max(drops.max(), threshold))[..., np.newaxis] * _WATER)
    mud = ndimage.gaussian_filter((liquid > threshold).astype(float), amount, mode="nearest")
    mud = np.where(mud < 0.8, 0.0, mud)[..., np.newaxis]
    return np.asarray(pixels * (1 - mud) + _MUD * mud)


def elastic(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Sheared and kneaded, with one interpolation for both."""
    kneading, smoothness, shear = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[level]
    side = len(pixels)
    centre, reach = side // 2, side // 3
    corners = centre + reach * np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)])
    moved = corners + rng.uniform(-shear * side, shear * side, corners.shape)
    # The three corners decide an affine map from the result back to the picture.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    places = (np.column_stack([grid, np.ones(len(grid))]) @ back).T.reshape(2, side, side)
    for axis in range(2):
        push = ndimage.gaussian_filter(rng.uniform(-1, 1, (side, side)), smoothness * side, mode="reflect", truncate=3)
        places[axis] += kneading * side * push
    bands = [ndimage.map_coordinates(pixels[..., band], places, order=1, mode="reflect") for band in range(3)]
    return np.stack(bands, -1)


def jpeg(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Blocks of strong JPEG compression."""
    stored = io.BytesIO()
    _picture(pixels).save(stored, "JPEG", quality=(80, 65, 58, 50, 40)[level])
    with Image.open(stored) as picture:
        return np.asarray(picture) / 255.0


def pixelate(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Coarser pixels."""
    side = len(pixels)
    coarse = int(side * (0.95, 0.9, 0.85, 0.75, 0.65)[level])
    picture = _picture(pixels).resize((coarse, coarse), Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX)) / 255.0


def saturate(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Weaker colours (severities 1 and 2) or stronger ones, in HSV."""
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[level]
    hsv = rgb_to_hsv(pixels)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0.0, 1.0)
    return np.asarray(hsv_to_rgb(hsv))


CORRUPTIONS: dict[str, Corruption] = {
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "spatter": spatter,
    "elastic": elastic,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "saturate": saturate,
}
"""In the order of Nam et al. (2020): the place is the value of the attribute."""


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(255.0 * pixels).astype(np.uint8))


def _clouds(side: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Noise (side, side) from 0 to 1, each octave finer by two and weaker by `decay` than the one before."""
    total = np.zeros((side, side))
    cells, weight = 2, 1.0
    while cells <= side:
        coarse = rng.uniform(-1.0, 1.0, (cells, cells))
        total += weight * ndimage.zoom(coarse, side / cells, order=1, grid_mode=False)[:side, :side]
        cells, weight = 2 * cells, weight / decay
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low))


def _moved(layer: Pixels, length: int, sigma: float, angle: float) -> Pixels:
    """Motion blur: the layer and its copies along a line, with weights of half a Gaussian."""
    steps = np.arange(length + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    direction = np.array([np.sin(angle), np.cos(angle)])
    copies = [
        weight * ndimage.shift(layer, step * direction, order=1, mode="nearest")
        for step, weight in zip(steps, weights, strict=True)
    ]
    return np.asarray(np.sum(copies, axis=0))
