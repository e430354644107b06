"""Decision trees of Galaxy Zoo and the likelihood of vote counts."""

from rarezoo.votes.dirichlet import expected_vote_fractions, vote_nll
from rarezoo.votes.schema import Schema, load_schema

__all__ = ["Schema", "expected_vote_fractions", "load_schema", "vote_nll"]
