"""Posterior of the vote fractions: credible intervals, of one pass or of several, and probabilities along the tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize.elementwise import find_root
from scipy.special import betainc, betaincinv

from rarezoo.votes.dirichlet import expected_vote_fractions, question_totals
from rarezoo.votes.schema import Schema

Floats = NDArray[np.float64]

# Numbers that are worked on at a time: some tens of MB, whatever the size of the survey.
CHUNK = 2**20
# Quantiles of single passes are exact to about ten digits; the bracket of the mixture's is widened by more than that.
SLACK = 1e-7


@dataclass(frozen=True, eq=False)
class FractionPosterior:
    """Posterior of the vote fractions of many galaxies.

    Attributes
    ----------
    mean, lower, upper : (batch, answers), the central credible interval and the mean
    level : posterior probability between lower and upper
    """

    mean: Floats
    lower: Floats
    upper: Floats
    level: float


def fraction_posterior(concentrations: ArrayLike, schema: Schema, level: float = 0.9) -> FractionPosterior:
    """Mean and central credible interval of the fraction of volunteers who give each answer, when they are asked.

    In one pass a fraction has a Beta distribution, the marginal of its question's Dirichlet distribution. Several
    passes (MC dropout, checkpoints) are a mixture with equal weights, and the interval is the mixture's own: it widens
    where passes disagree, which a mean or median of their intervals would not.

    Parameters
    ----------
    concentrations : (batch, answers) or (passes, batch, answers), each > 0
    schema : groups the answers into questions
    level : posterior probability of the interval, between 0 and 1
    """
    passes = _as_passes(concentrations)
    lower, upper = fraction_quantiles(passes, schema, ((1 - level) / 2, (1 + level) / 2))
    mean = _by_rows(passes, lambda part: expected_vote_fractions(torch.from_numpy(part), schema).mean(0).numpy())
    return FractionPosterior(mean, lower, upper, level)


def fraction_quantiles(concentrations: ArrayLike, schema: Schema, probabilities: Sequence[float]) -> Floats:
    """Quantiles of the posterior of the vote fractions; of several passes, those of their mixture.

    Parameters
    ----------
    concentrations : (batch, answers) or (passes, batch, answers), each > 0
    schema : groups the answers into questions
    probabilities : each between 0 and 1

    Returns
    -------
    (probabilities, batch, answers) float64
    """
    passes = _as_passes(concentrations)

    def quantiles(part: Floats) -> Floats:
        totals = question_totals(torch.from_numpy(part), schema).numpy()[..., schema.question_of().numpy()]
        rest = np.maximum(totals - part, 0)
        return np.stack([_mixture_quantile(part, rest, q) for q in probabilities], axis=1)

    return np.moveaxis(_by_rows(passes, quantiles), 1, 0)


def answer_probabilities(concentrations: ArrayLike, schema: Schema) -> Floats:
    """Probability that a volunteer is asked a question and gives each answer.

    That is the probability that the question is asked, from the answers that lead to it, times the expected fraction;
    of several passes, the mean of their products.

    Parameters
    ----------
    concentrations : (batch, answers) or (passes, batch, answers), each > 0
    schema : decision tree

    Returns
    -------
    (batch, answers) float64
    """
    question_of = schema.question_of()

    def probabilities(part: Floats) -> Floats:
        fractions = expected_vote_fractions(torch.from_numpy(part), schema)
        return (schema.p_asked(fractions).index_select(-1, question_of) * fractions).mean(0).numpy()

    return _by_rows(_as_passes(concentrations), probabilities)


def _as_passes(concentrations: ArrayLike) -> NDArray[np.floating]:
    passes = np.asarray(concentrations)
    return passes if passes.ndim == 3 else passes[None]


def _by_rows(passes: NDArray[np.floating], function: Callable[[Floats], Floats]) -> Floats:
    # The function turns (passes, rows, answers) into (rows, ...).
    n_passes, n_rows, n_answers = passes.shape
    step = max(1, CHUNK // (n_passes * n_answers))
    parts = [function(passes[:, row : row + step].astype(np.float64)) for row in range(0, max(n_rows, 1), step)]
    return np.concatenate(parts)


def _mixture_quantile(a: Floats, b: Floats, probability: float) -> Floats:
    # a and b are (passes, rows, answers), parameters of Beta distributions; b is 0 where a question has one answer.
    sure = b[0] == 0
    with np.errstate(invalid="ignore"):
        of_passes = np.where(sure, 1.0, betaincinv(a, b, probability))
    low: Floats = of_passes.min(0)
    high: Floats = of_passes.max(0)
    # The mixture's quantile lies between the least and the greatest of its components'.
    apart = high - low > SLACK * high
    if apart.any():
        bracket = (low[apart] * (1 - SLACK), np.minimum(high[apart] * (1 + SLACK), 1.0))
        parameters = (*a[:, apart], *b[:, apart])
        tolerances = {"xatol": 1e-12, "xrtol": 1e-9}
        low[apart] = find_root(_excess(probability, len(a)), bracket, args=parameters, tolerances=tolerances).x
    return low


def _excess(probability: float, n_passes: int) -> Callable[..., Floats]:
    def excess(x: Floats, *parameters: Floats) -> Floats:
        below: Floats = sum(betainc(parameters[i], parameters[n_passes + i], x) for i in range(n_passes)) / n_passes
        return below - probability

    return excess
