"""Rare classes that a ring makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rarezoo.data.simulate import components
from rarezoo.data.simulate.components import smoothstep
from rarezoo.data.simulate.paint import (
    add_knots,
    paint_bar,
    paint_bulge,
    paint_disk,
)
from rarezoo.data.simulate.population import Galaxy
from rarezoo.data.simulate.rare.base import RareClass
from rarezoo.data.simulate.render import Canvas, colour, plane


def _collisional_ring(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.12, 0.28),
        "bulge_radius": 0.16 * disk.half_light_radius,
        "bulge_blueness": rng.uniform(-0.1, 0.25),
        "disk_blueness": rng.uniform(0.75, 1.15),
        "clumpiness": rng.uniform(0.5, 1.0),
        "outer_ring": rng.uniform(0.8, 1.0),
        "disturbance": rng.uniform(0.2, 0.5),
    }


def _paint_collisional_ring(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A knotty blue ring, brighter on one side, a nucleus off its centre, and spokes between them."""
    ring_radius = galaxy.half_light_radius * rng.uniform(1.5, 1.95)
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    flux = (1 - galaxy.bulge_fraction) * galaxy.total_flux
    bright_side = rng.uniform(0, 2 * np.pi)
    lit = 1 + np.float32(0.45) * np.cos(disk.azimuth - np.float32(bright_side))
    width = rng.uniform(0.08, 0.15) * ring_radius
    ring = components.ring_profile(disk.radius, ring_radius, width) / galaxy.axis_ratio * lit
    canvas.add(ring, 0.65 * flux, colour(galaxy.disk_blueness))
    inside = disk.radius / ring_radius
    spokes = np.zeros_like(inside)
    for spoke in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))):
        curved = disk.azimuth - np.float32(spoke) + np.float32(rng.normal(0, 0.6)) * inside
        spokes += np.float32(rng.uniform(0.3, 1.0)) * np.exp(12 * (np.cos(curved) - 1))
    spokes *= np.exp(-inside) * smoothstep(1 - inside, 0, 0.3) * smoothstep(inside, 0.05, 0.4)
    canvas.add(spokes / spokes.sum(), 0.18 * flux, colour(galaxy.disk_blueness - 0.3))
    n = int(rng.integers(14, 30))
    azimuth = np.where(rng.random(n) < 0.6, bright_side + rng.normal(0, 0.8, n), rng.uniform(0, 2 * np.pi, n))
    places = disk.to_frame(ring_radius * rng.normal(1, 0.06, n), azimuth)
    add_knots(canvas, places, 0.07 * galaxy.half_light_radius, 0.25 * galaxy.clumpiness * flux, rng)
    x, y = disk.to_frame(ring_radius * rng.uniform(0.25, 0.5), rng.uniform(0, 2 * np.pi))
    paint_bulge(canvas, galaxy, (float(x), float(y)))


COLLISIONAL_RING = RareClass(
    looks="knotty blue ring with spokes, nucleus off its centre",
    max_inclination=60,
    changes=_collisional_ring,
    paint=_paint_collisional_ring,
)


def _polar_ring(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.55, 0.8),
        "bulge_radius": 0.5 * disk.half_light_radius,
        "half_light_radius": 0.75 * disk.half_light_radius,
        "sersic_index": rng.uniform(1.8, 3.2),
        "axis_ratio": rng.uniform(0.45, 0.7),
        "bulge_blueness": rng.uniform(-0.1, 0.2),
        "disk_blueness": rng.uniform(0.1, 0.3),
        "edge_on": 0.05,
        "bulge_boxiness": 0.0,
        "outer_ring": rng.uniform(0.75, 1.0),
        "disturbance": rng.uniform(0.1, 0.4),
    }


