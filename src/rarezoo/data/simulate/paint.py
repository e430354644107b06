"""How a galaxy's parameters become light: bulge, disk, arms, bar, rings, knots, dust, tails, and the field around."""

from __future__ import annotations

import numpy as np

from rarezoo.data.simulate import components
from rarezoo.data.simulate.components import Light
from rarezoo.data.simulate.population import DISK_THICKNESS, Galaxy
from rarezoo.data.simulate.render import Canvas, Plane, colour, plane

KNOT_BLUENESS = 1.45
Point = tuple[float, float]


def paint_galaxy(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator, centre: Point = (0.0, 0.0)) -> None:
    """Add a galaxy of the broad population to the frame.

    Parameters
    ----------
    canvas : frame, changed in place
    galaxy : what to paint
    rng : source of the places of knots, patches, tails and companion
    centre : (x, y) from the frame's centre, px
    """
    if galaxy.companion > 0:
        paint_companion(canvas, galaxy, rng)
    if galaxy.bulge_fraction < 1:
        paint_disk(canvas, galaxy, rng, centre)
    paint_bulge(canvas, galaxy, centre)
    if galaxy.disturbance > 0.2:
        paint_tails(canvas, galaxy, rng, centre)
    paint_dust(canvas, galaxy, rng, centre)


def paint_bulge(canvas: Canvas, galaxy: Galaxy, centre: Point = (0.0, 0.0)) -> None:
    """Add the spheroid: rounder than the disk it sits in, and of the galaxy's own shape where it is smooth."""
    if galaxy.bulge_fraction <= 0:
        return
    has_disk = galaxy.bulge_fraction < 1 and galaxy.morphology != "smooth"
    axis_ratio = 1 - 0.6 * (1 - galaxy.axis_ratio) if has_disk else galaxy.axis_ratio
    sky = plane(canvas, centre, galaxy.position_angle, axis_ratio)
    radius = components.boxy_radius(sky.along, sky.across, axis_ratio, galaxy.bulge_boxiness)
    # No pixel is nearer to the centre than a third of its width: the pixel's mean, not the cusp.
    light = components.sersic(np.maximum(radius, 0.33), galaxy.bulge_radius, galaxy.sersic_index)
    light *= np.float32(np.pi / components.boxy_area(galaxy.bulge_boxiness) / axis_ratio)
    canvas.add(light, galaxy.bulge_fraction * galaxy.total_flux, colour(galaxy.bulge_blueness))


def paint_disk(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator, centre: Point = (0.0, 0.0)) -> None:
    """Add the disk with its arms, bar, rings and knots."""
    disk = plane(canvas, centre, galaxy.position_angle, galaxy.axis_ratio)
    radius = lopsided_radius(disk, galaxy, rng)
    smooth, young = disk_light(disk, radius, galaxy, rng)
    flux = (1 - galaxy.bulge_fraction) * galaxy.total_flux
    bar, inner, outer = 0.25 * galaxy.bar_strength, 0.2 * galaxy.inner_ring, 0.22 * galaxy.outer_ring
    in_knots = 0.22 * galaxy.clumpiness
    remaining = flux * (1 - bar - inner - outer - in_knots)
    in_arms = 0.0 if young is None else 0.55 * max(galaxy.arm_strength, 0.5 * galaxy.flocculence)
    canvas.add(smooth, remaining * (1 - in_arms), colour(galaxy.disk_blueness - 0.15))
    if young is not None:
        canvas.add(young, remaining * in_arms, colour(galaxy.disk_blueness + 0.2))
    if bar > 0:
        paint_bar(canvas, galaxy, bar * flux, centre)
    paint_ring(canvas, disk, radius, galaxy, rng, inner * flux, 1.05)
    paint_ring(canvas, disk, radius, galaxy, rng, outer * flux, 2.3)
    paint_knots(canvas, disk, galaxy, rng, in_knots * flux)


def lopsided_radius(disk: Plane, galaxy: Galaxy, rng: np.random.Generator) -> Light:
    """Radius in the disk's plane, stretched to one side as far as the galaxy is disturbed."""
    if galaxy.disturbance < 0.05:
        return disk.radius
    towards = np.float32(rng.uniform(0, 2 * np.pi))
    twice = np.float32(rng.uniform(0, 2 * np.pi))
    d = np.float32(galaxy.disturbance)
    stretch: Light = 1 + 0.3 * d * np.cos(disk.azimuth - towards) + 0.15 * d * np.cos(2 * disk.azimuth - twice)
    return disk.radius * stretch


