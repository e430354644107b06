import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import dirichlet_multinomial

from rarezoo.votes import Schema, expected_vote_fractions, load_schema, question_totals, vote_nll

DR5 = load_schema("decals_dr5")
EVO = load_schema("gz_evo_v2")


@pytest.fixture(params=["questions with votes", "all questions"])
def way(request, monkeypatch):
    """Both ways of computing: the one of the CPU, and the one of other devices and of compiled graphs."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "all questions")


def draw(schema, batch, seed, dtype=torch.float64, high=100.0, votes=40):
    rng = np.random.default_rng(seed)
    concentrations = rng.uniform(0.1, high, (batch, len(schema.label_cols)))
    counts = rng.integers(0, votes, (batch, len(schema.label_cols)))
    return torch.tensor(concentrations, dtype=dtype), torch.tensor(counts, dtype=dtype)


def per_question(function, concentrations, counts, schema):
    rows = []
    for alpha, votes in zip(concentrations.double().numpy(), counts.double().numpy(), strict=True):
        rows.append([function(alpha[q.start : q.stop], votes[q.start : q.stop]) for q in schema.questions])
    return np.array(rows)


def scipy_nll(concentrations, counts, schema):
    return per_question(
        lambda alpha, votes: -dirichlet_multinomial.logpmf(votes.astype(int), alpha, int(votes.sum())),
        concentrations,
        counts,
        schema,
    )


def exact_nll(concentrations, counts, schema):
    """With 60 digits, so that no cancellation counts."""

    def log_ways(a, x):
        a, x = mpmath.mpf(float(a)), mpmath.mpf(float(x))
        return mpmath.loggamma(x + 1) + mpmath.loggamma(a) - mpmath.loggamma(a + x)

    def nll(alpha, votes):
        total = mpmath.fsum(mpmath.mpf(float(a)) for a in alpha)
        answers = mpmath.fsum(log_ways(a, x) for a, x in zip(alpha, votes, strict=True))
        n, exact_total = mpmath.fsum(map(float, votes)), total
        of_total = mpmath.loggamma(n + 1) + mpmath.loggamma(exact_total) - mpmath.loggamma(exact_total + n)
        return float(answers - of_total)

    with mpmath.workdps(60):
        return per_question(nll, concentrations, counts, schema)


def exact_gradient(concentrations, counts, schema):
    def gradient(alpha, votes):
        total, n = mpmath.fsum(map(float, alpha)), mpmath.fsum(map(float, votes))
        of_total = mpmath.digamma(total + n) - mpmath.digamma(total)
        pairs = [(mpmath.mpf(float(a)), float(x)) for a, x in zip(alpha, votes, strict=True)]
        return [float(of_total + mpmath.digamma(a) - mpmath.digamma(a + x)) for a, x in pairs]

    with mpmath.workdps(60):
        rows = [
            [value for q in schema.questions for value in gradient(alpha[q.start : q.stop], votes[q.start : q.stop])]
            for alpha, votes in zip(concentrations.double().numpy(), counts.double().numpy(), strict=True)
        ]
    return np.array(rows)


def gradient_of(concentrations, counts, schema):
    concentrations = concentrations.clone().requires_grad_()
    vote_nll(concentrations, counts, schema).sum().backward()
    return concentrations.grad


# Terms of up to 600 nats nearly cancel, so 1e-12 of them is what float64 leaves; scipy adds the same terms.
@pytest.mark.usefixtures("way")
def test_equals_scipy_in_float64():
    concentrations, counts = draw(DR5, 20, 0)
    nll = vote_nll(concentrations, counts, DR5)
    assert nll.dtype == torch.float64
    np.testing.assert_allclose(nll.numpy(), scipy_nll(concentrations, counts, DR5), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("way")
def test_equals_scipy_in_float32_at_the_concentrations_that_the_head_gives():
    concentrations, counts = draw(DR5, 50, 1, torch.float32)
    expected = scipy_nll(concentrations, counts, DR5)
    np.testing.assert_allclose(vote_nll(concentrations, counts, DR5).numpy(), expected, rtol=1e-5)


# At a concentration of 1e5, lgamma is 1e6 and its last float64 digit 1e-10.
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_equals_the_exact_value_and_gradient_over_the_whole_range(dtype, rtol):
    rng = np.random.default_rng(2)
    shape = (6, len(DR5.label_cols))
    concentrations = torch.tensor(10 ** rng.uniform(-3, 5, shape), dtype=dtype)
    counts = torch.tensor(np.floor(10 ** rng.uniform(-1, 5, shape)), dtype=dtype)
    nll, gradient = vote_nll(concentrations, counts, DR5), gradient_of(concentrations, counts, DR5)
    np.testing.assert_allclose(nll.numpy(), exact_nll(concentrations, counts, DR5), rtol=rtol, atol=3e-9)
    expected = exact_gradient(concentrations, counts, DR5)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=rtol, atol=1e-13)


@pytest.mark.usefixtures("way")
def test_fractional_votes_are_taken_as_they_are():
    concentrations, counts = draw(DR5, 5, 3)
    counts = counts * 0.37
    nll = vote_nll(concentrations, counts, DR5)
    np.testing.assert_allclose(nll.numpy(), exact_nll(concentrations, counts, DR5), rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("way")
def test_question_without_votes_adds_nothing_to_the_loss_or_its_gradient():
    concentrations, counts = draw(DR5, 8, 2, torch.float32)
    question = DR5.questions[3]
    counts[:, question.start : question.stop] = 0
    assert (vote_nll(concentrations, counts, DR5)[:, 3] == 0).all()
    assert (gradient_of(concentrations, counts, DR5)[:, question.start : question.stop] == 0).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_without_any_votes_has_no_loss(rows):
    concentrations = torch.full((rows, len(DR5.label_cols)), 7.0)
    counts = torch.zeros_like(concentrations)
    assert torch.equal(vote_nll(concentrations, counts, DR5), torch.zeros(rows, len(DR5.questions)))
    assert torch.equal(gradient_of(concentrations, counts, DR5), counts)


@pytest.mark.usefixtures("way")
def test_a_count_that_is_not_a_number_shows_in_the_loss():
    concentrations, counts = draw(DR5, 2, 4)
    counts[0, 0] = torch.nan
    nll = vote_nll(concentrations, counts, DR5)
    assert nll[0, 0].isnan()
    assert nll.isnan().sum() == 1


@pytest.mark.usefixtures("way")
def test_gradient_is_that_of_the_loss():
    concentrations, counts = draw(DR5, 3, 3)
    counts[:, 3:5] = 0
    torch.autograd.gradcheck(lambda c: vote_nll(c, counts, DR5), concentrations.requires_grad_())


def test_gradient_follows_the_weight_of_each_question():
    concentrations, counts = draw(DR5, 2, 5)
    weights = torch.arange(20.0).view(2, 10).double()
    weighted = concentrations.clone().requires_grad_()
    (vote_nll(weighted, counts, DR5) * weights).sum().backward()
    expected = gradient_of(concentrations, counts, DR5) * weights[:, DR5.question_of()]
    torch.testing.assert_close(weighted.grad, expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(half):
    concentrations, counts = draw(DR5, 8, 4, torch.float32)
    with torch.autocast("cpu", dtype=half):
        inside, gradient = vote_nll(concentrations, counts, DR5), gradient_of(concentrations, counts, DR5)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, vote_nll(concentrations, counts, DR5))
    assert torch.equal(gradient, gradient_of(concentrations, counts, DR5))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_concentrations_in_half_precision_lose_no_more_than_their_own_rounding(half):
    concentrations, counts = draw(DR5, 8, 6, half)
    exact = vote_nll(concentrations.double(), counts.double(), DR5)
    nll = vote_nll(concentrations, counts, DR5)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, exact.float())
    assert gradient_of(concentrations, counts, DR5).dtype == half


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_kind_of_the_counts_does_not_matter(dtype):
    concentrations, counts = draw(DR5, 4, 7)
    assert torch.equal(vote_nll(concentrations, counts.to(dtype), DR5), vote_nll(concentrations, counts, DR5))


def test_both_ways_of_computing_agree_on_a_tree_of_many_campaigns(monkeypatch):
    concentrations, counts = draw(EVO, 16, 8)
    counts[:, 98:] = 0
    packed = vote_nll(concentrations, counts, EVO), gradient_of(concentrations, counts, EVO)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(vote_nll(concentrations, counts, EVO), packed[0])
    torch.testing.assert_close(gradient_of(concentrations, counts, EVO), packed[1])


def test_compiles_in_one_graph():
    concentrations, counts = draw(DR5, 4, 9)
    counts[:, :3] = 0
    compiled = torch.compile(lambda a: vote_nll(a, counts, DR5).sum(), backend="aot_eager", fullgraph=True)
    leaf = concentrations.clone().requires_grad_()
    compiled(leaf).backward()
    torch.testing.assert_close(leaf.grad, gradient_of(concentrations, counts, DR5))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_probabilities_of_all_outcomes_of_any_tree_are_those_of_scipy(sizes, seed):
    schema = Schema.from_tree({f"q{i}": {"answers": [f"a{j}" for j in range(n)]} for i, n in enumerate(sizes)})
    concentrations, counts = draw(schema, 2, seed, votes=6)
    np.testing.assert_allclose(
        vote_nll(concentrations, counts, schema).numpy(),
        scipy_nll(concentrations, counts, schema),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", ["decals_dr5", "gz_evo_v2"])
def test_equals_the_loss_of_zoobot(name):
    zoobot = pytest.importorskip(
        "zoobot.pytorch.training.losses", reason="zoobot is not installed (pip install --no-deps zoobot)"
    )
    schema = load_schema(name)
    concentrations, counts = draw(schema, 20, 10, votes=20)
    counts[torch.arange(20) % 2 == 0, :12] = 0
    pairs = {question.name: [f"_{answer}" for answer in question.answers] for question in schema.questions}
    loss = zoobot.CustomMultiQuestionLoss(pairs, zoobot.get_dirichlet_neg_log_prob)
    expected = loss(concentrations, {column: counts[:, i] for i, column in enumerate(schema.label_cols)})
    # Its multinomial coefficients are float32, whatever the input.
    torch.testing.assert_close(vote_nll(concentrations, counts, schema), expected.double(), rtol=1e-5, atol=2e-5)


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


def test_totals_of_questions_take_any_leading_dimensions():
    values = torch.rand(2, 3, len(DR5.label_cols), dtype=torch.float64)
    torch.testing.assert_close(question_totals(values, DR5), values @ DR5.membership.double())
    torch.testing.assert_close(expected_vote_fractions(values, DR5)[1], expected_vote_fractions(values[1], DR5))


@pytest.mark.parametrize("value", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("votes", [0.0, 1.0, 1e5])
def test_finite_at_the_edges(value, votes):
    concentrations = torch.full((1, len(DR5.label_cols)), value)
    counts = torch.full_like(concentrations, votes)
    assert torch.isfinite(vote_nll(concentrations, counts, DR5)).all()
    assert torch.isfinite(gradient_of(concentrations, counts, DR5)).all()
