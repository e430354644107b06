import numpy as np
import pytest
from astropy.modeling.models import Sersic2D
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from rarezoo.data.simulate import components

LARGE = np.arange(-150, 150, dtype=np.float32) + np.float32(0.5)
X, Y = np.meshgrid(LARGE, LARGE)
RADIUS, AZIMUTH = np.hypot(X, Y), np.arctan2(Y, X)


def light_within(profile, radius):
    return quad(lambda r: 2 * np.pi * r * float(profile(np.float64(r))), 0, radius, limit=200)[0]


@settings(deadline=None, max_examples=40)
@given(index=st.floats(0.5, 6), half_light=st.floats(1, 40))
def test_half_of_a_sersic_profile_lies_within_its_half_light_radius(index, half_light):
    inside = light_within(lambda r: components.sersic(r, half_light, index), half_light)
    assert inside == pytest.approx(0.5, rel=1e-3)


@settings(deadline=None, max_examples=20)
@given(index=st.floats(0.5, 6), half_light=st.floats(3, 30), axis_ratio=st.floats(0.2, 1))
def test_sersic_profile_is_that_of_astropy(index, half_light, axis_ratio):
    theirs = Sersic2D(amplitude=1, r_eff=half_light, n=index, x_0=0, y_0=0, ellip=1 - axis_ratio, theta=0)(X, Y)
    ours = components.sersic(np.hypot(X, Y / np.float32(axis_ratio)), half_light, index)
    at_half_light = float(components.sersic(np.float64(half_light), half_light, index))
    np.testing.assert_allclose(ours / at_half_light, theirs, rtol=2e-3, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(half_light=st.floats(1, 30))
def test_exponential_disk_is_a_sersic_profile_of_index_1_with_half_its_light_inside(half_light):
    assert light_within(lambda r: components.exponential_disk(r, half_light), half_light) == pytest.approx(
        0.5, rel=1e-4
    )
    disk, sersic = components.exponential_disk(RADIUS, half_light), components.sersic(RADIUS, half_light, 1)
    np.testing.assert_allclose(disk, sersic, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("half_light", [8.0, 20.0])
def test_edge_on_disk_is_an_exponential_disk_seen_along_its_plane(half_light):
    light = components.edge_on_disk(X, Y, half_light, 3.0)
    face_on = components.exponential_disk(RADIUS, half_light)
    np.testing.assert_allclose(light.sum(axis=0), face_on.sum(axis=0), rtol=0.02, atol=1e-5)
    assert light.sum() == pytest.approx(1, rel=0.01)


def test_bar_and_ring_have_unit_flux():
    assert components.bar_profile(X, Y, 30.0, 0.3).sum() == pytest.approx(1, rel=0.01)
    assert components.ring_profile(RADIUS, 40.0, 5.0).sum() == pytest.approx(1, rel=0.01)


def test_boxy_radius_is_that_of_an_ellipse_at_the_ends_of_the_axes_and_smaller_in_the_corners():
    for boxiness in (0.0, 0.5, 1.0):
        ends = components.boxy_radius(np.array([10.0, 0.0]), np.array([0.0, 5.0]), 0.5, boxiness)
        np.testing.assert_allclose(ends, 10.0, rtol=1e-6)
    corner = [float(components.boxy_radius(np.float64(5), np.float64(2.5), 0.5, box)) for box in (0.0, 0.5, 1.0)]
    assert corner[0] > corner[1] > corner[2]


@settings(deadline=None, max_examples=30)
@given(n_arms=st.integers(1, 6), pitch=st.floats(8, 40), winding=st.sampled_from([-1, 1]), start=st.floats(0, 6.28))
def test_arms_have_their_number_and_pitch(n_arms, pitch, winding, start):
    log_radius = np.linspace(np.log(10), np.log(20), 40)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, 720, endpoint=False)[None, :]
    radius = np.exp(log_radius) * np.ones_like(azimuth)
    pattern = components.spiral_arms(radius, azimuth * np.ones_like(radius), n_arms, winding * pitch, (12.0, start))
    power = np.abs(np.fft.rfft(pattern, axis=1)).mean(axis=0)
    assert power[1:].argmax() + 1 == n_arms
    phase = np.unwrap(-np.angle(np.fft.rfft(pattern, axis=1)[:, n_arms])) / n_arms
    slope = np.polyfit(log_radius[:, 0], phase, 1)[0]
    assert np.degrees(np.arctan(1 / slope)) == pytest.approx(winding * pitch, rel=0.01)


def test_a_ridge_passes_through_the_anchor():
    ridge = components.spiral_arms(np.array([12.0]), np.array([0.7]), 3, 20.0, (12.0, 0.7))
    assert ridge[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_textures_have_mean_0_and_variance_1(seed):
    rng = np.random.default_rng(seed)
    for texture in (
        components.rough_texture(X, Y, 10.0, rng, n_waves=30),
        components.flocculent_pattern(RADIUS, AZIMUTH, 15.0, rng, n_waves=30),
    ):
        assert abs(texture.mean()) < 0.2
        assert texture.std() == pytest.approx(1, abs=0.25)


@settings(deadline=None, max_examples=30)
@given(x=st.floats(-20, 20), y=st.floats(-20, 20), radius=st.floats(0.8, 4), flux=st.floats(0.1, 1e4))
def test_a_knot_has_its_flux_place_and_width(x, y, radius, flux):
    light = components.knots(96, [x], [y], [radius], [flux]).astype(np.float64)
    axis = np.arange(96) - 47.5
    assert light.sum() == pytest.approx(flux, rel=1e-3)
    assert (light.sum(axis=0) * axis).sum() / light.sum() == pytest.approx(x, abs=1e-2)
    assert (light.sum(axis=1) * axis).sum() / light.sum() == pytest.approx(y, abs=1e-2)
    assert (light.sum(axis=0) * (axis - x) ** 2).sum() / light.sum() == pytest.approx(radius**2, rel=0.02)


def test_smoothstep_runs_from_0_to_1():
    np.testing.assert_allclose(components.smoothstep(np.array([-1.0, 2, 3, 4, 9]), 2, 4), [0, 0, 0.5, 1, 1])