def disk_light(disk: Plane, radius: Light, galaxy: Galaxy, rng: np.random.Generator) -> tuple[Light, Light | None]:
    """Unit-flux light of the disk's old stars and of its arms; no arms where there is neither arm nor flocculence."""
    half_light, edge_on = galaxy.half_light_radius, np.float32(galaxy.edge_on)
    thin = components.exponential_disk(radius, half_light) / np.float32(galaxy.axis_ratio)
    thin *= 1 - components.smoothstep(radius, 2.4 * half_light, 3.6 * half_light)
    smooth = thin
    if galaxy.edge_on > 0.4:
        height = components.edge_on_disk(disk.along, disk.across, half_light, DISK_THICKNESS * half_light)
        smooth = thin * (1 - edge_on) + edge_on * height
    if galaxy.edge_on > 0.9 or (galaxy.n_arms == 0 and galaxy.flocculence < 0.1):
        return smooth, None
    pattern = arm_pattern(disk, radius, galaxy, rng)
    # The arms' own disk is wider and hollow inside: young stars lie further out.
    young = components.exponential_disk(radius, 1.25 * half_light) * pattern
    young *= components.smoothstep(radius, 0.1 * half_light, 0.9 * half_light)
    young *= 1 - components.smoothstep(radius, 2.2 * half_light, 3.2 * half_light)
    # The frame holds the same share of the arms as of the disk, also where it cuts the galaxy.
    return smooth, young * (smooth.sum() / max(float(young.sum()), 1e-9))


def arm_pattern(disk: Plane, radius: Light, galaxy: Galaxy, rng: np.random.Generator) -> Light:
    """Arms as strong and as torn as the galaxy's are; positive."""
    signed_pitch = galaxy.winding * galaxy.pitch
    patches = components.flocculent_pattern(radius, disk.azimuth, galaxy.winding * max(galaxy.pitch, 14.0), rng)
    torn = np.float32(galaxy.flocculence)
    if galaxy.n_arms == 0:
        patchy: Light = np.maximum(1 + 0.9 * patches, 0) * torn + (1 - torn)
        return patchy
    anchor = arm_anchor(galaxy)
    arms = components.spiral_arms(radius, disk.azimuth, galaxy.n_arms, signed_pitch, anchor, 3.0)
    # Real arms are not alike: one side is brighter.
    lit = 1 + np.float32(0.3) * np.cos(disk.azimuth - np.float32(rng.uniform(0, 2 * np.pi)))
    strength = np.float32(galaxy.arm_strength)
    background = np.maximum(1 + 0.9 * patches, 0) * torn + 0.3 * (1 - torn)
    patchy_arms = arms * lit * np.maximum(1 + 0.55 * torn * patches, 0.1)
    pattern: Light = strength * patchy_arms + (1 - strength) * 0.6 * background
    return pattern


def arm_anchor(galaxy: Galaxy) -> Point:
    """Radius (px) and azimuth (radians) where the first arm begins: at the bar's end where there is a bar."""
    if galaxy.bar_strength > 0.25:
        return galaxy.bar_length, float(np.radians(galaxy.bar_angle))
    return 0.5 * galaxy.half_light_radius, float(np.radians(galaxy.arm_angle))


def paint_bar(canvas: Canvas, galaxy: Galaxy, flux: float, centre: Point = (0.0, 0.0)) -> None:
    """Add the bar, in the disk's plane."""
    disk = plane(canvas, centre, galaxy.position_angle, galaxy.axis_ratio)
    angle = np.radians(galaxy.bar_angle)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across_plane = disk.across / np.float32(galaxy.axis_ratio)
    along = disk.along * cos + across_plane * sin
    across = across_plane * cos - disk.along * sin
    thickness = 0.42 - 0.2 * galaxy.bar_strength
    light = components.bar_profile(along, across, 1.15 * galaxy.bar_length, thickness) / np.float32(galaxy.axis_ratio)
    canvas.add(light, flux, colour(0.6 * galaxy.bulge_blueness + 0.4 * galaxy.disk_blueness - 0.1))


