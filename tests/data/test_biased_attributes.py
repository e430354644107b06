import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.data.biased.attributes import biased_attributes, check_conflict_share, unbiased_attributes


def classes(n_classes, per_class, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(n_classes), per_class))


@given(n_classes=st.integers(2, 10), per_class=st.integers(20, 300), share=st.sampled_from([0.05, 0.1, 0.5]))
def test_each_class_has_its_share_of_conflicts_spread_evenly_over_the_other_values(n_classes, per_class, share):
    target = classes(n_classes, per_class)
    attribute = biased_attributes(target, n_classes, share, np.random.default_rng(1))
    for label in range(n_classes):
        counts = np.bincount(attribute[target == label], minlength=n_classes)
        assert abs(per_class - counts[label] - per_class * share) < 1
        others = np.delete(counts, label)
        assert np.ptp(others) <= 1
    assert abs((attribute != target).sum() - n_classes * per_class * share) <= 0.5


@pytest.mark.parametrize("percent", [0.5, 1, 2, 5])
def test_ratios_of_the_paper_are_met_within_half_an_image(percent):
    target = np.random.default_rng(0).integers(0, 10, 55_000)
    attribute = biased_attributes(target, 10, percent / 100, np.random.default_rng(1))
    assert abs((attribute != target).sum() - 55_000 * percent / 100) <= 0.5


def test_without_bias_every_value_is_as_frequent_in_each_class():
    target = classes(10, 1000)
    attribute = unbiased_attributes(target, 10, np.random.default_rng(1))
    counts = np.array([np.bincount(attribute[target == label], minlength=10) for label in range(10)])
    np.testing.assert_array_equal(counts, 100)


def test_the_same_generator_chooses_the_same_conflicts_and_another_chooses_others():
    target = classes(10, 100)
    first, again, other = (biased_attributes(target, 10, 0.05, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_so_few_images_that_none_conflicts_are_refused():
    target = classes(2, 10)
    attribute = biased_attributes(target, 2, 0.005, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"digits: 0.00% of 20 images are conflicting, and bias.conflict_percent=0.5"):
        check_conflict_share("digits", target, attribute, 0.005)


def test_a_share_that_is_not_the_one_that_is_claimed_is_refused_with_what_was_found():
    target = classes(10, 1000)
    attribute = biased_attributes(target, 10, 0.02, np.random.default_rng(0))
    check_conflict_share("cmnist", target, attribute, 0.02)
    with pytest.raises(UserError, match=r"cmnist: 2.00% of 10000 images .* bias.conflict_percent=5"):
        check_conflict_share("cmnist", target, attribute, 0.05)
