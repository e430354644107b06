"""Instrumental faults that a survey's pictures carry: stars, trails, missing bands, chip edges, scattered light.

Lengths are fractions of the frame, brightnesses multiples of the sky noise, so a fault looks the same at any size.
The kinds are those that Galaxy Zoo volunteers report in cutouts of the DESI Legacy Surveys; the numbers are chosen by
eye to look like them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import did_you_mean

FloatArray: TypeAlias = NDArray[np.float64]

_BANDS = 3


def add_artifact(flux: NDArray[np.floating], kind: str, rng: np.random.Generator, sky: float) -> NDArray[np.float32]:
    """Put one instrumental fault on a picture.

    Parameters
    ----------
    flux : (3, size, size), linear, bands ordered red, green, blue; noise included
    kind : one of `ARTIFACT_KINDS`
    rng : source of the fault's place, size, brightness and colour
    sky : standard deviation of the background noise, in the units of `flux`

    Returns
    -------
    (3, size, size) float32, a new array

    Raises
    ------
    ValueError
        if the kind is unknown or `flux` is not of that shape
    """
    if kind not in _PAINTERS:
        raise ValueError(f"artifact kind '{kind}' is unknown. {did_you_mean(kind, ARTIFACT_KINDS)}")
    if flux.ndim != 3 or flux.shape[0] != _BANDS or flux.shape[1] != flux.shape[2]:
        raise ValueError(f"flux has shape {flux.shape}; expected (3, size, size).")
    # Painted in units of the sky noise, on a copy.
    painted = _PAINTERS[kind](flux.astype(np.float64) / sky, rng)
    return (painted * sky).astype(np.float32)


def _saturated_star(flux: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A star far above full well: flat core, wide halo, four diffraction spikes, charge bled along the columns."""
    size = flux.shape[-1]
    y, x = _grid(size)
    dy, dx = y - rng.uniform(0.15, 0.85), x - rng.uniform(0.15, 0.85)
    core = rng.uniform(0.035, 0.07)
    peak = _log_uniform(1600, 10000, rng)
    light = peak * (1 + (dx**2 + dy**2) / core**2) ** -1.9
    light += 0.15 * peak * _spikes(dy, dx, np.pi / 4 + rng.normal(0, 0.12), core, size)
    star = light * _star_colour(rng)[:, None, None]
    full_well = peak * rng.uniform(0.25, 0.6)
    bleeds = rng.random(_BANDS) < 0.7
    bleeds[rng.integers(_BANDS)] = True
    width = max(core * rng.uniform(0.25, 0.6), 1.0 / size)
    column = (np.abs(dx) < width) & (np.abs(dy) < rng.uniform(0.25, 1.0))
    bled = np.where(column & bleeds[:, None, None], full_well, star)
    return np.minimum(flux + np.maximum(star, bled), full_well)


def _spikes(dy: FloatArray, dx: FloatArray, angle: float, core: float, size: int) -> FloatArray:
    """Two crossed bars of light that fade outwards, 1 at the centre."""
    width = max(0.12 * core, 0.7 / size)
    cross = np.zeros_like(dy)
    for turned in (angle, angle + np.pi / 2):
        along, across = _rotated(dy, dx, turned)
        cross += np.exp(-0.5 * (across / width) ** 2) / (1 + (along / (2 * core)) ** 2)
    return cross / 2


def _star_colour(rng: np.random.Generator) -> FloatArray:
    """Relative brightness in red, green, blue of a star between very red and very blue."""
    redness = rng.uniform(-0.5, 0.8)
    return np.exp(np.array([redness, 0.0, -redness]) / 2)