def paint_ring(
    canvas: Canvas, disk: Plane, radius: Light, galaxy: Galaxy, rng: np.random.Generator, flux: float, at: float
) -> None:
    """Add a ring in the disk's plane at `at` times the bar's length, patchy where the galaxy is clumpy."""
    if flux <= 0:
        return
    ring = components.ring_profile(radius, at * galaxy.bar_length, 0.1 * at * galaxy.bar_length) / galaxy.axis_ratio
    phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    waves = np.cos(2 * disk.azimuth + phase[0]) + np.cos(5 * disk.azimuth + phase[1])
    light = ring * (1 + np.float32(0.3 * galaxy.clumpiness) * waves)
    canvas.add(light, flux, colour(galaxy.disk_blueness + 0.1))


def paint_knots(canvas: Canvas, disk: Plane, galaxy: Galaxy, rng: np.random.Generator, flux: float) -> None:
    """Add star-forming knots: along the arms where there are arms, else anywhere in the disk."""
    if flux <= 0:
        return
    n = int(rng.integers(30, 130))
    radius = galaxy.half_light_radius * np.clip(rng.gamma(5.0, 0.23, n), 0.2, 2.6)
    azimuth = rng.uniform(0, 2 * np.pi, n)
    if galaxy.n_arms > 0:
        first_radius, first_azimuth = arm_anchor(galaxy)
        wound = np.log(radius / first_radius) / np.tan(np.radians(galaxy.winding * galaxy.pitch))
        arm = 2 * np.pi / galaxy.n_arms * rng.integers(galaxy.n_arms, size=n)
        scatter = rng.normal(0, 0.1 + 0.7 * galaxy.flocculence + 0.5 * (1 - galaxy.arm_strength), n)
        azimuth = first_azimuth + wound + arm + scatter
    x, y = disk.to_frame(radius, azimuth)
    add_knots(canvas, (x, y), 0.045 * galaxy.half_light_radius, flux, rng)


def add_knots(
    canvas: Canvas,
    places: tuple[np.ndarray, np.ndarray],
    radius: float,
    flux: float,
    rng: np.random.Generator,
    blueness: float = KNOT_BLUENESS,
) -> None:
    """Add round knots of lognormal brightness (scatter 0.8) and size (scatter 0.3) that share `flux`."""
    n = len(places[0])
    shares = rng.lognormal(0, 0.8, n)
    radii = radius * rng.lognormal(0, 0.3, n)
    canvas.add(components.knots(canvas.size, *places, radii, shares / shares.sum()), flux, colour(blueness))


def paint_tails(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator, centre: Point = (0.0, 0.0)) -> None:
    """Add one or two broad tidal tails, brighter the more the galaxy is disturbed."""
    for _ in range(1 + int(rng.random() < galaxy.disturbance)):
        start = rng.uniform(0, 2 * np.pi)
        sweep = rng.uniform(0.5, 2.2) * rng.choice((-1, 1))
        reach = galaxy.half_light_radius * rng.uniform(1.8, 1.8 + 2 * galaxy.disturbance)
        share = 0.12 * galaxy.disturbance * rng.uniform(0.4, 1.0)
        blueness = galaxy.disk_blueness if galaxy.bulge_fraction < 1 else galaxy.bulge_blueness
        width = 0.2 * galaxy.half_light_radius
        begin = 0.8 * galaxy.half_light_radius
        paint_tail(canvas, centre, (start, sweep), (begin, reach), width, share * galaxy.total_flux, blueness, rng)


def paint_tail(
    canvas: Canvas,
    centre: Point,
    azimuths: Point,
    radii: Point,
    width: float,
    flux: float,
    blueness: float,
    rng: np.random.Generator,
) -> None:
    """Add a curved tail: a chain of overlapping soft blobs that fades and widens outwards.

    Parameters
    ----------
    canvas : frame, changed in place
    centre : of the galaxy it springs from, px from the frame's centre
    azimuths : (first, how far it sweeps), radians
    radii : (first, last) distance from the centre, px
    width : standard deviation of the first blob, px
    flux, blueness : of the whole tail
    rng : source of its raggedness
    """
    along = np.linspace(0, 1, 28)
    radius = radii[0] + (radii[1] - radii[0]) * along
    azimuth = azimuths[0] + azimuths[1] * along
    wander = rng.normal(0, 0.12 * width, (2, along.size))
    x = centre[0] + radius * np.cos(azimuth) + wander[0]
    y = centre[1] + radius * np.sin(azimuth) + wander[1]
    shares = np.exp(-1.3 * along) * rng.uniform(0.8, 1.2, along.size)
    light = components.knots(canvas.size, x, y, width * (1 + 0.7 * along), shares / shares.sum())
    canvas.add(light, flux, colour(blueness))


