"""Rare classes that a neighbour, a wind or a pipeline makes: torn, doubled, clumpy or cut apart."""

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
    paint_galaxy,
    paint_knots,
    paint_tail,
)
from rarezoo.data.simulate.population import Galaxy
from rarezoo.data.simulate.rare.base import RareClass
from rarezoo.data.simulate.render import Canvas, colour, plane

_GREEN = np.array([0.58, 1.5, 0.92], dtype=np.float32)


def _green_cloud(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "n_arms": 2,
        "arm_strength": rng.uniform(0.5, 0.9),
        "pitch": rng.uniform(10, 28),
        "half_light_radius": 0.8 * disk.half_light_radius,
        "bulge_radius": 0.8 * disk.bulge_radius,
        "disturbance": rng.uniform(0.1, 0.3),
        "dust": disk.dust,
    }


def _paint_green_cloud(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A spiral, and beside it a ragged cloud that shines green in ionised oxygen (Lintott et al. 2009)."""
    paint_galaxy(canvas, galaxy, rng)
    distance = galaxy.half_light_radius * rng.uniform(1.9, 2.5)
    azimuth = rng.uniform(0, 2 * np.pi)
    extent = galaxy.half_light_radius * rng.uniform(0.3, 0.6)
    centre = (distance * np.cos(azimuth), distance * np.sin(azimuth))
    cloud = plane(canvas, centre, rng.uniform(0, 180), rng.uniform(0.5, 0.9))
    ragged = 1 + 0.55 * components.rough_texture(cloud.along, cloud.across, 1.3 * extent, rng)
    light = np.exp(-0.5 * (cloud.radius / extent) ** 2.5) * np.maximum(ragged, 0)
    canvas.add(light / light.sum(), galaxy.total_flux * rng.uniform(0.14, 0.4), _GREEN)


GREEN_CLOUD = RareClass(
    looks="spiral beside a ragged green ionised cloud",
    max_inclination=60,
    changes=_green_cloud,
    paint=_paint_green_cloud,
)


def _jellyfish(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.05, 0.25),
        "half_light_radius": 0.66 * disk.half_light_radius,
        "bulge_radius": 0.5 * disk.bulge_radius,
        "disk_blueness": rng.uniform(0.6, 1.0),
        "clumpiness": rng.uniform(0.5, 0.9),
        "flocculence": rng.uniform(0.4, 0.9),
        "disturbance": rng.uniform(0.5, 0.9),
        "snr": 1.5 * disk.snr,
    }


def _paint_jellyfish(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A disk cut off sharply on its leading side, and ragged blue streamers with knots behind it."""
    wind = rng.uniform(0, 2 * np.pi)
    ahead = np.array([-np.cos(wind), -np.sin(wind)])
    size = galaxy.half_light_radius
    centre = 0.9 * size * ahead
    smooth = replace(galaxy, disturbance=0.0)
    paint_disk(canvas, smooth, rng, (float(centre[0]), float(centre[1])))
    wind_frame = plane(canvas, (float(centre[0]), float(centre[1])), float(np.degrees(wind)), 1.0)
    # The wind strips a bow-shaped front.
    upstream = -wind_frame.along + 0.3 * wind_frame.across**2 / np.float32(size)
    canvas.flux *= 1 - smoothstep(upstream, 0.5 * size, 1.1 * size)
    diffuse = np.exp(-0.5 * (wind_frame.across / (0.75 * size)) ** 2 - np.maximum(wind_frame.along, 0) / (1.3 * size))
    diffuse *= smoothstep(wind_frame.along, -0.2 * size, 0.8 * size)
    canvas.add(diffuse / diffuse.sum(), 0.35 * galaxy.total_flux, colour(1.0))
    paint_bulge(canvas, galaxy, (float(centre[0]), float(centre[1])))
    for offset in rng.uniform(-0.95, 0.95, int(rng.integers(4, 9))) * size:
        _paint_streamer(canvas, galaxy, centre, ahead, offset, rng)


def _paint_streamer(
    canvas: Canvas, galaxy: Galaxy, centre: np.ndarray, ahead: np.ndarray, offset: float, rng: np.random.Generator
) -> None:
    """One ragged tail against the direction `ahead`, beginning `offset` px beside the centre."""
    size = galaxy.half_light_radius
    t = np.sort(rng.uniform(0, 1, 40))
    behind = rng.uniform(0.0, 0.7) * size + size * rng.uniform(1.2, 4.4) * t
    drift = offset * (1 + 0.3 * t) + np.cumsum(rng.normal(0, 0.05, t.size)) * size
    x = centre[0] - ahead[0] * behind - ahead[1] * drift
    y = centre[1] - ahead[1] * behind + ahead[0] * drift
    shares = np.exp(-1.4 * t) * rng.uniform(0.3, 1.7, t.size)
    width = size * (0.08 + 0.2 * t)
    flux = 0.13 * galaxy.total_flux * rng.uniform(0.5, 1.5)
    canvas.add(components.knots(canvas.size, x, y, width, shares / shares.sum()), flux, colour(1.1))
    add_knots(canvas, (x[::7], y[::7]), 0.05 * size, 0.2 * flux, rng)


JELLYFISH = RareClass(
    looks="disk with ragged blue tails on one side",
    max_inclination=60,
    changes=_jellyfish,
    paint=_paint_jellyfish,
)


def _tadpole(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "morphology": "irregular",
        "half_light_radius": 0.78 * disk.half_light_radius,
        "bulge_fraction": 0.0,
        "edge_on": 0.0,
        "clumpiness": rng.uniform(0.6, 1.0),
        "disturbance": rng.uniform(0.4, 0.8),
        "disk_blueness": rng.uniform(0.8, 1.2),
    }


def _paint_tadpole(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A bright blue head and one long, thinning, curved tail with knots."""
    size = galaxy.half_light_radius
    direction = rng.uniform(0, 2 * np.pi)
    length = size * rng.uniform(3.2, 4.8)
    bend = rng.uniform(-1.2, 1.2)
    t = np.linspace(0, 1, 40)
    heading = direction + bend * (t - 0.5)
    step = length / t.size
    x, y = np.cumsum(np.cos(heading)) * step, np.cumsum(np.sin(heading)) * step
    x, y = x - 0.5 * x[-1], y - 0.5 * y[-1]
    head = plane(canvas, (x[0], y[0]), float(np.degrees(direction)), rng.uniform(0.55, 0.85))
    light = components.sersic(np.maximum(head.radius, 0.33), 0.32 * size, 0.8) / np.float32(head.axis_ratio)
    canvas.add(light, 0.45 * galaxy.total_flux, colour(galaxy.disk_blueness))
    x[1:] += rng.normal(0, 0.07, t.size - 1) * size
    y[1:] += rng.normal(0, 0.07, t.size - 1) * size
    shares = (1 - 0.8 * t) * rng.lognormal(0, 0.7, t.size)
    width = 0.2 * size * (1 - 0.5 * t) * rng.uniform(0.7, 1.3, t.size)
    canvas.add(components.knots(canvas.size, x, y, width, shares / shares.sum()), 0.5 * galaxy.total_flux, colour(0.8))
    chosen = rng.choice(t.size, 6, replace=False)
    add_knots(canvas, (x[chosen], y[chosen]), 0.06 * size, 0.12 * galaxy.clumpiness * galaxy.total_flux, rng)


TADPOLE = RareClass(
    looks="bright blue head with one long curved tail",
    max_inclination=60,
    changes=_tadpole,
    paint=_paint_tadpole,
)


def _double_nucleus(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": rng.uniform(0.2, 0.45),
        "bulge_radius": disk.half_light_radius * rng.uniform(0.1, 0.15),
        "sersic_index": rng.uniform(1.2, 2.2),
        "bulge_blueness": rng.uniform(-0.1, 0.3),
        "disturbance": rng.uniform(0.1, 0.45),
        "flocculence": rng.uniform(0.4, 0.8),
        "clumpiness": rng.uniform(0.2, 0.5),
        "dust": rng.uniform(0.3, 0.7),
    }


def _paint_double_nucleus(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """Two bright yellow nuclei in one disturbed disk."""
    paint_disk(canvas, galaxy, rng)
    angle = rng.uniform(0, 2 * np.pi)
    apart = 0.5 * galaxy.half_light_radius * rng.uniform(0.6, 1.0)
    share = rng.uniform(0.4, 0.6)
    for side, part in ((1, share), (-1, 1 - share)):
        nucleus = replace(galaxy, bulge_fraction=galaxy.bulge_fraction * part)
        paint_bulge(canvas, nucleus, (side * apart * float(np.cos(angle)), side * apart * float(np.sin(angle))))
    for start in (angle, angle + np.pi):
        radii = (galaxy.half_light_radius, galaxy.half_light_radius * rng.uniform(2.0, 2.8))
        width, flux = 0.15 * galaxy.half_light_radius, 0.06 * galaxy.total_flux
        paint_tail(canvas, (0, 0), (start, rng.uniform(1.0, 2.0)), radii, width, flux, galaxy.disk_blueness, rng)


DOUBLE_NUCLEUS = RareClass(
    looks="two yellow nuclei in a disturbed disk",
    max_inclination=50,
    changes=_double_nucleus,
    paint=_paint_double_nucleus,
)


def _companion_on_arm(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "n_arms": 2,
        "arm_strength": rng.uniform(0.85, 1.0),
        "pitch": rng.uniform(17, 26),
        "half_light_radius": 0.85 * disk.half_light_radius,
        "bulge_fraction": rng.uniform(0.06, 0.2),
        "bulge_radius": 0.15 * disk.half_light_radius,
        "disk_blueness": rng.uniform(0.5, 0.95),
        "clumpiness": rng.uniform(0.2, 0.6),
        "dust": rng.uniform(0.2, 0.6),
        "companion": rng.uniform(0.2, 0.35),
    }


def _paint_companion_on_arm(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A grand-design spiral, one of whose two arms ends at a compact yellow companion: M51."""
    reach = 2.15 * galaxy.half_light_radius
    paint_galaxy(canvas, replace(galaxy, companion=0.0), rng)
    wound = np.log(reach / (0.5 * galaxy.half_light_radius)) / np.tan(np.radians(galaxy.winding * galaxy.pitch))
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    x, y = disk.to_frame(reach, np.radians(galaxy.arm_angle) + wound)
    body = replace(
        galaxy,
        morphology="smooth",
        bulge_fraction=galaxy.companion,
        bulge_radius=0.2 * galaxy.half_light_radius,
        sersic_index=1.6,
        axis_ratio=rng.uniform(0.65, 1.0),
        bulge_blueness=rng.uniform(-0.15, 0.2),
        bulge_boxiness=0.0,
    )
    paint_bulge(canvas, body, (float(x), float(y)))


COMPANION_ON_ARM = RareClass(
    looks="grand-design spiral with a companion at an arm's end",
    max_inclination=50,
    changes=_companion_on_arm,
    paint=_paint_companion_on_arm,
)


def _shredded_spiral(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    scale = rng.uniform(1.9, 2.5)
    return {
        "n_arms": int(rng.integers(2, 5)),
        "arm_strength": rng.uniform(0.7, 1.0),
        "pitch": rng.uniform(14, 28),
        "flocculence": rng.uniform(0.3, 0.7),
        "clumpiness": rng.uniform(0.8, 1.0),
        "half_light_radius": scale * disk.half_light_radius,
        "bulge_radius": scale * disk.bulge_radius,
        "bulge_fraction": min(disk.bulge_fraction, 0.2),
        "bar_length": scale * disk.bar_length,
        "disk_blueness": rng.uniform(0.6, 1.0),
        "snr": 0.85 * disk.snr,
    }


def _paint_shredded_spiral(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """The frame is centred on one bright clump of a spiral that is far larger than the frame."""
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    azimuth = rng.uniform(0, 2 * np.pi)
    x, y = disk.to_frame(galaxy.half_light_radius * rng.uniform(0.8, 1.3), azimuth)
    centre = (-float(x), -float(y))
    paint_galaxy(canvas, galaxy, rng, centre)
    shifted = plane(canvas, centre, galaxy.position_angle, galaxy.axis_ratio)
    paint_knots(canvas, shifted, galaxy, rng, 0.12 * galaxy.total_flux)
    n = int(rng.integers(5, 10))
    places = rng.normal(0, 0.05, (2, n)) * galaxy.half_light_radius
    add_knots(canvas, (places[0], places[1]), 0.03 * galaxy.half_light_radius, 0.04 * galaxy.total_flux, rng, 1.2)


SHREDDED_SPIRAL = RareClass(
    looks="frame centred on a clump of a clumpy spiral larger than it",
    max_inclination=60,
    changes=_shredded_spiral,
    paint=_paint_shredded_spiral,
)


def _barred_clumpy_irregular(disk: Galaxy, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "bulge_fraction": 0.3 * disk.bulge_fraction,
        "bulge_radius": 0.1 * disk.half_light_radius,
        "bar_strength": rng.uniform(0.6, 1.0),
        "bar_length": disk.half_light_radius * rng.uniform(0.8, 1.1),
        "flocculence": rng.uniform(0.7, 1.0),
        "clumpiness": rng.uniform(0.8, 1.0),
        "disturbance": rng.uniform(0.1, 0.45),
        "disk_blueness": rng.uniform(0.8, 1.15),
        "bulge_blueness": rng.uniform(0.4, 0.7),
    }


def _paint_barred_clumpy_irregular(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """A dominant bar beside the centre of a torn, clumpy blue disk with one stubby arm, as low-mass galaxies have."""
    size = galaxy.half_light_radius
    off = rng.uniform(0.25, 0.5) * size
    away = rng.uniform(0, 2 * np.pi)
    centre = (off * float(np.cos(away)), off * float(np.sin(away)))
    paint_disk(canvas, replace(galaxy, bar_strength=0.0), rng, centre)
    paint_bar(canvas, galaxy, 0.5 * galaxy.total_flux)
    paint_bulge(canvas, galaxy)
    end = np.radians(galaxy.bar_angle)
    turns = np.linspace(0, 1, 12)
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    radius, azimuth = galaxy.bar_length * (1 + 0.5 * turns), end + galaxy.winding * 1.6 * turns
    places = disk.to_frame(radius + rng.normal(0, 0.06 * size, turns.size), azimuth + rng.normal(0, 0.08, turns.size))
    add_knots(canvas, places, 0.08 * size, 0.16 * galaxy.total_flux, rng)


BARRED_CLUMPY_IRREGULAR = RareClass(
    looks="dominant bar in a torn, clumpy, lopsided blue disk",
    max_inclination=55,
    changes=_barred_clumpy_irregular,
    paint=_paint_barred_clumpy_irregular,
)
