import sys

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from rarezoo.votes import Schema, calibration, calibration_sums
from rarezoo.votes.calibration import LEVELS, PIT_BINS, beta_binomial_steps

SCHEMA = Schema.from_tree(
    {
        "kind": {"answers": ["smooth", "disk", "artifact"]},
        "arms": {"answers": ["yes", "no"], "asked_after": "kind_disk"},
        "count": {"answers": ["1", "2", "3", "4", "many"], "asked_after": "arms_yes"},
    }
)
GALAXIES = 4000


def drawn(seed, n_galaxies=GALAXIES, most=40):
    """Concentrations, and votes drawn from the model that has them; about a quarter of the questions is not asked."""
    rng = np.random.default_rng(seed)
    concentrations = np.exp(rng.normal(1.0, 1.2, (n_galaxies, len(SCHEMA.label_cols))))
    counts = np.zeros_like(concentrations)
    for question in SCHEMA.questions:
        part = slice(question.start, question.stop)
        gamma = rng.gamma(concentrations[:, part])
        volunteers = rng.integers(1, most, n_galaxies) * (rng.random(n_galaxies) > 0.25)
        counts[:, part] = rng.multinomial(volunteers, gamma / gamma.sum(1, keepdims=True))
    return torch.from_numpy(concentrations), torch.from_numpy(counts)


def figures(concentrations, counts):
    return calibration(calibration_sums(concentrations, counts, SCHEMA), SCHEMA)


def test_shapes_are_those_of_the_tree():
    found = figures(*drawn(0, 100))
    assert found.levels.shape == (len(LEVELS),)
    assert found.coverage.shape == (10, len(LEVELS))
    assert found.pit.shape == (10, PIT_BINS)
    assert found.predicted.shape == found.observed.shape == found.weight.shape
    assert found.weight.shape[0] == len(found.ece) == len(found.n_asked) == 3


@pytest.mark.parametrize("most", [4, 40, 250])
def test_votes_drawn_from_the_model_are_covered_as_often_as_the_level_says(most):
    found = figures(*drawn(1, most=most))
    sampling_error = np.sqrt(found.levels * (1 - found.levels) / (0.75 * GALAXIES))
    assert (np.abs(found.coverage - found.levels) < 4 * sampling_error).all()


@pytest.mark.parametrize("most", [4, 40])
def test_transform_of_votes_drawn_from_the_model_is_flat(most):
    found = figures(*drawn(2, most=most))
    np.testing.assert_allclose(found.pit.sum(1), 1)
    assert (np.abs(found.pit - 1 / PIT_BINS) < 4.5 * np.sqrt(1 / PIT_BINS / (0.75 * GALAXIES))).all()


def test_votes_drawn_from_the_model_have_a_small_calibration_error():
    assert (figures(*drawn(3)).ece < 0.015).all()


def test_overconfidence_shows_as_low_coverage_and_heaps_at_both_ends():
    concentrations, counts = drawn(4, most=200)
    found = figures(concentrations * 30, counts)
    assert (found.coverage[:, LEVELS.index(0.9)] < 0.7).all()
    assert (found.pit[:, 0] > 1.8 / PIT_BINS).all()
    assert (found.pit[:, -1] > 1.8 / PIT_BINS).all()
    # The mean fractions are right all the same, which is what reliability looks at.
    assert (found.ece < 0.015).all()


def test_lack_of_confidence_shows_as_high_coverage():
    rng = np.random.default_rng(5)
    concentrations = torch.full((2000, 10), 1.0, dtype=torch.float64)
    counts = torch.from_numpy(np.hstack([rng.multinomial(40, np.full(n, 1 / n), 2000) for n in (3, 2, 5)]))
    assert (figures(concentrations, counts).coverage[:, LEVELS.index(0.5)] > 0.8).all()


def test_wrong_fractions_show_in_reliability():
    concentrations, counts = drawn(6)
    concentrations[:, 3] *= 4
    found = figures(concentrations, counts)
    assert found.ece[1] > 0.1
    assert (found.ece[[0, 2]] < 0.015).all()


def test_transform_and_coverage_are_those_of_scipy_and_many_random_draws():
    concentrations, counts = drawn(7, 60)
    found = figures(concentrations, counts)
    rng = np.random.default_rng(8)
    alpha, votes = concentrations.numpy(), counts.numpy()
    for question in SCHEMA.questions:
        part = slice(question.start, question.stop)
        asked = votes[:, part].sum(1) > 0
        total, n = alpha[asked, part].sum(1), votes[asked, part].sum(1)
        for answer in range(question.start, question.stop):
            model = betabinom(n, alpha[asked, answer], total - alpha[asked, answer])
            below, at = model.cdf(votes[asked, answer] - 1), model.pmf(votes[asked, answer])
            draws = below + at * rng.random((20_000, asked.sum()))
            share = np.histogram(draws, PIT_BINS, (0, 1))[0] / draws.size
            np.testing.assert_allclose(found.pit[answer], share, atol=2e-3)
            inside = [np.abs(draws - 0.5) < level / 2 for level in found.levels]
            np.testing.assert_allclose(found.coverage[answer], [i.mean() for i in inside], atol=4e-3)


