"""Light profiles and patterns that a galaxy is composed of.

All functions take coordinates in pixels and give surface brightness per square pixel; profiles have a total flux of 1,
patterns run from 0 to about 1. Coordinates may have any shape; results have the same.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gamma, gammaincinv, k1

Light: TypeAlias = NDArray[np.float32]

HALF_LIGHT_PER_SCALE_LENGTH = 1.67835
"""Half-light radius of an exponential disk in units of its scale length."""
_BAR_BOXINESS = 0.4


def sersic_b(index: float) -> float:
    """Constant b_n for which half of a Sersic profile's light lies within its half-light radius.

    Solves gamma(2n, b) = Gamma(2n) / 2 (Ciotti & Bertin 1999, A&A 352, 447, equation 1).
    """
    return float(gammaincinv(2 * index, 0.5))


def sersic(radius: Light, half_light_radius: float, index: float) -> Light:
    """Sersic profile exp(-b_n (r / R_e)^(1/n)) with unit flux over a circular plane.

    Parameters
    ----------
    radius : distance from the centre, px
    half_light_radius : R_e, px
    index : n; 1 is an exponential disk, 4 a de Vaucouleurs spheroid
    """
    b = sersic_b(index)
    total = 2 * np.pi * index * half_light_radius**2 * b ** (-2 * index) * gamma(2 * index)
    light: Light = np.exp(-b * (radius / half_light_radius) ** (1 / index)) / np.float32(total)
    return light


def exponential_disk(radius: Light, half_light_radius: float) -> Light:
    """Exponential profile with unit flux over a circular plane."""
    scale = half_light_radius / HALF_LIGHT_PER_SCALE_LENGTH
    light: Light = np.exp(-radius / scale) / np.float32(2 * np.pi * scale**2)
    return light


def edge_on_disk(along: Light, height: Light, half_light_radius: float, scale_height: float) -> Light:
    """Exponential disk seen exactly edge-on, with unit flux.

    r K_1(r) along and the isothermal sheet's sech² across (van der Kruit & Searle 1981, A&A 95, 105, equation 5).

    Parameters
    ----------
    along, height : coordinates along and across the disk's plane, px
    half_light_radius : of the disk seen face-on, px
    scale_height : of the sech², px
    """
    scale = half_light_radius / HALF_LIGHT_PER_SCALE_LENGTH
    distance = np.maximum(np.abs(along), np.float32(1e-3)) / np.float32(scale)
    radial = distance * k1(distance) / np.float32(np.pi * scale)
    light: Light = radial / np.cosh(np.clip(height / scale_height, -30, 30)) ** 2 / np.float32(2 * scale_height)
    return light


def boxy_radius(along: Light, across: Light, axis_ratio: float, boxiness: float) -> Light:
    """Semi-major axis of the generalised ellipse through a point (Athanassoula et al. 1990, MNRAS 245, 130).

    Parameters
    ----------
    along, across : coordinates along the major and the minor axis, px
    axis_ratio : b/a
    boxiness : 0 an ellipse, 1 nearly a rectangle (exponent 4)
    """
    if boxiness == 0:
        ellipse: Light = np.hypot(along, across / axis_ratio)
        return ellipse
    power = np.float32(2 + 2 * boxiness)
    box: Light = (np.abs(along) ** power + np.abs(across / axis_ratio) ** power) ** (1 / power)
    return box


def boxy_area(boxiness: float) -> float:
    """Area of the generalised ellipse with both semi-axes 1: pi for boxiness 0, rising to 3.7 for 1."""
    power = 2 + 2 * boxiness
    return float(4 * gamma(1 + 1 / power) ** 2 / gamma(1 + 2 / power))


def bar_profile(along: Light, across: Light, length: float, axis_ratio: float) -> Light:
    """Flat bar with steep ends: exp(-2 (r / length)^2.5) on boxy ellipses, with unit flux.

    Parameters
    ----------
    along, across : coordinates along and across the bar, px
    length : semi-major axis at which the brightness has fallen to 1/e², px
    """
    radius = boxy_radius(along, across, axis_ratio, _BAR_BOXINESS) / length
    # The integral of 2 a exp(-2 a^2.5) over a, times the area of the unit figure.
    total = boxy_area(_BAR_BOXINESS) * 0.8 * 2**-0.8 * gamma(0.8) * axis_ratio * length**2
    light: Light = np.exp(-2 * radius**2.5) / np.float32(total)
    return light


def ring_profile(radius: Light, ring_radius: float, width: float) -> Light:
    """Ring with a Gaussian cross-section of standard deviation `width`, unit flux; all in px."""
    total = (2 * np.pi) ** 1.5 * ring_radius * width
    light: Light = np.exp(-0.5 * ((radius - ring_radius) / width) ** 2) / np.float32(total)
    return light


def spiral_arms(
    radius: Light, azimuth: Light, n_arms: int, pitch: float, anchor: tuple[float, float], sharpness: float = 2.5
) -> Light:
    """Logarithmic spiral pattern, 1 on the ridges of the arms.

    Ridges follow ln(r / r_0) = tan(pitch) (azimuth - azimuth_0). The cross-section is exp(sharpness (cos psi - 1)).

    Parameters
    ----------
    radius, azimuth : polar coordinates in the disk's plane, px and radians
    n_arms : number of arms, >= 1
    pitch : angle between an arm and the circle, degrees; negative winds the other way
    anchor : (r_0, azimuth_0) of a point on a ridge, px and radians
    """
    wound = np.log((radius + 1e-3) / anchor[0]) / np.float32(np.tan(np.radians(pitch)))
    ridges: Light = np.exp(sharpness * (np.cos(n_arms * (azimuth - anchor[1] - wound)) - 1))
    return ridges


def flocculent_pattern(
    radius: Light, azimuth: Light, pitch: float, rng: np.random.Generator, n_waves: int = 8
) -> Light:
    """Patchy, sheared short arms: a sum of random logarithmic spiral waves with 3 to 10 arms, of mean 0 and variance 1.

    Parameters
    ----------
    radius, azimuth : polar coordinates in the disk's plane, px and radians
    pitch : of the shear, degrees; single waves scatter about it
    """
    log_radius = np.log(radius + 1.0)
    total: Light = np.zeros_like(log_radius)
    for _ in range(n_waves):
        arms = int(rng.integers(3, 11))
        winding = np.float32(arms / np.tan(np.radians(pitch)) * rng.uniform(0.5, 1.6))
        total += np.cos(arms * azimuth - winding * log_radius + np.float32(rng.uniform(0, 2 * np.pi)))
    return total * np.float32(np.sqrt(2 / n_waves))


def rough_texture(x: Light, y: Light, scale: float, rng: np.random.Generator, n_waves: int = 8) -> Light:
    """Random texture of mean 0 and variance 1: a sum of plane waves with wavelengths of 0.7 to 3 times `scale` px."""
    total = np.zeros_like(x)
    for _ in range(n_waves):
        wavenumber = 2 * np.pi / (scale * rng.uniform(0.7, 3.0))
        angle = rng.uniform(0, np.pi)
        kx, ky = np.float32(wavenumber * np.cos(angle)), np.float32(wavenumber * np.sin(angle))
        total += np.cos(kx * x + ky * y + np.float32(rng.uniform(0, 2 * np.pi)))
    return total * np.float32(np.sqrt(2 / n_waves))


def knots(size: int, x: ArrayLike, y: ArrayLike, radii: ArrayLike, fluxes: ArrayLike) -> Light:
    """Sum of round Gaussians: star-forming knots, stars, faint companions.

    Parameters
    ----------
    size : side of the frame, px
    x, y : (n,) places, px from the frame's centre
    radii : (n,) standard deviations, px; below 0.5 px they are taken as 0.5 px, which the pixel grid can carry
    fluxes : (n,) total fluxes

    Returns
    -------
    (size, size)
    """
    axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
    sigma = np.maximum(np.asarray(radii, dtype=np.float32), 0.5)[:, None]
    across = np.exp(-0.5 * ((axis - np.asarray(x, dtype=np.float32)[:, None]) / sigma) ** 2)
    down = np.exp(-0.5 * ((axis - np.asarray(y, dtype=np.float32)[:, None]) / sigma) ** 2)
    peak = np.asarray(fluxes, dtype=np.float32)[:, None] / (2 * np.pi * sigma**2)
    # einsum and not matmul: no threads of BLAS, so the same bits whatever the number of cores.
    total: Light = np.einsum("ky,kx->yx", down * peak, across)
    return total


def smoothstep(value: Light, low: float, high: float) -> Light:
    """0 below `low`, 1 above `high`, a cubic between them."""
    t: Light = np.clip((value - low) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)
