"""What galaxies there are: the parameters that each is drawn from, and their distributions.

Everything is continuous, so that the kinds of galaxies run into one another as they do in the sky. The latent
`lateness` t, uniform on 0..1, stands for Hubble's sequence from S0 to Sm and ties bulge, arms and colour together.
Numbers are choices that give shares and looks like those of Galaxy Zoo DECaLS (Walmsley et al. 2022, MNRAS 509,
3966), not fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rarezoo.data.simulate.artifacts import ARTIFACT_KINDS

MORPHOLOGIES: Mapping[str, float] = {"smooth": 0.37, "disk": 0.555, "irregular": 0.035, "merger": 0.04}
"""Shares of the kinds. With inclinations at random, 0.177 of the disks are nearly edge-on: 10 % of all galaxies."""
DISK_THICKNESS = 0.13
"""Intrinsic axis ratio of a disk (Unterborn & Ryden 2008, ApJ 687, 976, find 0.1 to 0.2)."""
ARM_COUNTS: Mapping[int, float] = {0: 0.18, 1: 0.04, 2: 0.46, 3: 0.13, 4: 0.11, 5: 0.05, 6: 0.03}
"""Shares of the numbers of arms of disks."""


@dataclass(frozen=True)
class Galaxy:
    """All that decides a galaxy's picture, but for the random places of its details.

    Attributes
    ----------
    morphology : smooth, disk, irregular or merger
    bulge_fraction : share of the light in the bulge, 0..1
    sersic_index, bulge_radius : of the bulge (of the whole where smooth); half-light radius in px
    half_light_radius : semi-major, of the disk, or of the whole where smooth, px
    axis_ratio : apparent b/a, 0..1
    edge_on : exp(-(cos i / 0.33)²) of a disk's inclination i, 1 exactly edge-on; 0 where there is no disk
    position_angle : of the major axis, degrees
    n_arms, arm_strength, pitch, winding, arm_angle : spiral arms; strength 0..1, pitch in degrees, winding ±1,
        azimuth in degrees at which the first begins
    flocculence, clumpiness, dust : 0..1
    bar_strength, bar_length, bar_angle : 0..1, px, degrees from the major axis in the disk's plane
    inner_ring, outer_ring : strength 0..1, at the bar's end and at about twice that
    disturbance : asymmetry and tidal tails, 0..1
    companion : flux of a merging companion over the galaxy's own, 0 none
    bulge_boxiness : 0 elliptical, 1 boxy
    bulge_blueness, disk_blueness : 0 an old population, 1 a young one
    snr : mean surface brightness within the half-light ellipse over the background noise of a pixel of a 96 px cutout
    psf_fwhm : px
    artifact, rare_class : name, or "" for none
    """

    morphology: str
    bulge_fraction: float
    sersic_index: float
    bulge_radius: float
    half_light_radius: float
    axis_ratio: float
    edge_on: float
    position_angle: float
    n_arms: int
    arm_strength: float
    pitch: float
    winding: int
    arm_angle: float
    flocculence: float
    clumpiness: float
    dust: float
    bar_strength: float
    bar_length: float
    bar_angle: float
    inner_ring: float
    outer_ring: float
    disturbance: float
    companion: float
    bulge_boxiness: float
    bulge_blueness: float
    disk_blueness: float
    snr: float
    psf_fwhm: float
    artifact: str
    rare_class: str

    @property
    def total_flux(self) -> float:
        """Flux in units of the reference noise: half of it lies in the half-light ellipse, at `snr` in the mean."""
        # A face-on ellipse's area for all: a disk that is transparent keeps its flux as it is tilted.
        return 2 * self.snr * np.pi * self.half_light_radius**2 * max(self.axis_ratio, 0.3)


def draw_population(n_galaxies: int, size: int, artifact_share: float, rng: np.random.Generator) -> list[Galaxy]:
    """Draw galaxies of all kinds, none of a rare class.

    Distributions common to all: psf_fwhm lognormal, median 1.6 % of the frame (1.5 px of 96), scatter 0.2 in ln;
    snr lognormal, median 11, scatter 0.5 in ln; orientations uniform. Each is an artifact with the given probability,
    of a kind drawn evenly. The kinds' own distributions stand in `draw_smooth`, `draw_disk`, `draw_irregular` and
    `draw_merger`.

    Parameters
    ----------
    n_galaxies : number of galaxies
    size : side of the cutouts, px
    artifact_share : 0..1
    rng : source of all randomness
    """
    kinds = rng.choice(list(MORPHOLOGIES), n_galaxies, p=list(MORPHOLOGIES.values()))
    galaxies = [_DRAWS[kind](size, rng) for kind in kinds]
    spoilt = rng.random(n_galaxies) < artifact_share
    faults = rng.choice(ARTIFACT_KINDS, n_galaxies)
    return [
        replace(galaxy, artifact=str(fault)) if bad else galaxy
        for galaxy, bad, fault in zip(galaxies, spoilt, faults, strict=True)
    ]


def draw_smooth(size: int, rng: np.random.Generator) -> Galaxy:
    """Ellipticals and featureless S0s.

    Axis ratio normal(0.74, 0.2) within 0.22..1; Sersic index lognormal, median 3, scatter 0.35, within 1..6; half-light
    radius lognormal, median 13.5 % of the frame, scatter 0.25. A third has a featureless disk with 30 to 90 % bulge.
    """
    bulge_fraction = 1.0 if rng.random() < 0.67 else rng.uniform(0.3, 0.9)
    radius = size * _lognormal(rng, 0.135, 0.25, 0.08, 0.22)
    return replace(
        _blank(size, rng),
        morphology="smooth",
        bulge_fraction=bulge_fraction,
        sersic_index=_lognormal(rng, 3.0, 0.35, 1.0, 6.0),
        bulge_radius=radius * (1.0 if bulge_fraction == 1.0 else rng.uniform(0.3, 0.7)),
        half_light_radius=radius,
        axis_ratio=_normal(rng, 0.74, 0.2, 0.22, 1.0),
        bulge_blueness=_normal(rng, 0.05, 0.12, -0.15, 0.6),
        disk_blueness=_normal(rng, 0.2, 0.12, -0.1, 0.7),
        dust=float(rng.beta(1.2, 12)),
        disturbance=float(rng.beta(1.0, 16)),
        bulge_boxiness=float(rng.beta(1.2, 8)),
    )


def draw_disk(size: int, rng: np.random.Generator, max_inclination: float = 90.0) -> Galaxy:
    """Disks of all types and inclinations.

    With t the lateness: bulge fraction 0.6 (1 - t)^1.6 times a lognormal of scatter 0.4; pitch normal(11 + 17 t, 4)
    degrees within 5..40; flocculence and clumpiness beta about t; blueness normal(0.25 + 0.65 t, 0.12). Number of
    arms as `ARM_COUNTS`, their strength beta(2, 1.3). Bars in 60 %, of strength beta(1.4, 1.6); inner rings in 22 %,
    outer rings in 12 %, of strength beta(1.6, 2). Half-light radius lognormal, median 16.5 % of the frame, scatter
    0.2: a disk seen to 2 half-light radii fills 66 % of the frame.

    Parameters
    ----------
    size : side of the cutout, px
    rng : source of all randomness
    max_inclination : degrees; cos i is uniform from its cosine to 1
    """
    t = rng.random()
    cos_i = rng.uniform(np.cos(np.radians(max_inclination)), 1.0)
    radius = size * _lognormal(rng, 0.165, 0.2, 0.1, 0.25)
    bulge_fraction = float(np.clip(0.6 * (1 - t) ** 1.6 * rng.lognormal(0, 0.4), 0.0, 0.85))
    n_arms = int(rng.choice(list(ARM_COUNTS), p=list(ARM_COUNTS.values())))
    return replace(
        _blank(size, rng),
        morphology="disk",
        bulge_fraction=bulge_fraction,
        sersic_index=_lognormal(rng, 1.2 + 2.2 * (1 - t), 0.25, 0.8, 4.5),
        bulge_radius=radius * _lognormal(rng, 0.16 + 0.25 * bulge_fraction, 0.25, 0.06, 0.6),
        half_light_radius=radius,
        axis_ratio=float(np.sqrt(cos_i**2 * (1 - DISK_THICKNESS**2) + DISK_THICKNESS**2)),
        edge_on=float(np.exp(-((cos_i / 0.33) ** 2))),
        n_arms=n_arms,
        arm_strength=float(rng.beta(2.0, 1.3)) if n_arms else 0.0,
        pitch=_normal(rng, 11 + 17 * t, 4.0, 5.0, 40.0),
        flocculence=float(rng.beta(0.5 + 2.5 * t, 2.5)),
        clumpiness=float(rng.beta(0.6 + 2.2 * t, 3.0)),
        dust=float(rng.beta(1.5, 3.0)),
        bar_strength=float(rng.beta(1.4, 1.6)) if rng.random() < 0.6 else 0.0,
        bar_length=radius * rng.uniform(0.45, 0.85),
        inner_ring=float(rng.beta(1.6, 2.0)) if rng.random() < 0.22 else 0.0,
        outer_ring=float(rng.beta(1.6, 2.0)) if rng.random() < 0.12 else 0.0,
        disturbance=float(rng.beta(1.0, 9.0)),
        bulge_boxiness=float(rng.beta(1.0, 3.0)),
        bulge_blueness=_normal(rng, 0.05 + 0.3 * t, 0.1, -0.1, 0.8),
        disk_blueness=_normal(rng, 0.25 + 0.65 * t, 0.12, 0.0, 1.15),
    )


def draw_irregular(size: int, rng: np.random.Generator) -> Galaxy:
    """Magellanic irregulars: a late disk within 75 degrees without bulge and arms, lopsided, clumpy and blue."""
    disk = draw_disk(size, rng, max_inclination=75.0)
    return replace(
        disk,
        morphology="irregular",
        bulge_fraction=float(rng.beta(1.0, 25.0)),
        n_arms=0,
        arm_strength=0.0,
        flocculence=float(rng.beta(4.0, 2.0)),
        clumpiness=float(rng.beta(3.0, 2.0)),
        bar_strength=float(rng.beta(1.0, 2.5)),
        inner_ring=0.0,
        outer_ring=0.0,
        disturbance=float(rng.beta(3.0, 3.0)),
        disk_blueness=_normal(rng, 0.95, 0.12, 0.6, 1.25),
        snr=disk.snr * 0.8,
    )


def draw_merger(size: int, rng: np.random.Generator) -> Galaxy:
    """A disk (two thirds) or a smooth galaxy, disturbed, with a companion of 0.15 to 1 times its flux."""
    galaxy = draw_disk(size, rng, max_inclination=80.0) if rng.random() < 0.67 else draw_smooth(size, rng)
    return replace(
        galaxy,
        morphology="merger",
        half_light_radius=galaxy.half_light_radius * 0.75,
        bulge_radius=galaxy.bulge_radius * 0.75,
        bar_length=galaxy.bar_length * 0.75,
        arm_strength=galaxy.arm_strength * 0.6,
        disturbance=0.35 + 0.65 * float(rng.beta(1.5, 1.5)),
        companion=rng.uniform(0.15, 1.0),
    )


_DRAWS: Mapping[str, Callable[[int, np.random.Generator], Galaxy]] = {
    "smooth": draw_smooth,
    "disk": draw_disk,
    "irregular": draw_irregular,
    "merger": draw_merger,
}


def _blank(size: int, rng: np.random.Generator) -> Galaxy:
    """A galaxy without features: what all kinds have in common."""
    common: dict[str, Any] = dict.fromkeys((field.name for field in fields(Galaxy)), 0.0)
    return Galaxy(
        **common
        | {
            "axis_ratio": 1.0,
            "sersic_index": 1.0,
            "n_arms": 0,
            "pitch": 20.0,
            "winding": int(rng.choice((-1, 1))),
            "position_angle": rng.uniform(0, 180),
            "arm_angle": rng.uniform(0, 360),
            "bar_angle": rng.uniform(0, 180),
            "bar_length": 0.05 * size,
            "snr": _lognormal(rng, 11.0, 0.5, 3.0, 45.0),
            "psf_fwhm": size * _lognormal(rng, 0.016, 0.2, 0.009, 0.03),
            "artifact": "",
            "rare_class": "",
        }
    )


def _lognormal(rng: np.random.Generator, median: float, scatter: float, low: float, high: float) -> float:
    """Lognormal clipped to low..high; scatter in natural logarithm."""
    return float(np.clip(median * rng.lognormal(0.0, scatter), low, high))


def _normal(rng: np.random.Generator, mean: float, scatter: float, low: float, high: float) -> float:
    """Normal variate within low..high, folded back at the ends so that none pile up there."""
    value = rng.normal(mean, scatter)
    value = 2 * low - value if value < low else 2 * high - value if value > high else value
    return float(np.clip(value, low, high))
