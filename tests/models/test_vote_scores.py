import itertools
import math

import pytest
import torch

from rarezoo.models.scores import VoteScores
from rarezoo.votes import Schema, load_schema, vote_nll


def votes(schema: Schema, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Concentrations, and counts that leave half of the questions of each galaxy unasked."""
    generator = torch.Generator().manual_seed(seed)
    n_answers, n_questions = len(schema.label_cols), len(schema.questions)
    concentrations = 1 + 50 * torch.rand(n, n_answers, generator=generator)
    asked = torch.rand(n, n_questions, generator=generator) < 0.5
    counts = torch.randint(1, 9, (n, n_answers), generator=generator) * (asked.float() @ schema.membership.T)
    return concentrations, counts.float()


def scores_of(schema: Schema, *batches) -> VoteScores:
    scores = VoteScores(schema)
    for concentrations, counts in batches:
        scores.update(vote_nll(concentrations, counts, schema), concentrations, counts)
    return scores


@pytest.mark.parametrize("name", ["rings", "decals_dr5", "gz_evo_v2"])
def test_losses_are_means_over_the_galaxies_that_were_asked(name):
    schema = load_schema(name)
    concentrations, counts = votes(schema, 20)
    result = scores_of(schema, (concentrations, counts)).result()
    losses = vote_nll(concentrations.double(), counts.double(), schema)
    assert result.n_galaxies == 20
    assert result.loss == pytest.approx(float(losses.sum(1).mean()), rel=1e-6)
    asked = counts @ schema.membership > 0
    for index in range(len(schema.questions)):
        assert result.per_question[index] == pytest.approx(float(losses[asked[:, index], index].mean()), rel=1e-6)


def test_losses_of_a_campaign_are_means_over_its_own_galaxies():
    schema = load_schema("decals_all_campaigns")
    concentrations, counts = votes(schema, 30)
    of_campaign = {
        name: [index for index, question in enumerate(schema.questions) if question.name.endswith(f"-{name}")]
        for name in ("dr12", "dr5", "dr8")
    }
    answers = {name: (schema.membership[:, questions].sum(1) > 0).float() for name, questions in of_campaign.items()}
    for row in range(30):
        counts[row] *= answers[("dr12", "dr5", "dr8")[row % 3]]
    result = scores_of(schema, (concentrations, counts)).result()
    losses = vote_nll(concentrations, counts, schema)
    assert set(result.per_campaign) == set(of_campaign)
    for name, questions in of_campaign.items():
        own = losses[(counts * answers[name]).sum(1) > 0][:, questions].sum(1).mean()
        assert result.per_campaign[name] == pytest.approx(float(own), rel=1e-6)


def test_uneven_batches_weigh_as_the_galaxies_in_them_do():
    schema = load_schema("decals_dr5")
    concentrations, counts = votes(schema, 21)
    whole = scores_of(schema, (concentrations, counts)).result()
    cuts = [0, 16, 16, 20, 21]
    parts = [(concentrations[a:b], counts[a:b]) for a, b in itertools.pairwise(cuts)]
    found = scores_of(schema, *parts).result()
    assert found.numbers(schema) == pytest.approx(whole.numbers(schema), rel=1e-12)


def test_question_that_nobody_was_asked_has_no_number():
    schema = load_schema("decals_dr5")
    concentrations, counts = votes(schema, 10)
    counts[:, schema.questions[3].start : schema.questions[3].stop] = 0
    result = scores_of(schema, (concentrations, counts)).result()
    assert math.isnan(result.per_question[3])
    numbers = result.numbers(schema)
    assert f"loss_{schema.questions[3].name}" not in numbers
    assert all(math.isfinite(value) for value in numbers.values())


def test_tree_without_campaigns_has_no_number_of_one():
    schema = load_schema("desi")
    numbers = scores_of(schema, votes(schema, 10)).result().numbers(schema)
    assert not [name for name in numbers if "campaign" in name]
