import numpy as np
import pytest
from hdbscan.validity import validity_index
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.clustering.validity import dbcv


def blobs(n_classes, size, d=5, spread=0.5, n_noise=0, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(n_classes, d))
    layout = np.repeat(centres, size, axis=0) + spread * rng.normal(size=(n_classes * size, d))
    labels = np.append(np.repeat(np.arange(n_classes), size), np.full(n_noise, -1))
    order = rng.permutation(len(labels))
    return np.concatenate([layout, 6 * rng.normal(size=(n_noise, d))])[order], labels[order]


@settings(deadline=None, max_examples=40)
@given(
    n_classes=st.integers(2, 12),
    size=st.integers(3, 30),
    d=st.integers(2, 8),
    spread=st.floats(0.05, 3.0),
    n_noise=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_index_and_classes_are_those_of_hdbscan(n_classes, size, d, spread, n_noise, seed):
    layout, labels = blobs(n_classes, size, d, spread, n_noise, seed)
    index, per_class = dbcv(layout, labels)
    expected, expected_per_class = validity_index(layout, labels, per_cluster_scores=True)
    assert index == pytest.approx(expected, abs=1e-9)
    assert per_class == pytest.approx(expected_per_class, abs=1e-9)


def test_galaxies_in_no_class_count_as_0():
    layout, labels = blobs(4, 30)
    far = np.full((120, 5), 50.0)
    alone, _ = dbcv(layout, labels)
    diluted, _ = dbcv(np.concatenate([layout, far]), np.append(labels, np.full(120, -1)))
    assert diluted == pytest.approx(alone / 2)


@pytest.mark.parametrize("d", [5, 128])
@pytest.mark.parametrize("scale", [1e-7, 1e5])
def test_scale_of_the_layout_does_not_matter(d, scale):
    layout, labels = blobs(5, 25, d, spread=0.3)
    expected, expected_per_class = validity_index(layout, labels, per_cluster_scores=True)
    index, per_class = dbcv(layout * scale, labels)
    assert index == pytest.approx(expected, abs=1e-6)
    assert per_class == pytest.approx(expected_per_class, abs=1e-6)


def test_members_at_the_same_place_count_as_one():
    layout, labels = blobs(4, 20, n_noise=10)
    index, per_class = dbcv(layout, labels)
    repeated_index, repeated = dbcv(np.tile(layout, (3, 1)), np.tile(labels, 3))
    assert repeated == pytest.approx(per_class)
    assert repeated_index == pytest.approx(index)


def test_class_at_one_place_is_fully_valid_unless_another_is_there_too():
    layout, labels = blobs(2, 20)
    one_place = np.tile([[30.0, 0, 0, 0, 0]], (10, 1))
    _, apart = dbcv(np.concatenate([layout, one_place]), np.append(labels, np.full(10, 2)))
    assert apart[2] == 1
    index, together = dbcv(np.concatenate([layout, one_place, one_place]), np.append(labels, np.repeat([2, 3], 10)))
    assert np.isnan(together[2:]).all()
    assert np.isfinite(together[:2]).all()
    assert index == pytest.approx(20 / 60 * together[:2].sum())


def test_nothing_is_defined_without_a_second_class():
    layout, labels = blobs(1, 20, n_noise=5)
    index, per_class = dbcv(layout, labels)
    assert np.isnan(index)
    assert np.isnan(per_class).tolist() == [True]
    index, per_class = dbcv(layout, np.full(len(layout), -1))
    assert np.isnan(index)
    assert len(per_class) == 0


def test_class_of_one_galaxy_is_left_out():
    layout, labels = blobs(3, 20)
    index, per_class = dbcv(layout, labels)
    _, with_single = dbcv(np.concatenate([layout, [layout[0]]]), np.append(labels, 3))
    assert with_single[:3] == pytest.approx(per_class)
    assert np.isnan(with_single[3])
    assert index > 0


def test_groups_are_valid_and_random_labels_are_not():
    layout, labels = blobs(6, 60, spread=0.3)
    _, groups = dbcv(layout, labels)
    _, shuffled = dbcv(layout, np.random.default_rng(0).permutation(labels))
    assert groups.min() > 0.3
    assert shuffled.max() < -0.3


def test_sample_of_large_classes_is_near_the_whole_and_the_same_each_time():
    layout, labels = blobs(4, 400, spread=0.3)
    whole, whole_per_class = dbcv(layout, labels, max_per_class=400)
    index, per_class = dbcv(layout, labels, max_per_class=80, seed=3)
    assert index == pytest.approx(whole, abs=0.1)
    assert per_class == pytest.approx(whole_per_class, abs=0.15)
    again, per_class_again = dbcv(layout, labels, max_per_class=80, seed=3)
    assert (again, *per_class_again) == (index, *per_class)
    assert dbcv(layout, labels, max_per_class=80, seed=4)[0] != index


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="3 places and 2 labels"):
        dbcv(np.zeros((3, 2)), np.zeros(2, dtype=int))
