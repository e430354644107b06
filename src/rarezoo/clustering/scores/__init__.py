"""How well a search recovers classes that are known, because they were planted or labelled."""

from rarezoo.clustering.scores.agreement import kind_agreement
from rarezoo.clustering.scores.discovery import LEAST_SHOWN, LOOKED_AT, discovered_after, discoveries
from rarezoo.clustering.scores.intervals import Interval, bootstrap_interval, ratio_interval, recovered_by_abundance
from rarezoo.clustering.scores.known import Known
from rarezoo.clustering.scores.matching import FOUND, WELL_FOUND, chance_recovery, recovery, summary
from rarezoo.clustering.scores.ranking import example_precision

__all__ = [
    "FOUND",
    "LEAST_SHOWN",
    "LOOKED_AT",
    "WELL_FOUND",
    "Interval",
    "Known",
    "bootstrap_interval",
    "chance_recovery",
    "discovered_after",
    "discoveries",
    "example_precision",
    "kind_agreement",
    "ratio_interval",
    "recovered_by_abundance",
    "recovery",
    "summary",
]
