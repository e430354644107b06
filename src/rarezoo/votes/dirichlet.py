"""Dirichlet-multinomial likelihood of vote counts (Walmsley et al. 2022, MNRAS 509, 3966, Sec. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from rarezoo.votes.schema import Schema


def vote_nll(concentrations: Tensor, counts: Tensor, schema: Schema) -> Tensor:
    """Negative log-likelihood of the votes on each question, with the multinomial coefficient.

    A question without votes adds exactly 0. Computed in float32 at least, whatever the autocast: in bfloat16 `lgamma`
    errs by several nats.

    Parameters
    ----------
    concentrations : (batch, answers), each > 0
    counts : (batch, answers), numbers of votes >= 0; fractional (debiased) counts are taken as they are
    schema : groups the answers into questions

    Returns
    -------
    (batch, questions), in nats
    """
    with torch.autocast(concentrations.device.type, enabled=False):
        alpha = concentrations if concentrations.dtype == torch.float64 else concentrations.float()
        votes = counts.to(alpha)
        membership = schema.membership.to(alpha)
        per_answer = torch.lgamma(votes + alpha) - torch.lgamma(alpha) - torch.lgamma(votes + 1)
        # lgamma(0 + a) and lgamma(a) may round apart by one unit on some devices; without votes both are left out.
        per_answer = torch.where(votes > 0, per_answer, torch.zeros_like(per_answer))
        n_votes, total = votes @ membership, alpha @ membership
        per_question = torch.lgamma(n_votes + 1) + torch.lgamma(total) - torch.lgamma(n_votes + total)
        log_likelihood = per_answer @ membership + per_question
        return torch.where(n_votes > 0, -log_likelihood, torch.zeros_like(log_likelihood))


def expected_vote_fractions(concentrations: Tensor, schema: Schema) -> Tensor:
    """Mean of the Dirichlet posterior of each question.

    Parameters
    ----------
    concentrations : (batch, answers), each > 0
    schema : groups the answers into questions

    Returns
    -------
    (batch, answers), summing to 1 within each question
    """
    membership = schema.membership.to(concentrations)
    return concentrations / (concentrations @ membership @ membership.T)
