"""Dirichlet-multinomial likelihood of vote counts (Walmsley et al. 2022, MNRAS 509, 3966, Sec. 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rarezoo.votes.schema import Schema


def vote_nll(concentrations: Tensor, counts: Tensor, schema: Schema) -> Tensor:
    """Negative log-likelihood of the votes on each question, with the multinomial coefficient.

    A question without votes adds exactly 0, to the loss and to its gradient. All questions are computed at once, and
    with them the gradient with respect to the concentrations, in closed form; it cannot be differentiated again.

    Computed in float64 (in float32 on a device that has no other) whatever the autocast and the input: of terms of some
    hundreds that nearly cancel, float32 leaves four digits, and bfloat16 errs by several nats.

    Parameters
    ----------
    concentrations : (batch, answers), each > 0
    counts : (batch, answers), numbers of votes >= 0; fractional (debiased) counts are taken as they are
    schema : groups the answers into questions

    Returns
    -------
    (batch, questions), in nats, float64 for float64 concentrations and float32 for any other
    """
    with torch.autocast(concentrations.device.type, enabled=False):
        question_of = schema.question_of(concentrations.device)
        nll: Tensor = _VoteNLL.apply(concentrations, counts, question_of, len(schema.questions))
    return nll


class _VoteNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, concentrations: Tensor, counts: Tensor, question_of: Tensor, n_questions: int) -> Tensor:
        result = torch.promote_types(concentrations.dtype, torch.float32)
        exact = torch.float32 if concentrations.device.type == "mps" else torch.float64
        # On the CPU, the questions without votes are left out: in a tree of many campaigns they are most. Elsewhere,
        # and in a compiled graph, all are computed, as the number of those with votes would have to be waited for.
        packed = concentrations.device.type == "cpu" and not torch.compiler.is_compiling()
        lists = _voted_questions if packed else _all_questions
        cells, entries, cell_of = lists(counts, question_of, n_questions)
        x, a = counts.take(entries).to(exact), concentrations.take(entries).to(exact)
        nothing = a.new_zeros(len(cells))
        n, t = nothing.index_add(0, cell_of, x), nothing.index_add(0, cell_of, a)
        if ctx.needs_input_grad[0]:
            slope = _slope(x, a).sub_(_slope(n, t).take(cell_of)).to(result)
            ctx.save_for_backward(slope, cells, entries, cell_of)
            ctx.shape, ctx.dtype = concentrations.shape, concentrations.dtype
        per_cell = _log_ways(n, t).neg_().index_add_(0, cell_of, _log_ways(x, a))
        nll = a.new_zeros(len(counts) * n_questions, dtype=result)
        return nll.index_copy_(0, cells, per_cell.to(result)).view(len(counts), n_questions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        slope, cells, entries, cell_of = ctx.saved_tensors
        gradient = slope.new_zeros(ctx.shape.numel()).index_copy_(
            0, entries, slope * upstream.take(cells).take(cell_of)
        )
        return gradient.view(ctx.shape).to(ctx.dtype), None, None, None


def _log_ways(n: Tensor, a: Tensor) -> Tensor:
    # log of n! Gamma(a) / Gamma(a + n); in place, as fresh memory costs more than the sums that it would hold.
    return (n + 1).lgamma_().add_(torch.lgamma(a)).sub_((a + n).lgamma_())


def _slope(n: Tensor, a: Tensor) -> Tensor:
    # Derivative of _log_ways with respect to a.
    return torch.digamma(a).sub_((a + n).digamma_())


def _voted_questions(counts: Tensor, question_of: Tensor, n_questions: int) -> tuple[Tensor, Tensor, Tensor]:
    # Flat indices of the questions with votes and of all their answers, and the place in the former of each answer's.
    # Written as "not 0", since a count that is not a number has to show in the loss.
    votes = counts.new_zeros(len(counts), n_questions).scatter_add_(1, question_of.expand(counts.shape), counts)
    cells = votes.flatten().nonzero()[:, 0]
    size = torch.bincount(question_of, minlength=n_questions)
    start = size.cumsum(0) - size
    question = cells % n_questions
    n_answers = size.take(question)
    cell_of = torch.arange(len(cells)).repeat_interleave(n_answers)
    first = cells // n_questions * len(question_of) + start.take(question)
    entries = torch.arange(len(cell_of)) + (first - n_answers.cumsum(0) + n_answers).take(cell_of)
    return cells, entries, cell_of


def _all_questions(counts: Tensor, question_of: Tensor, n_questions: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.arange(len(counts), device=counts.device)
    cells = torch.arange(len(counts) * n_questions, device=counts.device)
    entries = torch.arange(counts.numel(), device=counts.device)
    return cells, entries, (rows[:, None] * n_questions + question_of).flatten()


def expected_vote_fractions(concentrations: Tensor, schema: Schema) -> Tensor:
    """Mean of the Dirichlet posterior of each question.

    Parameters
    ----------
    concentrations : (..., answers), each > 0
    schema : groups the answers into questions

    Returns
    -------
    (..., answers), summing to 1 within each question
    """
    return concentrations / question_totals(concentrations, schema).index_select(
        -1, schema.question_of(concentrations.device)
    )


def question_totals(values: Tensor, schema: Schema) -> Tensor:
    """Sum over the answers of each question.

    Parameters
    ----------
    values : (..., answers)
    schema : groups the answers into questions

    Returns
    -------
    (..., questions)
    """
    cells = schema.question_of(values.device).expand(values.shape)
    return values.new_zeros(*values.shape[:-1], len(schema.questions)).scatter_add(-1, cells, values)
