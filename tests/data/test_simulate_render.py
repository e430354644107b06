from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from rarezoo.data.simulate.paint import paint_bulge, paint_disk, paint_field, paint_galaxy
from rarezoo.data.simulate.picture import take_picture
from rarezoo.data.simulate.population import draw_disk, draw_population, draw_smooth
from rarezoo.data.simulate.render import (
    REFERENCE_SIZE,
    SKY_LEVEL,
    WHITE,
    Canvas,
    add_noise,
    blur,
    colour,
    plane,
    stretched,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def plain_disk(rng, **changes):
    bare = {"n_arms": 0, "flocculence": 0.0, "clumpiness": 0.0, "bar_strength": 0.0, "inner_ring": 0.0}
    bare |= {"outer_ring": 0.0, "dust": 0.0, "disturbance": 0.0, "bulge_fraction": 0.0, "edge_on": 0.0}
    return replace(draw_disk(192, rng), **{"axis_ratio": 1.0, "half_light_radius": 24.0, **bare, **changes})


def radius_of_half_the_light(image, axis_ratio=1.0):
    axis = np.arange(image.shape[0]) - (image.shape[0] - 1) / 2
    radius = np.hypot(axis[None, :], axis[:, None] / axis_ratio).ravel()
    order = radius.argsort()
    growth = image.ravel()[order].cumsum()
    return radius[order][np.searchsorted(growth, growth[-1] / 2)]


def test_background_noise_is_as_stated(rng):
    for sigma in (1.0, 2.5):
        noise = add_noise(np.zeros((3, 300, 300), np.float32), sigma, rng)
        assert noise.std(axis=(1, 2)) == pytest.approx(sigma, rel=0.02)
        assert abs(noise.mean()) < 0.02 * sigma
        assert abs(np.corrcoef(noise.reshape(3, -1)) - np.eye(3)).max() < 0.02


def test_photon_noise_grows_with_the_light(rng):
    light = np.full((3, 300, 300), 3 * SKY_LEVEL, np.float32)
    assert add_noise(light, 1.0, rng).std() == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_blur_keeps_the_flux_and_has_its_width(fwhm):
    point = np.zeros((3, 65, 65), np.float32)
    point[:, 32, 32] = 1.0
    star = blur(point, fwhm)[0].astype(np.float64)
    assert star.sum() == pytest.approx(1, rel=1e-3)
    profile = star[32]
    half = np.interp(0.5 * profile[32], profile[32:50][::-1], np.arange(18)[::-1])
    assert 2 * half == pytest.approx(fwhm, rel=0.12)


@settings(deadline=None, max_examples=30)
@given(
    x=st.floats(-30, 30),
    y=st.floats(-30, 30),
    angle=st.floats(0, 360),
    axis_ratio=st.floats(0.1, 1),
    row=st.integers(0, 63),
    column=st.integers(0, 63),
)
def test_a_planes_coordinates_lead_back_to_the_pixel(x, y, angle, axis_ratio, row, column):
    canvas = Canvas(64)
    disk = plane(canvas, (x, y), angle, axis_ratio)
    back = disk.to_frame(disk.radius[row, column], disk.azimuth[row, column])
    assert back == pytest.approx((canvas.x[row, column], canvas.y[row, column]), abs=1e-2)


@pytest.mark.parametrize("axis_ratio", [1.0, 0.6])
def test_a_painted_disk_has_its_half_light_radius_and_flux(rng, axis_ratio):
    galaxy = plain_disk(rng, axis_ratio=axis_ratio, position_angle=0.0, half_light_radius=20.0)
    canvas = Canvas(256)
    paint_disk(canvas, galaxy, rng)
    image = canvas.flux.mean(axis=0)
    # The outer cut of the disk takes some 4 % of its light, all from beyond the half-light radius.
    assert radius_of_half_the_light(image, axis_ratio) == pytest.approx(20.0, rel=0.05)
    assert image.sum() == pytest.approx(galaxy.total_flux, rel=0.06)


def test_mean_brightness_within_the_half_light_ellipse_is_the_signal_to_noise(rng):
    galaxy = plain_disk(rng, axis_ratio=0.7, position_angle=0.0, half_light_radius=20.0)
    canvas = Canvas(256)
    paint_disk(canvas, galaxy, rng)
    inside = plane(canvas, (0, 0), 0.0, 0.7).radius < 20.0
    assert canvas.flux.mean(axis=0)[inside].mean() == pytest.approx(galaxy.snr, rel=0.05)


def test_light_is_shared_between_bulge_and_disk_as_stated(rng):
    galaxy = plain_disk(rng, bulge_fraction=0.4, bulge_radius=6.0, sersic_index=2.0)
    bulge, disk = Canvas(384), Canvas(384)
    paint_bulge(bulge, galaxy)
    paint_disk(disk, galaxy, rng)
    share = bulge.flux.sum() / (bulge.flux.sum() + disk.flux.sum())
    assert share == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("pitch", "n_arms", "winding"), [(12.0, 2, 1), (20.0, 2, -1), (28.0, 3, 1)])
