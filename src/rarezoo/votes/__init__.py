"""Decision trees of Galaxy Zoo, the likelihood and the posterior of votes, and whether they are calibrated."""

from rarezoo.votes.calibration import Calibration, calibration, calibration_sums
from rarezoo.votes.dirichlet import expected_vote_fractions, question_totals, vote_nll
from rarezoo.votes.posterior import FractionPosterior, answer_probabilities, fraction_posterior, fraction_quantiles
from rarezoo.votes.schema import Schema, load_schema

__all__ = [
    "Calibration",
    "FractionPosterior",
    "Schema",
    "answer_probabilities",
    "calibration",
    "calibration_sums",
    "expected_vote_fractions",
    "fraction_posterior",
    "fraction_quantiles",
    "load_schema",
    "question_totals",
    "vote_nll",
]
