"""A simulated survey: galaxies rendered from physical components, simulated volunteers, and planted rare classes."""

from rarezoo.data.simulate.rare import RARE_CLASSES
from rarezoo.data.simulate.survey import rare_counts, simulate_survey

__all__ = ["RARE_CLASSES", "rare_counts", "simulate_survey"]