def test_arms_of_a_painted_galaxy_have_their_pitch(rng, pitch, n_arms, winding):
    galaxy = plain_disk(
        rng, n_arms=n_arms, arm_strength=1.0, pitch=pitch, winding=winding, axis_ratio=0.7, position_angle=30.0
    )
    canvas = Canvas(192)
    paint_disk(canvas, galaxy, rng)
    log_radius = np.linspace(np.log(14), np.log(45), 30)
    azimuth = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    disk = plane(canvas, (0, 0), galaxy.position_angle, galaxy.axis_ratio)
    x, y = disk.to_frame(np.exp(log_radius)[:, None], azimuth[None, :])
    unwound = map_coordinates(canvas.flux[2], [y + 95.5, x + 95.5], order=1)
    wave = np.fft.rfft(unwound / unwound.mean(axis=1, keepdims=True), axis=1)[:, n_arms]
    slope = np.polyfit(log_radius, np.unwrap(-np.angle(wave)) / n_arms, 1)[0]
    assert np.degrees(np.arctan(1 / slope)) == pytest.approx(winding * pitch, rel=0.05)


def test_old_light_is_red_and_young_light_blue():
    old, young = colour(0.0), colour(1.0)
    assert old[0] > old[1] > old[2]
    assert young[0] < young[1] < young[2]
    assert old.mean() == pytest.approx(1)


def test_dust_reddens():
    canvas = Canvas(32)
    canvas.add(np.ones((32, 32), np.float32), 10.0, [1, 1, 1])
    canvas.dim(np.full((32, 32), 0.5, np.float32))
    red, green, blue = canvas.flux[:, 0, 0]
    assert 10 > red > green > blue > 0


def test_stretch_keeps_colours_and_order():
    brightness = np.geomspace(1, 40, 32, dtype=np.float32)
    bands = np.array([1.3, 1.0, 0.7], np.float32)
    picture = stretched(np.broadcast_to(bands[:, None, None] * brightness, (3, 32, 32)).copy())[0].astype(float)
    assert (np.diff(picture, axis=0) >= 0).all()
    np.testing.assert_allclose(picture[8:, 0] / picture[8:, 2], 1.3 / 0.7, rtol=0.06)


def test_stretch_is_black_without_light_and_white_at_full_brightness():
    assert stretched(np.zeros((3, 8, 8), np.float32)).max() == 0
    assert stretched(np.full((3, 8, 8), WHITE, np.float32)).min() == 255
    assert stretched(np.full((3, 8, 8), -50.0, np.float32)).max() == 0


def test_a_saturated_colour_is_scaled_and_not_cut():
    red, green, _ = stretched(np.array([4.0, 2.0, 1.0], np.float32)[:, None, None] * WHITE)[0, 0]
    assert red == 255
    assert green == pytest.approx(255 / 2, abs=1)


@pytest.mark.parametrize("fault", ["", "satellite_trail"])
def test_a_picture_is_the_same_for_the_same_generator_and_differs_for_another(fault):
    galaxy = replace(draw_population(1, 64, 0.0, np.random.default_rng(1))[0], artifact=fault)
    first, again, other = (take_picture(galaxy, 64, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_artifact_changes_the_picture():
    galaxy = draw_smooth(64, np.random.default_rng(1))
    clean, spoilt = (
        take_picture(replace(galaxy, artifact=fault), 64, np.random.default_rng(2)) for fault in ("", "missing_band")
    )
    assert np.abs(clean.astype(int) - spoilt).max() > 20


@pytest.mark.parametrize("seed", range(12))
def test_a_galaxy_looks_the_same_at_any_size(seed):
    pictures = []
    for size in (REFERENCE_SIZE // 2, REFERENCE_SIZE * 2):
        galaxy = draw_population(1, size, 0.0, np.random.default_rng(seed))[0]
        canvas = Canvas(size)
        generator = np.random.default_rng(seed + 100)
        paint_galaxy(canvas, galaxy, generator)
        paint_field(canvas, generator)
        factor = size // 24
        pictures.append(canvas.flux.mean(axis=0).reshape(24, factor, 24, factor).mean(axis=(1, 3)))
    assert np.corrcoef(pictures[0].ravel(), pictures[1].ravel())[0, 1] > 0.97


def test_every_galaxy_has_finite_light_of_about_its_total_flux():
    rng = np.random.default_rng(3)
    for galaxy in draw_population(150, 64, 0.0, rng):
        canvas = Canvas(64)
        paint_galaxy(canvas, galaxy, rng)
        assert np.isfinite(canvas.flux).all()
        assert canvas.flux.min() >= 0
        ratio = canvas.flux.mean(axis=0).sum() / (galaxy.total_flux * (1 + galaxy.companion))
        assert 0.6 < ratio < 1.3
