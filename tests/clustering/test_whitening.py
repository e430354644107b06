import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist

from rarezoo.clustering.whitening import Whitening, whitening_of


def whitened(x, power):
    return whitening_of(x, power)(x)


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(400, 6)) * [10, 5, 2, 1, 0.5, 0.1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    return (mixed + 100).astype(np.float32)


def test_power_0_gives_the_representation_itself(x):
    assert whitened(x, 0.0) is x


def test_full_whitening_gives_mahalanobis_distances_up_to_one_factor(x):
    theirs = pdist(x.astype(np.float64), "mahalanobis", VI=np.linalg.inv(np.cov(x.astype(np.float64), rowvar=False)))
    ratio = pdist(whitened(x, 1.0)) / theirs
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


def test_half_whitening_gives_distances_of_the_fourth_root_of_the_precision(x):
    half = sqrtm(np.linalg.inv(sqrtm(np.cov(x.astype(np.float64), rowvar=False)))).real
    ratio = pdist(whitened(x, 0.5)) / pdist(x.astype(np.float64) @ half)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


@given(power=st.floats(0.01, 1))
def test_total_variance_stays_as_it_was_and_the_spread_becomes_more_even(power):
    x = (np.random.default_rng(1).normal(size=(300, 5)) * [9, 3, 1, 0.3, 0.1]).astype(np.float32)
    y = whitened(x, power)
    assert y.var(axis=0).sum() == pytest.approx(x.var(axis=0).sum(), rel=1e-3)
    assert np.ptp(np.log(y.std(axis=0))) == pytest.approx((1 - power) * np.ptp(np.log(x.std(axis=0))), abs=0.05)


def test_directions_without_any_spread_are_left_out_and_not_blown_up(x):
    dead = np.hstack([x, np.full((len(x), 2), 7, dtype=np.float32), x[:, :1]])
    assert whitened(dead, 1.0).shape == (400, 6)
    assert whitened(dead, 1.0).std(axis=0).max() < 10 * x.std(axis=0).max()


def test_new_galaxies_are_mapped_as_the_known_ones(x):
    mapped = Whitening.of(x[:300], 0.75)
    np.testing.assert_allclose(
        cdist(mapped(x[300:]), mapped(x[:300])), cdist(mapped(x), mapped(x))[300:, :300], atol=1e-3
    )
