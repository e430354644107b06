import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA, IncrementalPCA

from rarezoo.cli import UserError
from rarezoo.embeddings.embed import feature_moments
from rarezoo.embeddings.redundancy import (
    FeatureMoments,
    components_for,
    effective_rank,
    participation_ratio,
    spectrum,
)
from rarezoo.models.inference import Embedder
from rarezoo.models.vote_model import ModelSpec, VoteModel


def correlated(n_rows=300, width=12, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_rows, width)) * 0.7 ** np.arange(width) @ rng.normal(size=(width, width)) + offset


def moments_of(features, *sizes):
    moments = FeatureMoments(features.shape[1])
    for piece in np.split(features, np.cumsum(sizes)):
        moments.update(piece)
    return moments


def test_spectrum_is_that_of_sklearns_pca():
    features = correlated()
    found = spectrum(moments_of(features, 7, 100, 1))
    expected = PCA().fit(features)
    np.testing.assert_allclose(found.variance_ratio, expected.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(found.cumulative, np.cumsum(expected.explained_variance_ratio_), rtol=1e-10)
    assert found.n_rows == 300


def test_spectrum_of_standardised_features_is_that_of_pca_after_scaling():
    features = correlated()
    expected = PCA().fit((features - features.mean(0)) / features.std(0)).explained_variance_ratio_
    np.testing.assert_allclose(spectrum(moments_of(features)).standardised_ratio, expected, rtol=1e-10)


def test_batches_give_what_incremental_pca_gives():
    features = correlated()
    expected = IncrementalPCA(batch_size=50).fit(features).explained_variance_ratio_
    found = spectrum(moments_of(features, 50, 50, 50, 50, 50)).variance_ratio
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_fewer_galaxies_than_features_are_pca_too():
    features = correlated(n_rows=8, width=20)
    ratio = spectrum(moments_of(features, 3)).variance_ratio
    np.testing.assert_allclose(ratio[:8], PCA().fit(features).explained_variance_ratio_, atol=1e-12)
    assert ratio[7:].max() < 1e-12


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.sampled_from([0.0, -3.0, 1e6]),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_batches_of_any_size_give_numpys_mean_and_covariance(sizes, offset, dtype):
    if dtype == np.float16 and offset > 1e4:
        offset = 100.0
    features = correlated(sum(sizes) + 2, 4, offset=offset).astype(dtype)
    moments = moments_of(features, *sizes)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12, atol=1e-12)
    expected = np.cov(exact, rowvar=False)
    np.testing.assert_allclose(moments.covariance, expected, atol=1e-8 * np.abs(expected).max())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_processes_are_joined_in_any_order(sizes, random):
    features = correlated(sum(sizes) + 3, 3, offset=50.0)
    pieces = [moments_of(piece) for piece in np.split(features, np.cumsum(sizes))]
    random.shuffle(pieces)
    joined = FeatureMoments(3)
    for piece in pieces:
        joined.merge(piece)
    whole = moments_of(features)
    assert joined.n_rows == whole.n_rows
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(joined.scatter, whole.scatter, atol=1e-9)


def test_float32_features_far_from_zero_keep_their_small_variance():
    rng = np.random.default_rng(0)
    features = (1000 + rng.normal(scale=0.01, size=(5000, 3))).astype(np.float32)
    exact = features.astype(np.longdouble)
    expected = np.square(exact - exact.mean(0)).sum(0) / 4999
    np.testing.assert_allclose(np.diag(moments_of(features, 1000, 1000).covariance), expected.astype(float), rtol=1e-9)


def test_equal_variances_use_every_dimension():
    for width in (1, 2, 128):
        ratio = np.full(width, 1 / width)
        assert participation_ratio(ratio) == pytest.approx(width)
        assert effective_rank(ratio) == pytest.approx(width)
        assert components_for(ratio, 0.9) == math.ceil(0.9 * width)


def test_geometric_spectrum_has_the_known_dimensions():
    decay = 0.5
    ratio = decay ** np.arange(60)
    # sums of the geometric series: (1/(1-q))^2 / (1/(1-q^2)), and the entropy of the geometric distribution
    assert participation_ratio(ratio) == pytest.approx((1 + decay) / (1 - decay))
    assert effective_rank(ratio) == pytest.approx(4.0)
    assert components_for(ratio, 0.875) == 3


def test_two_features_of_correlation_r_have_components_of_one_plus_and_minus_r():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(50, 3)) - rng.normal(size=(50, 3)).mean(0))
    basis -= basis.mean(0)
    basis, _ = np.linalg.qr(basis)
    r = -0.6
    features = np.stack([basis[:, 0], 30 * (r * basis[:, 0] + math.sqrt(1 - r**2) * basis[:, 1])], 1)
    found = spectrum(moments_of(features))
    np.testing.assert_allclose(found.standardised_ratio, [0.8, 0.2], rtol=1e-9)
    assert found.mean_abs_correlation == pytest.approx(0.6)


def test_ninety_percent_of_planted_components_are_counted():
    rng = np.random.default_rng(1)
    low = rng.normal(size=(4000, 5)) @ rng.normal(size=(5, 40))
    found = spectrum(moments_of(low + 1e-4 * rng.normal(size=low.shape))).describe()
    assert found["components_99"] <= 5
    assert found["components_90"] <= found["components_95"] <= found["components_99"]
    assert 1 <= found["participation_ratio"] <= found["effective_rank"] <= 5.01
    assert found["features"] == 40


def test_constant_features_are_counted_and_take_no_part_in_correlations():
    features = np.concatenate([correlated(width=4), np.full((300, 2), 0.1)], 1)
    found = spectrum(moments_of(features, 30, 200))
    without = spectrum(moments_of(features[:, :4]))
    assert found.n_constant == 2
    np.testing.assert_allclose(found.standardised_ratio, [*without.standardised_ratio, 0, 0], rtol=1e-9)
    assert found.mean_abs_correlation == pytest.approx(without.mean_abs_correlation)


def test_single_feature_has_no_correlation():
    assert math.isnan(spectrum(moments_of(correlated(width=1))).mean_abs_correlation)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((1, 3)), "1 galaxies have no covariance"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "not finite"),
        (np.full((5, 3), 0.1), "the same features"),
    ],
)
def test_features_without_a_spectrum_are_refused(features, message):
    with pytest.raises(UserError, match=message):
        spectrum(moments_of(features))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expected"):
        FeatureMoments(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="moments of 4 features"):
        FeatureMoments(3).merge(FeatureMoments(4))


def an_embedder(dim):
    tree = {"shape": {"answers": ["smooth", "featured"], "asked_after": []}}
    model = VoteModel(ModelSpec(tree, "test_efficientnet", dim, image_size=32)).eval()
    return Embedder([model], torch.device("cpu"))


def test_features_and_representation_are_studied_where_they_differ_and_it_is_wished():
    both = feature_moments(an_embedder(6))
    assert {space: len(moments.mean) for space, moments in both.items()} == {"features": 256, "representation": 6}
    assert set(feature_moments(an_embedder(None))) == {"features"}
    assert feature_moments(an_embedder(6), wanted=False) == {}
