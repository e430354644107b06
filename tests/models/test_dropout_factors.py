import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, kstest

from rarezoo.models.dropout import dropout_factors

MASK = (1 << 64) - 1
INT64 = st.integers(-(2**63), 2**63 - 1)


def split_mix(state: int) -> int:
    """The finaliser of SplitMix64 in Python's own unbounded integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def factors_by_hand(row: int, n_features: int, share: float, *key: int) -> list[float]:
    state = 0
    for number in (*key, row):
        state = split_mix((state + 0x9E3779B97F4A7C15) & MASK) ^ (number & MASK)
    stream = split_mix(state)
    drawn = [split_mix((stream + k * 0x9E3779B97F4A7C15) & MASK) >> 40 for k in range(1, n_features + 1)]
    return [0.0 if value < round(share * 2**24) else 1 / (1 - share) for value in drawn]


def dropped(rows: torch.Tensor, n_features: int, share: float, *key: int) -> np.ndarray:
    return (dropout_factors(rows, n_features, share, *key) == 0).numpy()


@given(st.lists(INT64, min_size=1, max_size=4), st.floats(0, 0.99), st.lists(INT64, min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_factors_are_those_of_split_mix_in_unbounded_integers(rows, share, key):
    found = dropout_factors(torch.tensor(rows), 5, share, *key)
    expected = [factors_by_hand(row, 5, share, *key) for row in rows]
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_share_that_is_dropped_is_the_one_asked_for(share):
    gone = dropped(torch.arange(2000), 500, share, 3, 0, 1)
    assert binomtest(int(gone.sum()), gone.size, share).pvalue > 1e-3
    for axis in (0, 1):
        counts = gone.sum(axis)
        n_drawn = gone.shape[axis]
        spread = ((counts - n_drawn * share) ** 2 / (n_drawn * share * (1 - share))).sum()
        assert abs(spread - len(counts)) < 5 * (2 * len(counts)) ** 0.5


def test_no_share_drops_nothing():
    assert torch.equal(dropout_factors(torch.arange(9), 40, 0.0, 1), torch.ones(9, 40))


def test_draws_that_lie_behind_are_uniform():
    rows = torch.arange(4000)
    kept_from = np.zeros((4000, 8))
    for share in np.arange(1, 16) / 16:
        kept_from += ~dropped(rows, 8, float(share), 11)
    counts = np.bincount(kept_from.astype(int).ravel(), minlength=16)
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        lambda rows: dropped(rows + 1, 300, 0.3, 7, 0, 0),
        lambda rows: dropped(rows, 300, 0.3, 7, 0, 1),
        lambda rows: dropped(rows, 300, 0.3, 7, 1, 0),
        lambda rows: dropped(rows, 300, 0.3, 8, 0, 0),
        lambda rows: np.roll(dropped(rows, 300, 0.3, 7, 0, 0), 1, axis=1),
    ],
    ids=["row", "pass", "model", "seed", "feature"],
)
def test_neighbouring_draws_are_independent(other):
    rows = torch.arange(2000)
    one, next_one = dropped(rows, 300, 0.3, 7, 0, 0), other(rows)
    together = np.bincount((2 * one + next_one).ravel(), minlength=4)
    expected = np.array([0.49, 0.21, 0.21, 0.09]) * one.size
    assert chisquare(together, expected).pvalue > 1e-3


def test_correlations_between_galaxies_are_those_of_chance():
    gone = dropped(torch.arange(0, 30_000_000, 300_000), 4000, 0.5, 0, 0, 0)
    correlations = np.corrcoef(gone)[np.triu_indices(len(gone), 1)] * gone.shape[1] ** 0.5
    assert kstest(correlations, "norm").pvalue > 1e-3


@given(st.permutations(range(20)), st.integers(1, 19))
@settings(deadline=None, max_examples=20)
def test_factors_of_a_galaxy_do_not_depend_on_the_others_of_the_batch(order, at):
    rows = torch.tensor([5_000_000_000 + each for each in order])
    together = dropout_factors(rows, 32, 0.4, 9, 1, 2)
    assert torch.equal(
        together, torch.cat([dropout_factors(part, 32, 0.4, 9, 1, 2) for part in rows.tensor_split([at])])
    )