def _satellite_trail(flux: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A straight line across the frame, in one exposure of one band or in all; at times double, at times broken."""
    size = flux.shape[-1]
    y, x = _grid(size)
    centre = rng.uniform(0.3, 0.7, 2)
    along, across = _rotated(y - centre[0], x - centre[1], rng.uniform(0, np.pi))
    width = max(rng.uniform(0.004, 0.013), 0.6 / size)
    profile: FloatArray = np.exp(-0.5 * (across / width) ** 2)
    if rng.random() < 0.3:
        profile += rng.uniform(0.4, 1.0) * np.exp(-0.5 * ((across - rng.uniform(0.06, 0.15)) / width) ** 2)
    if rng.random() < 0.3:
        phase = along / rng.uniform(0.12, 0.3) + rng.random()
        profile *= phase % 1.0 < rng.uniform(0.45, 0.75)
    brightness = _log_uniform(30, 200, rng)
    colour = np.full(_BANDS, rng.uniform(0.7, 1.0)) if rng.random() < 0.35 else np.eye(_BANDS)[rng.integers(_BANDS)]
    return flux + brightness * colour[:, None, None] * profile


def _missing_band(flux: FloatArray, rng: np.random.Generator) -> FloatArray:
    """One or two bands without data, in the frame or beyond a straight edge in it; the others keep their sky."""
    size = flux.shape[-1]
    missing = rng.permutation(_BANDS)[: rng.integers(1, _BANDS)]
    where = np.ones((size, size), dtype=bool)
    if rng.random() < 0.35:
        where = _beyond_edge(size, rng, reach=0.15)
    painted = flux + rng.uniform(1.5, 5.0) * where
    painted[missing] = np.where(where, 0.0, flux[missing])
    return painted


def _chip_edge(flux: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Part of the frame lies off the detector and is 0; few exposures reach its rim, which is noisy."""
    size = flux.shape[-1]
    depth = _off_detector(size, rng)
    rim = (depth <= 0) & (depth > -max(rng.uniform(0.02, 0.07), 2.0 / size))
    # Dithers differ from band to band: between the first and the last edge some bands still have data.
    dither = np.where(rng.random() < 0.4, rng.uniform(0, 0.1, _BANDS), 0.0)
    painted = flux.copy()
    painted[:, rim] += rng.normal(rng.uniform(5, 15), rng.uniform(4, 20), (_BANDS, int(rim.sum())))
    return np.where(depth > (dither - dither.min())[:, None, None], 0.0, painted)


def _off_detector(size: int, rng: np.random.Generator) -> FloatArray:
    """Distance beyond the edge of a chip, negative on it: one side, one corner, or the gap between two chips."""
    y, x = _grid(size)
    beside, above = _rotated(y - 0.5, x - 0.5, rng.integers(4) * np.pi / 2 + rng.normal(0, 0.05))
    edge = rng.uniform(-0.12, 0.22)
    style = rng.choice(["side", "corner", "gap"], p=[0.5, 0.25, 0.25])
    if style == "side":
        return above - edge
    if style == "corner":
        return np.minimum(above - min(edge, 0.1), beside + rng.uniform(0.0, 0.3))
    return rng.uniform(0.05, 0.1) - np.abs(above - edge)


def _scattered_light(flux: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Light of a bright star outside the frame: a ramp, the halo of the star, or an out-of-focus ghost of the pupil."""
    size = flux.shape[-1]
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    brightness = _log_uniform(12, 40, rng)
    kind = rng.choice(["ramp", "halo", "ghost"])
    if kind == "ramp":
        along, _ = _rotated(y - 0.5, x - 0.5, angle)
        shape = np.power(np.maximum(along + 0.6, 0.0), rng.uniform(1, 2))
    elif kind == "halo":
        distance = np.hypot(y - 0.5 - 0.75 * np.sin(angle), x - 0.5 - 0.75 * np.cos(angle))
        shape = 2 * np.exp(-distance / rng.uniform(0.2, 0.4))
    else:
        shape = 0.7 * _pupil_ghost(y, x, rng)
    colour = rng.dirichlet(np.full(_BANDS, 6.0)) * _BANDS
    return flux + brightness * colour[:, None, None] * shape


def _pupil_ghost(y: FloatArray, x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Disc with a soft edge, at times with the shadow of the secondary mirror; 1 inside."""
    centre = rng.uniform(0.25, 0.75, 2)
    radius = np.hypot(y - centre[0], x - centre[1])
    outer = rng.uniform(0.25, 0.45)
    softness = 0.02
    disc: FloatArray = 1 / (1 + np.exp((radius - outer) / softness))
    if rng.random() < 0.6:
        disc -= 0.8 / (1 + np.exp((radius - outer * rng.uniform(0.3, 0.6)) / softness))
    return disc


def _beyond_edge(size: int, rng: np.random.Generator, reach: float) -> NDArray[np.bool_]:
    """The part of the frame to one side of a straight edge, parallel to a side and at most `reach` off the centre."""
    y, x = _grid(size)
    return _rotated(y - 0.5, x - 0.5, rng.integers(4) * np.pi / 2)[1] > rng.uniform(-reach, reach)


def _grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Rows and columns of the pixel centres, 0..1 over the frame, each (size, size)."""
    centres = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return y, x


def _rotated(dy: FloatArray, dx: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates along and across a line at `angle` (radians) to the rows."""
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


_PAINTERS: dict[str, Callable[[FloatArray, np.random.Generator], FloatArray]] = {
    "saturated_star": _saturated_star,
    "satellite_trail": _satellite_trail,
    "missing_band": _missing_band,
    "chip_edge": _chip_edge,
    "scattered_light": _scattered_light,
}

ARTIFACT_KINDS: tuple[str, ...] = tuple(_PAINTERS)
"""Names of the faults that `add_artifact` knows."""
