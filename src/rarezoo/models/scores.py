"""How well votes are predicted, summed over galaxies, batches and processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from rarezoo.votes import Schema
from rarezoo.votes.calibration import Calibration, calibration, calibration_sums

# Share of the votes that the widest interval that is logged should hold.
COVERAGE_SHOWN = 0.9


@dataclass(frozen=True)
class VoteResult:
    """Scores of a set of galaxies.

    Attributes
    ----------
    n_galaxies : number of galaxies
    loss : mean over galaxies of the sum over questions of the negative log-likelihood, in nats
    per_question : (questions,) mean over the galaxies that were asked; NaN where none was
    per_campaign : campaign -> mean over its galaxies of the sum over its questions; empty where there is only one
    calibration : of the predicted counts
    """

    n_galaxies: int
    loss: float
    per_question: list[float]
    per_campaign: dict[str, float]
    calibration: Calibration

    def numbers(self, schema: Schema) -> dict[str, float]:
        """Names and values to log."""
        losses = zip(schema.questions, self.per_question, strict=True)
        asked = self.calibration.n_asked > 0
        level = int(np.abs(self.calibration.levels - COVERAGE_SHOWN).argmin())
        found = {
            "loss": self.loss,
            **{f"loss_{question.name}": loss for question, loss in losses},
            **{f"loss_campaign_{name}": loss for name, loss in self.per_campaign.items()},
            "calibration_error": float(self.calibration.ece[asked].mean()) if asked.any() else math.nan,
            f"coverage_{round(100 * self.calibration.levels[level])}": _mean(self.calibration.coverage[:, level]),
        }
        return {name: value for name, value in found.items() if name == "loss" or math.isfinite(value)}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


class VoteScores(Metric):
    """Sums over galaxies in float64, which ranks add up: uneven batches and ranks weigh as the galaxies in them do."""

    full_state_update = False
    loss_sum: Tensor
    n_asked: Tensor
    n_galaxies: Tensor
    campaign_loss: Tensor
    campaign_galaxies: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._schema = schema
        several = schema.campaigns if len(schema.campaigns) > 1 else {}
        self._campaigns = {name: list(questions) for name, questions in several.items()}
        n_questions = len(schema.questions)
        nothing = torch.zeros(0, len(schema.label_cols))
        self._calibration_names = []
        sums = {
            "loss_sum": torch.zeros(n_questions, dtype=torch.float64),
            "n_asked": torch.zeros(n_questions, dtype=torch.float64),
            "n_galaxies": torch.zeros((), dtype=torch.float64),
            "campaign_loss": torch.zeros(len(self._campaigns), dtype=torch.float64),
            "campaign_galaxies": torch.zeros(len(self._campaigns), dtype=torch.float64),
        }
        for name, start in calibration_sums(nothing + 1, nothing, schema).items():
            self._calibration_names.append(name)
            sums[f"calibration_{name}"] = torch.zeros_like(start)
        for name, start in sums.items():
            self.add_state(name, default=start, dist_reduce_fx="sum")

    def update(self, per_question: Tensor, concentrations: Tensor, counts: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        per_question : (batch, questions) negative log-likelihood, 0 where not asked
        concentrations, counts : (batch, answers)
        """
        losses = per_question.double()
        asked = (counts @ self._schema.membership.to(counts) > 0).double()
        self.loss_sum += losses.sum(0)
        self.n_asked += asked.sum(0)
        self.n_galaxies += len(losses)
        for index, questions in enumerate(self._campaigns.values()):
            self.campaign_loss[index] += losses[:, questions].sum()
            self.campaign_galaxies[index] += (asked[:, questions].sum(1) > 0).sum()
        # The loss of a model that has diverged says so itself.
        known = concentrations.isfinite().all(1)
        for name, value in calibration_sums(concentrations[known], counts[known], self._schema).items():
            state = getattr(self, f"calibration_{name}")
            state += value.to(state.device)

    def compute(self) -> dict[str, Tensor]:
        """The sums, of all ranks."""
        return {name: cast(Tensor, getattr(self, name)) for name in self._defaults}

    def result(self) -> VoteResult:
        """Scores of all galaxies so far, of all ranks."""
        # torchmetrics makes a number of what has one element.
        shapes = {name: cast(Tensor, start).shape for name, start in self._defaults.items()}
        sums = {name: value.reshape(shapes[name]) for name, value in self.compute().items()}
        campaigns = (sums["campaign_loss"] / sums["campaign_galaxies"]).tolist()
        counted = {name: sums[f"calibration_{name}"] for name in self._calibration_names}
        return VoteResult(
            n_galaxies=int(sums["n_galaxies"]),
            loss=float(sums["loss_sum"].sum() / sums["n_galaxies"]),
            per_question=(sums["loss_sum"] / sums["n_asked"]).tolist(),
            per_campaign=dict(zip(self._campaigns, campaigns, strict=True)),
            calibration=calibration(counted, self._schema),
        )
