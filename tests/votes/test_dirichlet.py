import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import dirichlet_multinomial

from rarezoo.votes import Schema, expected_vote_fractions, load_schema, vote_nll

DR5 = load_schema("decals_dr5")


def draw(schema, batch, seed, dtype=torch.float64, high=100.0, votes=40):
    rng = np.random.default_rng(seed)
    concentrations = rng.uniform(0.1, high, (batch, len(schema.label_cols)))
    counts = rng.integers(0, votes, (batch, len(schema.label_cols)))
    return torch.tensor(concentrations, dtype=dtype), torch.tensor(counts, dtype=dtype)


def scipy_nll(concentrations, counts, schema):
    columns = []
    for question in schema.questions:
        answers = slice(question.start, question.stop)
        alpha, votes = concentrations[:, answers].double().numpy(), counts[:, answers].numpy().astype(int)
        columns.append([-dirichlet_multinomial.logpmf(v, a, v.sum()) for a, v in zip(alpha, votes, strict=True)])
    return np.array(columns).T


def test_equals_scipy_in_float64():
    concentrations, counts = draw(DR5, 20, 0)
    np.testing.assert_allclose(
        vote_nll(concentrations, counts, DR5).numpy(), scipy_nll(concentrations, counts, DR5), rtol=1e-10
    )


def test_equals_scipy_in_float32_at_the_concentrations_that_the_head_gives():
    concentrations, counts = draw(DR5, 50, 1, torch.float32)
    expected = scipy_nll(concentrations, counts, DR5)
    np.testing.assert_allclose(vote_nll(concentrations, counts, DR5).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_question_without_votes_adds_nothing_to_the_loss_or_its_gradient():
    concentrations, counts = draw(DR5, 8, 2, torch.float32)
    question = DR5.questions[3]
    counts[:, question.start : question.stop] = 0
    concentrations.requires_grad_()
    loss = vote_nll(concentrations, counts, DR5)
    loss.sum().backward()
    assert (loss[:, 3] == 0).all()
    assert (concentrations.grad[:, question.start : question.stop] == 0).all()


def test_gradient_is_right():
    concentrations, counts = draw(DR5, 3, 3)
    torch.autograd.gradcheck(lambda c: vote_nll(c, counts, DR5), concentrations.requires_grad_())


def test_autocast_does_not_lower_the_precision():
    concentrations, counts = draw(DR5, 8, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vote_nll(concentrations, counts, DR5)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, vote_nll(concentrations, counts, DR5))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_probabilities_of_all_outcomes_of_any_tree_are_those_of_scipy(sizes, seed):
    schema = Schema.from_tree({f"q{i}": {"answers": [f"a{j}" for j in range(n)]} for i, n in enumerate(sizes)})
    concentrations, counts = draw(schema, 2, seed, votes=6)
    np.testing.assert_allclose(
        vote_nll(concentrations, counts, schema).numpy(),
        scipy_nll(concentrations, counts, schema),
        rtol=1e-9,
        atol=1e-9,
    )


def test_expected_vote_fractions_sum_to_one_within_each_question():
    concentrations, _ = draw(DR5, 5, 6)
    fractions = expected_vote_fractions(concentrations, DR5)
    torch.testing.assert_close(
        fractions @ DR5.membership.double(), torch.ones(5, len(DR5.questions), dtype=torch.float64)
    )
    first = DR5.questions[0]
    answers = slice(first.start, first.stop)
    torch.testing.assert_close(
        fractions[:, answers], concentrations[:, answers] / concentrations[:, answers].sum(1, keepdim=True)
    )


@pytest.mark.parametrize("value", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("votes", [1.0, 1e5])
def test_finite_at_the_edges(value, votes):
    concentrations = torch.full((1, len(DR5.label_cols)), value)
    assert torch.isfinite(vote_nll(concentrations, torch.full_like(concentrations, votes), DR5)).all()