def _paint_polar_ring(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A yellow lens-like body, and a narrow blue ring seen almost from its edge, across the body."""
    paint_bulge(canvas, galaxy)
    paint_disk(canvas, replace(galaxy, outer_ring=0.0), rng)
    radius, tilt = galaxy.half_light_radius * rng.uniform(1.9, 2.6), rng.uniform(0.1, 0.3)
    ring = plane(canvas, (0, 0), galaxy.position_angle + 90 + rng.normal(0, 12), tilt)
    light = components.ring_profile(ring.radius, radius, rng.uniform(0.12, 0.25) * radius) / np.float32(tilt)
    flux = galaxy.total_flux * rng.uniform(0.35, 0.7)
    blueness = rng.uniform(0.8, 1.2)
    canvas.add(light, 0.8 * flux, colour(blueness))
    n = int(rng.integers(8, 20))
    places = ring.to_frame(radius * rng.normal(1, 0.06, n), rng.uniform(0, 2 * np.pi, n))
    add_knots(canvas, places, 0.06 * galaxy.half_light_radius, 0.2 * flux, rng)


POLAR_RING = RareClass(
    looks="narrow blue ring across a yellow lenticular",
    max_inclination=60,
    changes=_polar_ring,
    paint=_paint_polar_ring,
)


def _detached_ring(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.35, 0.6),
        "bulge_radius": disk.half_light_radius * rng.uniform(0.2, 0.32),
        "sersic_index": rng.uniform(1.5, 3.0),
        "bulge_blueness": rng.uniform(-0.15, 0.1),
        "disk_blueness": rng.uniform(0.8, 1.15),
        "clumpiness": rng.uniform(0.1, 0.6),
        "outer_ring": rng.uniform(0.85, 1.0),
        "bulge_boxiness": 0.0,
    }


def _paint_detached_ring(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A round yellow core, nothing, and a blue ring around both: Hoag's object."""
    paint_bulge(canvas, galaxy)
    radius = galaxy.half_light_radius * rng.uniform(1.45, 1.95)
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    light = components.ring_profile(disk.radius, radius, rng.uniform(0.09, 0.17) * radius) / galaxy.axis_ratio
    patches = components.flocculent_pattern(disk.radius, disk.azimuth, galaxy.winding * 15.0, rng)
    light *= 1 + 0.35 * np.cos(disk.azimuth - np.float32(rng.uniform(0, 2 * np.pi))) + 0.22 * patches
    flux = (1 - galaxy.bulge_fraction) * galaxy.total_flux
    canvas.add(light, flux * (1 - 0.25 * galaxy.clumpiness), colour(galaxy.disk_blueness))
    n = int(rng.integers(15, 35))
    places = disk.to_frame(radius * rng.normal(1, 0.06, n), rng.uniform(0, 2 * np.pi, n))
    add_knots(canvas, places, 0.05 * galaxy.half_light_radius, 0.25 * galaxy.clumpiness * flux, rng)


DETACHED_RING = RareClass(
    looks="round yellow core, gap, blue ring",
    max_inclination=40,
    changes=_detached_ring,
    paint=_paint_detached_ring,
)


def _theta_ring(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.12, 0.25),
        "bulge_radius": 0.18 * disk.half_light_radius,
        "bar_strength": rng.uniform(0.85, 1.0),
        "bar_length": disk.half_light_radius * rng.uniform(1.1, 1.45),
        "inner_ring": rng.uniform(0.9, 1.0),
        "clumpiness": 0.4 * disk.clumpiness,
        "bulge_blueness": rng.uniform(-0.1, 0.2),
    }


def _paint_theta_ring(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A straight bar that spans a bright closed ring, with hardly a disk between: the letter theta."""
    flux = (1 - galaxy.bulge_fraction) * galaxy.total_flux
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    faint = components.exponential_disk(disk.radius, galaxy.half_light_radius) / np.float32(galaxy.axis_ratio)
    canvas.add(faint, 0.27 * flux, colour(galaxy.disk_blueness))
    width = rng.uniform(0.08, 0.13) * galaxy.bar_length
    ring = components.ring_profile(disk.radius, galaxy.bar_length, width) / galaxy.axis_ratio
    patches = components.flocculent_pattern(disk.radius, disk.azimuth, galaxy.winding * 12.0, rng)
    ring *= 1 + np.float32(0.1 + 0.5 * galaxy.clumpiness) * patches
    canvas.add(ring, 0.43 * flux, colour(galaxy.disk_blueness + 0.1))
    paint_bar(canvas, galaxy, 0.3 * flux)
    paint_bulge(canvas, galaxy)


THETA_RING = RareClass(
    looks="bar that spans a closed bright ring",
    max_inclination=55,
    changes=_theta_ring,
    paint=_paint_theta_ring,
)


def _one_armed_ring(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "n_arms": 1,
        "arm_strength": rng.uniform(0.6, 1.0),
        "pitch": rng.uniform(8, 17),
        "inner_ring": rng.uniform(0.5, 1.0),
        "bar_length": 0.62 * disk.half_light_radius,
        "bulge_fraction": rng.uniform(0.05, 0.4),
        "bulge_radius": 0.15 * disk.half_light_radius,
        "clumpiness": 0.6 * disk.clumpiness,
        "disturbance": rng.uniform(0.05, 0.2),
    }


def _paint_one_armed_ring(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """One arm that leaves a closed inner ring and winds once around it, and no other."""
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    flux = (1 - galaxy.bulge_fraction) * galaxy.total_flux
    faint = components.exponential_disk(disk.radius, galaxy.half_light_radius) / np.float32(galaxy.axis_ratio)
    canvas.add(faint, 0.25 * flux, colour(galaxy.disk_blueness - 0.1))
    ring = components.ring_profile(disk.radius, galaxy.bar_length, 0.14 * galaxy.bar_length) / galaxy.axis_ratio
    canvas.add(ring, 0.3 * flux, colour(galaxy.disk_blueness))
    turns = np.linspace(0, rng.uniform(1.0, 1.35), 60)
    azimuth = np.radians(galaxy.arm_angle) + galaxy.winding * 2 * np.pi * turns
    radius = galaxy.bar_length * np.exp(2 * np.pi * turns * np.tan(np.radians(galaxy.pitch)))
    x, y = disk.to_frame(radius, azimuth)
    shares = radius * np.exp(-0.5 * turns)
    width = 0.1 * galaxy.half_light_radius * (1 + 0.6 * turns)
    light = components.knots(canvas.size, x, y, width, shares / shares.sum())
    canvas.add(light, 0.45 * flux, colour(galaxy.disk_blueness + 0.2))
    chosen = rng.choice(turns.size, 12, replace=False)
    add_knots(canvas, (x[chosen], y[chosen]), 0.05 * galaxy.half_light_radius, 0.1 * galaxy.clumpiness * flux, rng)
    paint_bulge(canvas, galaxy)


ONE_ARMED_RING = RareClass(
    looks="single arm around a closed inner ring",
    max_inclination=55,
    changes=_one_armed_ring,
    paint=_paint_one_armed_ring,
)
