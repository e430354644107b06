import numpy as np
import pytest
import torch
from scipy.stats import beta

from rarezoo.votes import (
    Schema,
    answer_probabilities,
    expected_vote_fractions,
    fraction_posterior,
    fraction_quantiles,
    load_schema,
    posterior,
)

SCHEMA = Schema.from_tree(
    {
        "kind": {"answers": ["smooth", "disk", "artifact"]},
        "arms": {"answers": ["yes", "no"], "asked_after": "kind_disk"},
        "merging": {"answers": ["yes", "no"], "asked_after": ["kind_smooth", "kind_disk"]},
    }
)


def passes(n_passes, batch, seed, low=0.3, high=60.0):
    return np.random.default_rng(seed).uniform(low, high, (n_passes, batch, len(SCHEMA.label_cols)))


def marginal(concentrations):
    rest = np.stack([c @ SCHEMA.membership.numpy() @ SCHEMA.membership.numpy().T - c for c in concentrations])
    return beta(concentrations, rest)


def test_interval_of_one_pass_is_that_of_the_beta_distribution():
    concentrations = passes(1, 30, 0)
    found = fraction_posterior(concentrations[0], SCHEMA, level=0.8)
    lower, upper = marginal(concentrations).interval(0.8)
    np.testing.assert_allclose(found.lower, lower[0], rtol=1e-8)
    np.testing.assert_allclose(found.upper, upper[0], rtol=1e-8)
    np.testing.assert_allclose(found.mean, marginal(concentrations).mean()[0], rtol=1e-12)
    assert found.level == 0.8


@pytest.mark.parametrize(("low", "high"), [(0.3, 60.0), (1e-3, 2.0), (1.0, 1e5)])
def test_quantile_of_a_mixture_has_the_probability_asked_for_below_it(low, high):
    concentrations = passes(4, 50, 1, low, high)
    found = fraction_quantiles(concentrations, SCHEMA, [0.05, 0.5, 0.95])
    for quantile, probability in zip(found, (0.05, 0.5, 0.95), strict=True):
        below = marginal(concentrations).cdf(quantile).mean(0)
        # Close to 0 and 1 a distribution may step by more than this within one unit in the last place.
        inside = (quantile > 1e-8) & (quantile < 1 - 1e-8)
        assert inside.mean() > 0.3
        np.testing.assert_allclose(below[inside], probability, atol=1e-4 if low < 0.1 else 1e-6)


def test_interval_of_a_mixture_is_that_of_draws_from_all_passes():
    concentrations = passes(3, 2, 2)
    draws = marginal(concentrations).rvs((60_000, *concentrations.shape), random_state=3)
    pooled = np.moveaxis(draws, 1, 0).reshape(-1, 2, len(SCHEMA.label_cols))
    found = fraction_posterior(concentrations, SCHEMA, level=0.9)
    np.testing.assert_allclose(found.lower, np.quantile(pooled, 0.05, axis=0), atol=0.01)
    np.testing.assert_allclose(found.upper, np.quantile(pooled, 0.95, axis=0), atol=0.01)
    np.testing.assert_allclose(found.mean, pooled.mean(0), atol=0.005)


def test_interval_widens_where_passes_disagree():
    agreeing, other = np.full((2, 1, 7), 20.0), np.full((1, 1, 7), 20.0)
    other[..., 3] = 90.0
    disagreeing = np.concatenate([agreeing[:1], other])
    together, apart = fraction_posterior(agreeing, SCHEMA), fraction_posterior(disagreeing, SCHEMA)
    single = [fraction_posterior(one, SCHEMA) for one in disagreeing]
    medians = np.median([s.upper for s in single], 0) - np.median([s.lower for s in single], 0)
    width = (apart.upper - apart.lower)[0, 3]
    assert width > 1.5 * (together.upper - together.lower)[0, 3]
    assert width > 1.5 * medians[0, 3]
    np.testing.assert_allclose(apart.upper[0, 5:], together.upper[0, 5:], rtol=1e-9)