@pytest.mark.parametrize("high", [1e-3, 1.0, 60.0, 1e5])
def test_beta_binomial_steps_are_those_of_scipy(high):
    rng = np.random.default_rng(9)
    n = rng.integers(1, 300, 200)
    x = rng.integers(0, n + 1)
    a, b = rng.uniform(high / 3, high, 200), rng.uniform(0.5, 60, 200)
    below, at = beta_binomial_steps(*(torch.from_numpy(v.astype(float)) for v in (x, n, a, b)))
    np.testing.assert_allclose(at.numpy(), betabinom.pmf(x, n, a, b), rtol=1e-7, atol=1e-300)
    np.testing.assert_allclose(below.numpy(), betabinom.cdf(x - 1, n, a, b), rtol=1e-6, atol=1e-12)


def test_sums_of_parts_add_up_to_those_of_the_whole():
    concentrations, counts = drawn(10, 300)
    whole = calibration_sums(concentrations, counts, SCHEMA)
    parts = [calibration_sums(concentrations[i::3], counts[i::3], SCHEMA) for i in range(3)]
    for name, total in whole.items():
        assert total.dtype == torch.float64
        torch.testing.assert_close(sum(part[name] for part in parts), total)


def test_working_in_parts_changes_nothing(monkeypatch):
    concentrations, counts = drawn(11, 50)
    whole = calibration_sums(concentrations, counts, SCHEMA)
    # By name, since the package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["rarezoo.votes.calibration"], "CHUNK", 70)
    torch.testing.assert_close(calibration_sums(concentrations, counts, SCHEMA), whole)


def test_reliability_weighs_each_vote_alike():
    concentrations = torch.tensor([[1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 2)
    counts = torch.zeros(2, 10)
    counts[:, 3:5] = torch.tensor([[3.0, 7.0], [0.0, 30.0]])
    found = figures(concentrations, counts)
    assert found.predicted[1, 2] == pytest.approx(0.25)
    assert found.observed[1, 2] == pytest.approx(3 / 40)
    assert found.observed[1, 7] == pytest.approx(37 / 40)
    assert found.weight[1, 2] == found.weight[1, 7] == 40
    assert found.ece[1] == pytest.approx(0.25 - 3 / 40)


def test_the_same_fraction_for_every_answer_is_not_taken_for_calibrated():
    counts = drawn(13)[1]
    counts[:, 0:3] = torch.tensor([9.0, 1.0, 0.0])
    found = figures(torch.full_like(counts, 5.0), counts)
    assert found.observed[0, 3] == pytest.approx(found.predicted[0, 3])
    assert found.ece[0] == pytest.approx((0.9 - 1 / 3 + 1 / 3 - 0.1 + 1 / 3) / 3)


def test_questions_without_votes_count_nowhere():
    concentrations, counts = drawn(12, 200)
    counts[:, 3:5] = 0
    found = figures(concentrations, counts)
    assert list(found.n_asked) == [int((counts[:, a:b].sum(1) > 0).sum()) for a, b in ((0, 3), (3, 5), (5, 10))]
    assert np.isnan(found.coverage[3:5]).all()
    assert np.isnan(found.pit[3:5]).all()
    assert np.isnan(found.ece[1])
    assert found.weight[1].sum() == 0
    assert np.isfinite(found.coverage[:3]).all()


def test_fractional_votes_are_rounded_for_the_coverage_and_not_for_the_reliability():
    concentrations, counts = drawn(13, 200)
    debiased = counts + 0.3 * (counts > 0)
    rounded, as_they_are = (
        calibration_sums(concentrations, counts, SCHEMA),
        calibration_sums(concentrations, debiased, SCHEMA),
    )
    torch.testing.assert_close(rounded["pit"], as_they_are["pit"])
    assert as_they_are["observed"].sum() == pytest.approx(debiased.sum().item())


def test_an_empty_batch_adds_nothing():
    sums = calibration_sums(torch.ones(0, 10), torch.zeros(0, 10), SCHEMA)
    assert all((total == 0).all() for total in sums.values())
    assert sums["pit"].shape[0] == 10


def test_the_only_answer_of_a_question_is_always_as_predicted():
    schema = Schema.from_tree({"seen": {"answers": ["yes"]}})
    found = calibration(calibration_sums(torch.full((5, 1), 3.0), torch.full((5, 1), 7.0), schema), schema)
    np.testing.assert_allclose(found.pit, 1 / PIT_BINS)
    np.testing.assert_allclose(found.coverage[0], found.levels)
    assert (found.predicted[0, -1], found.observed[0, -1], found.weight[0, -1]) == (1, 1, 35)


def test_sums_of_another_tree_are_refused():
    with pytest.raises(ValueError, match="the tree has 1"):
        calibration(calibration_sums(*drawn(14, 5), SCHEMA), Schema.from_tree({"seen": {"answers": ["yes"]}}))


def test_half_precision_gives_float64_sums():
    concentrations, counts = drawn(15, 100)
    halved = concentrations.bfloat16()
    exact = calibration_sums(halved.double(), counts, SCHEMA)
    torch.testing.assert_close(calibration_sums(halved, counts.bfloat16(), SCHEMA), exact)
