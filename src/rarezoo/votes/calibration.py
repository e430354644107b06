"""Whether predicted vote distributions agree with the votes: coverage, probability integral transform, reliability.

Sums are collected batch by batch and device by device, since they add, and are turned into figures once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarezoo.votes.dirichlet import question_totals
from rarezoo.votes.schema import Schema

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PIT_BINS = 20
RELIABILITY_BINS = 10
# The transform is summed at these steps; every level's interval, and every second step's bin, begins and ends on one.
STEPS = 40
# Numbers that are worked on at a time.
CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Calibration:
    """Agreement of predicted and observed votes. A figure of an answer or bin without votes is NaN.

    Attributes
    ----------
    levels : (L,) probabilities of the central predictive intervals
    coverage : (answers, L), share of the galaxies whose vote count falls into the interval; the level itself, where the
        model is right
    pit : (answers, bins), share of the galaxies in equal bins of the probability integral transform; 1 / bins in each,
        where the model is right; a heap in the middle shows too wide predictions, heaps at both ends too narrow ones
    predicted, observed : (questions, bins), mean predicted and observed vote fraction of a question's answers, in equal
        bins of the predicted fraction; each vote weighs the same
    weight : (questions, bins), number of votes that were cast on the questions of the answers in the bin
    ece : (questions,), expected calibration error: the mean of |observed - predicted| by weight, in bins of each answer
        for itself (class-wise; Kull et al. 2019, NeurIPS 32, Sec. 2) and then over the question's answers. Bins of all
        answers together would let a model pass that predicts 1/K for each of K, as their fractions add to 1.
    n_asked : (questions,), galaxies with votes on the question
    """

    levels: NDArray[np.float64]
    coverage: NDArray[np.float64]
    pit: NDArray[np.float64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    weight: NDArray[np.float64]
    ece: NDArray[np.float64]
    n_asked: NDArray[np.int64]


@torch.no_grad()
def calibration_sums(concentrations: Tensor, counts: Tensor, schema: Schema) -> dict[str, Tensor]:
    """What a batch adds to the sums that `calibration` reads.

    Coverage and transform compare the votes for each answer with their predicted distribution, which is beta-binomial.
    It has no fractions, so they take counts rounded to whole votes; reliability takes the counts as they are.

    Parameters
    ----------
    concentrations : (batch, answers), each > 0
    counts : (batch, answers), numbers of votes >= 0, whole or fractional (debiased)
    schema : groups the answers into questions

    Returns
    -------
    float64 tensors that add over batches and processes; on the CPU where the device has no float64
    """
    device = torch.device("cpu") if counts.device.type == "mps" else counts.device
    alpha, votes = concentrations.to(device, torch.float64), counts.to(device, torch.float64)
    n_votes, totals = question_totals(votes, schema), question_totals(alpha, schema)
    return {
        "n_asked": (n_votes > 0).sum(0, dtype=torch.float64),
        **_reliability_sums(alpha, votes, n_votes, totals, schema),
        "pit": _pit_sums(alpha, votes.round(), totals, schema),
    }


def calibration(sums: Mapping[str, Tensor], schema: Schema) -> Calibration:
    """Figures of merit from the sums over all galaxies.

    Parameters
    ----------
    sums : those of `calibration_sums`, added up
    schema : the same
    """
    pit, weight, predicted, observed, n_asked = (
        sums[name].cpu().numpy() for name in ("pit", "weight", "predicted", "observed", "n_asked")
    )
    if len(pit) != len(schema.label_cols):
        raise ValueError(f"sums over {len(pit)} answers, and the tree has {len(schema.label_cols)}")
    ends = [round(STEPS * (1 - level) / 2) for level in LEVELS]
    off, by_question = np.abs(observed - predicted), schema.membership.numpy().astype(np.float64).T
    predicted, observed, weight = (by_question @ each for each in (predicted, observed, weight))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = pit / pit[:, -1:]
        return Calibration(
            levels=np.array(LEVELS),
            coverage=share[:, [STEPS - end for end in ends]] - share[:, ends],
            pit=np.diff(share[:, :: STEPS // PIT_BINS], axis=1),
            predicted=predicted / weight,
            observed=observed / weight,
            weight=weight,
            ece=(by_question @ off).sum(1) / weight.sum(1),
            n_asked=n_asked.round().astype(np.int64),
        )


def _reliability_sums(
    alpha: Tensor, votes: Tensor, n_votes: Tensor, totals: Tensor, schema: Schema
) -> dict[str, Tensor]:
    question_of = schema.question_of(votes.device)
    fraction = alpha / totals[:, question_of]
    weight = n_votes[:, question_of]
    bins = (fraction * RELIABILITY_BINS).long().clamp_(max=RELIABILITY_BINS - 1)
    answer = torch.arange(len(question_of), device=votes.device)
    cells = (answer * RELIABILITY_BINS + bins).flatten()
    shape = (len(question_of), RELIABILITY_BINS)
    terms = {"predicted": weight * fraction, "observed": votes, "weight": weight}
    nothing = votes.new_zeros(shape[0] * shape[1])
    return {name: nothing.index_add(0, cells, term.flatten()).view(shape) for name, term in terms.items()}


def _pit_sums(alpha: Tensor, votes: Tensor, totals: Tensor, schema: Schema) -> Tensor:
    # (answers, STEPS + 1), the sum over galaxies of the conditional distribution function of the transform of a count x
    # at u (Czado, Gneiting & Held 2009, Biometrics 65, 1254, eq. 2): 0 below F(x - 1), 1 above F(x), a line between.
    # It is the expectation over the random draws of the randomised transform, so coverage needs no random draw either.
    question_of = schema.question_of(votes.device)
    n_votes = question_totals(votes, schema)[:, question_of]
    rows, answers = (n_votes > 0).nonzero(as_tuple=True)
    steps = torch.linspace(0, 1, STEPS + 1, dtype=votes.dtype, device=votes.device)
    sums = votes.new_zeros(len(question_of), STEPS + 1)
    x, n, a = votes[rows, answers], n_votes[rows, answers], alpha[rows, answers]
    b = (totals[:, question_of][rows, answers] - a).clamp_min(torch.finfo(a.dtype).tiny)
    parts = torch.bincount(((x + STEPS).cumsum(0) / CHUNK).long()).tolist() if len(x) else []
    columns: list[tuple[Any, ...]] = [torch.split(tensor, parts) for tensor in (answers, x, n, a, b)]
    for answer, *parameters in zip(*columns, strict=True):
        below, at = beta_binomial_steps(*parameters)
        line = (steps - below[:, None]) / at.clamp_min(torch.finfo(at.dtype).tiny)[:, None]
        sums.index_add_(0, answer, line.clamp_(0, 1))
    return sums


def beta_binomial_steps(x: Tensor, n: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of fewer than x, and of exactly x votes, of n.

    The terms below x follow from that at x by the ratio of neighbours, summed in logarithms, all lists end to end.

    Parameters
    ----------
    x, n : (entries,) whole numbers in float64, 0 <= x <= n
    a, b : (entries,) float64, parameters of the beta-binomial distribution

    Returns
    -------
    (entries,), (entries,)
    """
    log_at = _log_beta(x + a, n - x + b) - _log_beta(a, b) - _log_beta(x + 1, n - x + 1) - torch.log1p(n)
    lengths = x.long()
    entry = torch.arange(len(x), device=x.device).repeat_interleave(lengths)
    ends = lengths.cumsum(0)
    # k runs from x down to 1 in each list: the ratio of the terms at k - 1 and at k.
    k = (ends[entry] - torch.arange(len(entry), device=x.device)).to(x)
    left = n[entry] - k
    ratio = k * (b[entry] + left) / ((left + 1) * (a[entry] + k - 1))
    along = ratio.log_().cumsum(0)
    before = torch.cat([along.new_zeros(1), along])[ends - lengths]
    terms = torch.exp(along - before[entry] + log_at[entry])
    return torch.zeros_like(log_at).index_add(0, entry, terms).clamp_(max=1), log_at.exp()


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
