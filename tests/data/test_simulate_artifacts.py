import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from rarezoo.data.simulate.artifacts import ARTIFACT_KINDS, add_artifact

SIZES = (32, 33, 64, 96, 224)


def galaxy(size, rng, sky=1.0):
    """A round exponential disk with noise, peak 100 times the noise."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    light = 100 * np.exp(-np.hypot(x, y) / 0.06)
    return (sky * (light + rng.normal(size=(3, size, size)))).astype(np.float32)


def statistics(flux):
    """Ten numbers of a picture that know nothing of how it was made."""
    flat = flux.reshape(3, -1)
    medians, empty = np.median(flat, axis=1), np.mean(flat == 0, axis=1)
    colour = flux - flux.mean(axis=0)
    steps = np.abs(np.diff(flux, axis=1)).mean()
    return [
        *(np.sort(medians)[[0, 2]]),
        *(np.sort(empty)[[0, 2]]),
        np.mean(flat > 300),
        flat.max(),
        flat.mean(),
        np.abs(colour).mean(),
        steps,
        np.median(np.abs(np.diff(flux, axis=2))),
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_an_artifact_changes_a_picture_of_any_size_and_leaves_the_input_alone(kind, size):
    flux = galaxy(size, np.random.default_rng(0))
    before = flux.copy()
    for seed in range(10):
        painted = add_artifact(flux, kind, np.random.default_rng(seed), sky=1.0)
        assert painted.shape == flux.shape
        assert painted.dtype == np.float32
        assert np.isfinite(painted).all()
        changed = np.abs(painted - flux) > 1.0
        assert changed.any(axis=0).mean() > 0.005
        np.testing.assert_array_equal(flux, before)
        assert not np.shares_memory(painted, flux)


@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_the_same_generator_paints_the_same_artifact_and_another_paints_another(kind):
    flux = galaxy(64, np.random.default_rng(0))
    first, again, other = (add_artifact(flux, kind, np.random.default_rng(seed), sky=1.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1.0


@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_artifacts_scale_with_the_sky_noise(kind):
    flux = galaxy(64, np.random.default_rng(0))
    unit = add_artifact(flux, kind, np.random.default_rng(3), sky=1.0)
    scaled = add_artifact(5 * flux, kind, np.random.default_rng(3), sky=5.0)
    np.testing.assert_allclose(scaled, 5 * unit, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ARTIFACT_KINDS)
def test_an_artifact_looks_alike_at_any_resolution(kind):
    for seed in range(5):
        low, high = (
            add_artifact(np.ones((3, size, size), np.float32), kind, np.random.default_rng(seed), sky=1.0)
            for size in (48, 192)
        )
        averaged = high.reshape(3, 48, 4, 48, 4).mean(axis=(2, 4))
        bright = [np.log10(np.clip(picture, 0.1, 1000)).ravel() for picture in (low, averaged)]
        assert np.corrcoef(*bright)[0, 1] > 0.7


def test_kinds_are_told_apart_by_simple_statistics():
    rng = np.random.default_rng(0)
    pictures, labels = [], []
    for kind in (*ARTIFACT_KINDS, "none"):
        for _ in range(60):
            flux = galaxy(48, rng)
            pictures.append(statistics(flux if kind == "none" else add_artifact(flux, kind, rng, sky=1.0)))
            labels.append(kind)
    forest = RandomForestClassifier(100, random_state=0)
    assert cross_val_score(forest, pictures, labels, cv=3).mean() > 0.9


def test_a_saturated_star_dominates_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(20):
        flux = galaxy(64, rng)
        assert add_artifact(flux, "saturated_star", rng, sky=1.0).sum() > 2 * flux.sum()


def test_the_halo_of_a_saturated_star_fills_much_of_the_frame():
    rng = np.random.default_rng(0)
    stars = [add_artifact(np.zeros((3, 64, 64), np.float32), "saturated_star", rng, sky=1.0) for _ in range(20)]
    bright = [(star.mean(axis=0) > 5).mean() for star in stars]
    assert np.mean(bright) > 0.2
    assert min(bright) > 0.05


def test_a_trail_lies_on_a_straight_line():
    rng = np.random.default_rng(4)
    for _ in range(20):
        added = add_artifact(np.zeros((3, 96, 96), np.float32), "satellite_trail", rng, sky=1.0).max(axis=0)
        rows, columns = np.nonzero(added > 0.5 * added.max())
        variances = np.linalg.eigvalsh(np.cov(rows, columns))
        assert variances[0] < 0.1 * variances[1]


def test_a_missing_band_is_missing_in_one_or_two_bands_and_never_in_three():
    rng = np.random.default_rng(0)
    empty = [
        (add_artifact(galaxy(64, rng), "missing_band", rng, sky=1.0) == 0).mean(axis=(1, 2)) > 0.2 for _ in range(40)
    ]
    assert {int(bands.sum()) for bands in empty} == {1, 2}


def test_beyond_a_chip_edge_no_band_has_data():
    rng = np.random.default_rng(0)
    shares = [(add_artifact(galaxy(64, rng), "chip_edge", rng, sky=1.0) == 0).all(axis=0).mean() for _ in range(60)]
    assert max(shares) < 0.9
    assert np.mean(np.array(shares) > 0.02) > 0.9


def test_scattered_light_is_smooth():
    rng = np.random.default_rng(0)
    for _ in range(20):
        added = add_artifact(np.zeros((3, 128, 128), np.float32), "scattered_light", rng, sky=1.0)
        assert np.abs(np.diff(added, axis=1)).max() < 0.15 * added.max()
        assert added.max() > 3


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((3, 32, 32), "sattelite_trail", "Did you mean 'satellite_trail'"),
        ((32, 32, 3), "chip_edge", r"\(32, 32, 3\)"),
        ((3, 32, 33), "chip_edge", r"\(3, 32, 33\)"),
        ((32, 32), "chip_edge", r"\(32, 32\)"),
    ],
)
def test_a_wrong_kind_or_shape_is_refused(shape, kind, message):
    with pytest.raises(ValueError, match=message):
        add_artifact(np.zeros(shape, np.float32), kind, np.random.default_rng(0), sky=1.0)
