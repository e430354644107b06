"""From light to picture: the frame that components are painted on, the telescope's blur and noise, the colour stretch.

Flux is in units of the background noise of one pixel of a 96 px cutout. A finer frame has finer pixels of the same
sky: its surface brightness is the same and its noise per pixel is higher, as for a camera with smaller pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from rarezoo.data.simulate.components import Light

REFERENCE_SIZE = 96
"""Side, px, of the cutout in whose noise flux is measured."""
SKY_LEVEL = 60.0
"""Brightness of the sky in units of its own noise: sets how much noise the galaxy's own photons add. About 21 mag per
square arcsecond of sky against 25.5 of noise, as in r in the DESI Legacy Surveys (Dey et al. 2019, AJ 157, 168)."""
STRETCH = 3.0
"""Flux at which the asinh stretch turns from linear to logarithmic."""
WHITE = 150.0
"""Mean flux of the three bands that is shown at full brightness."""
_WING_SHARE = 0.1
_WING_WIDTH = 2.6
_FWHM_PER_SIGMA = 2.3548
_RED = np.array([1.32, 1.0, 0.66], dtype=np.float32)
_BLUE = np.array([0.78, 0.94, 1.3], dtype=np.float32)


def colour(blueness: float) -> NDArray[np.float32]:
    """Share of the light in red, green and blue, of mean 1.

    Parameters
    ----------
    blueness : 0 an old spheroid, 1 a young disk, up to 1.6 a star-forming knot
    """
    mixed = _RED ** (1 - blueness) * _BLUE**blueness
    return np.asarray(mixed / mixed.mean(), dtype=np.float32)


class Canvas:
    """Frame of three bands that light is added to.

    Attributes
    ----------
    size : side, px
    x, y : (size, size) coordinates of the pixel centres from the frame's centre, px; y points down
    flux : (3, size, size) float32, red, green, blue, in units of the reference noise
    """

    def __init__(self, size: int) -> None:
        self.size = size
        axis = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        self.x, self.y = np.meshgrid(axis, axis)
        self.flux = np.zeros((3, size, size), dtype=np.float32)

    @property
    def scale(self) -> float:
        """Pixels of this frame per pixel of the reference frame."""
        return self.size / REFERENCE_SIZE

    def add(self, light: Light, flux: float, bands: ArrayLike) -> None:
        """Add light of unit flux, `flux` times, in a colour of mean 1."""
        self.flux += np.asarray(bands, dtype=np.float32)[:, None, None] * (light * np.float32(flux))

    def dim(self, depth: Light, reddening: float = 0.5) -> None:
        """Let dust take light away: optical depth (size, size) in green, less in red and more in blue."""
        for band, power in enumerate((1 - reddening, 1.0, 1 + reddening)):
            self.flux[band] *= np.exp(-np.float32(power) * depth)


@dataclass(frozen=True)
class Plane:
    """A galaxy's plane as the frame sees it.

    Attributes
    ----------
    along, across : (size, size) sky coordinates along the major and the minor axis, px
    radius, azimuth : (size, size) polar coordinates in the plane, px and radians
    centre : (x, y) of the galaxy from the frame's centre, px
    angle : position angle of the major axis, radians from the x axis
    axis_ratio : apparent b/a
    """

    along: Light
    across: Light
    radius: Light
    azimuth: Light
    centre: tuple[float, float]
    angle: float
    axis_ratio: float

    def to_frame(self, radius: ArrayLike, azimuth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frame coordinates (x, y) of points in the plane."""
        u = np.asarray(radius) * np.cos(azimuth)
        v = np.asarray(radius) * np.sin(azimuth) * self.axis_ratio
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.centre[0] + u * cos - v * sin, self.centre[1] + u * sin + v * cos


def plane(canvas: Canvas, centre: tuple[float, float], angle: float, axis_ratio: float) -> Plane:
    """Plane through `centre` (px from the frame's centre), major axis at `angle` (degrees), seen at `axis_ratio`."""
    radians = float(np.radians(angle))
    dx, dy = canvas.x - np.float32(centre[0]), canvas.y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(radians)), np.float32(np.sin(radians))
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    deprojected = across / np.float32(axis_ratio)
    return Plane(
        along=along,
        across=across,
        radius=np.hypot(along, deprojected),
        azimuth=np.arctan2(deprojected, along),
        centre=centre,
        angle=radians,
        axis_ratio=axis_ratio,
    )


def blur(flux: Light, psf_fwhm: float) -> Light:
    """Convolve each band with the point spread function: a Gaussian core and 10 % of the light in a wider one.

    The double Gaussian is what the Sloan survey fits to its stars (Stoughton et al. 2002, AJ 123, 485, section 4.3).

    Parameters
    ----------
    flux : (3, size, size)
    psf_fwhm : full width at half maximum of the core, px
    """
    sigma = psf_fwhm / _FWHM_PER_SIGMA
    core = gaussian_filter(flux, sigma, axes=(1, 2), mode="nearest", truncate=3.5)
    wing = gaussian_filter(flux, sigma * _WING_WIDTH, axes=(1, 2), mode="nearest", truncate=2.5)
    return np.asarray((1 - _WING_SHARE) * core + _WING_SHARE * wing, dtype=np.float32)


def add_noise(flux: Light, sky_sigma: float, rng: np.random.Generator) -> Light:
    """Background noise and the photon noise of the light itself, both in the Gaussian limit.

    The variance is sky_sigma² (1 + flux / SKY_LEVEL); thousands of photons per pixel make Poisson's law a normal one.

    Parameters
    ----------
    flux : (3, size, size), in units of the reference noise
    sky_sigma : standard deviation of the background, in the same units
    """
    sigma = np.float32(sky_sigma) * np.sqrt(1 + np.maximum(flux, 0) / np.float32(SKY_LEVEL))
    return flux + sigma * rng.standard_normal(flux.shape, dtype=np.float32)


def stretched(flux: Light) -> NDArray[np.uint8]:
    """Colour picture with the asinh stretch of Lupton et al. (2004, PASP 116, 133, section 2.2), which keeps colours.

    The mean of the bands is stretched and each band scaled alike; where a band would pass full brightness all three
    are scaled down together.

    Parameters
    ----------
    flux : (3, size, size), red, green, blue

    Returns
    -------
    (size, size, 3)
    """
    # A floor keeps the ratio finite where noise takes the mean below zero.
    mean = np.maximum(flux.mean(axis=0), np.float32(1e-3))
    ratio = np.arcsinh(mean / np.float32(STRETCH)) / (mean * np.float32(np.arcsinh(WHITE / STRETCH)))
    bands = flux * ratio
    bands /= np.maximum(bands.max(axis=0), 1.0)
    levels = np.clip(bands * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))