def test_equal_passes_say_what_one_says():
    one = passes(1, 10, 4)
    found, single = fraction_posterior(np.repeat(one, 3, axis=0), SCHEMA), fraction_posterior(one[0], SCHEMA)
    np.testing.assert_allclose(found.lower, single.lower, rtol=1e-7)
    np.testing.assert_allclose(found.upper, single.upper, rtol=1e-7)


def test_passes_that_differ_by_rounding_say_what_one_says():
    one = passes(1, 40, 5)
    almost = np.concatenate([one, one * (1 + 1e-9), one * (1 - 1e-6)])
    np.testing.assert_allclose(
        fraction_posterior(almost, SCHEMA).lower, fraction_posterior(one[0], SCHEMA).lower, rtol=1e-5
    )


def test_probability_of_an_answer_is_that_of_volunteers_who_walk_down_the_tree():
    rng = np.random.default_rng(6)
    concentrations = passes(2, 1, 7, high=10.0)
    reached = np.zeros(7)
    for one in concentrations[:, 0]:
        kind, arms, merging = (rng.dirichlet(one[part], 40_000) for part in (slice(3), slice(3, 5), slice(5, 7)))
        galaxy = kind[:, :1] + kind[:, 1:2]
        reached += np.concatenate([kind, kind[:, 1:2] * arms, galaxy * merging], axis=1).mean(0) / 2
    np.testing.assert_allclose(answer_probabilities(concentrations, SCHEMA)[0], reached, atol=0.01)


def test_probability_of_an_answer_is_the_mean_over_passes_of_products_not_the_product_of_means():
    concentrations = np.ones((2, 1, 7))
    concentrations[0, 0, 1] = concentrations[0, 0, 3] = 98.0
    joint = answer_probabilities(concentrations, SCHEMA)[0, 3]
    assert joint == pytest.approx((98 / 100 * 98 / 99 + 1 / 3 * 1 / 2) / 2)


def test_answers_of_an_always_asked_question_have_their_fractions_as_probability():
    concentrations = passes(1, 6, 8)[0]
    fractions = expected_vote_fractions(torch.from_numpy(concentrations), SCHEMA).numpy()
    np.testing.assert_allclose(answer_probabilities(concentrations, SCHEMA)[:, :3], fractions[:, :3])


def test_working_in_parts_changes_nothing(monkeypatch):
    concentrations = passes(3, 25, 9).astype(np.float32)
    whole = fraction_posterior(concentrations, SCHEMA), answer_probabilities(concentrations, SCHEMA)
    monkeypatch.setattr(posterior, "CHUNK", 60)
    parts = fraction_posterior(concentrations, SCHEMA), answer_probabilities(concentrations, SCHEMA)
    np.testing.assert_allclose(parts[0].lower, whole[0].lower, rtol=1e-12)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12)


def test_the_only_answer_of_a_question_has_all_votes():
    schema = Schema.from_tree({"seen": {"answers": ["yes"]}, "ring": {"answers": ["yes", "no"]}})
    found = fraction_posterior(np.array([[[2.0, 3.0, 4.0]], [[5.0, 9.0, 1.0]]]), schema)
    assert found.lower[0, 0] == found.upper[0, 0] == found.mean[0, 0] == 1


def test_shapes_are_those_of_the_catalog():
    schema = load_schema("decals_dr5")
    concentrations = np.random.default_rng(0).uniform(1, 101, (2, 7, 34))
    found = fraction_posterior(concentrations, schema)
    assert found.mean.shape == found.lower.shape == found.upper.shape == (7, 34)
    assert fraction_quantiles(concentrations, schema, [0.1, 0.2, 0.3]).shape == (3, 7, 34)
    assert fraction_posterior(concentrations[:, :0], schema).lower.shape == (0, 34)
    assert (found.lower < found.mean).all()
    assert (found.mean < found.upper).all()