def paint_companion(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator) -> None:
    """Add the merging companion with a bridge of light to it."""
    distance = galaxy.half_light_radius * rng.uniform(0.8, 2.6)
    azimuth = rng.uniform(0, 2 * np.pi)
    x, y = distance * np.cos(azimuth), distance * np.sin(azimuth)
    flux = galaxy.companion * galaxy.total_flux
    radius = 0.7 * galaxy.half_light_radius * np.sqrt(galaxy.companion) + 0.02 * canvas.size
    axis_ratio = rng.uniform(0.4, 1.0)
    sky = plane(canvas, (x, y), rng.uniform(0, 180), axis_ratio)
    index, blueness = rng.uniform(1, 4), rng.uniform(0.0, 0.9)
    light = components.sersic(np.maximum(sky.radius, 0.33), radius, index) / np.float32(axis_ratio)
    canvas.add(light, flux, colour(blueness))
    bridge = 0.06 * galaxy.disturbance * galaxy.total_flux
    sweep = rng.uniform(-0.6, 0.6)
    paint_tail(
        canvas, (0, 0), (azimuth - sweep, sweep), (0.3 * distance, distance), 0.25 * radius, bridge, blueness, rng
    )


def paint_dust(canvas: Canvas, galaxy: Galaxy, rng: np.random.Generator, centre: Point = (0.0, 0.0)) -> None:
    """Dim the light: a lane across an edge-on disk, else lanes along the insides of the arms."""
    if galaxy.dust < 0.1 or galaxy.bulge_fraction >= 1:
        return
    disk = plane(canvas, centre, galaxy.position_angle, galaxy.axis_ratio)
    if galaxy.edge_on > 0.5:
        tilt = 0.25 * (1 - galaxy.edge_on) * galaxy.half_light_radius * rng.choice((-1, 1))
        thickness = 0.06 * galaxy.half_light_radius
        depth = np.exp(-0.5 * ((disk.across - tilt) / thickness) ** 2)
        depth *= np.exp(-np.abs(disk.along) / (1.2 * galaxy.half_light_radius))
        canvas.dim(np.float32(1.8 * galaxy.dust * galaxy.edge_on) * depth)
    elif galaxy.n_arms > 0 and galaxy.arm_strength > 0.2:
        first_radius, first_azimuth = arm_anchor(galaxy)
        inside = (first_radius, first_azimuth - galaxy.winding * 0.45 / galaxy.n_arms * 2)
        signed_pitch = galaxy.winding * galaxy.pitch
        depth = components.spiral_arms(disk.radius, disk.azimuth, galaxy.n_arms, signed_pitch, inside, 8.0)
        depth *= components.smoothstep(disk.radius, 0.15 * galaxy.half_light_radius, 0.6 * galaxy.half_light_radius)
        depth *= np.exp(-disk.radius / (1.2 * galaxy.half_light_radius))
        canvas.dim(np.float32(1.0 * galaxy.dust) * depth)


def paint_field(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add the faint stars and galaxies that happen to lie in the frame: 1.6 stars and 1.2 galaxies in the mean.

    Fluxes follow a power law as number counts do, N(> f) ∝ f^-1 between 30 and 4000 times the reference noise.
    """
    n_stars, n_galaxies = int(rng.poisson(1.6)), int(rng.poisson(1.2))
    area = canvas.scale**2
    for n, radius in ((n_stars, 0.0), (n_galaxies, 0.012 * canvas.size)):
        for _ in range(n):
            flux = min(30 / max(rng.random(), 1e-9), 4000.0) * area
            place = rng.uniform(-0.5, 0.5, 2) * canvas.size
            light = components.knots(canvas.size, place[:1], place[1:], [radius * rng.lognormal(0, 0.3)], [1.0])
            canvas.add(light, flux, colour(rng.uniform(-0.3, 1.3)))
