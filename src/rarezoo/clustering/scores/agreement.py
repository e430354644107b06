"""Whether clusters tell known kinds apart, all kinds and clusters taken together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from rarezoo.clustering.scores.known import is_known


def kind_agreement(labels: NDArray[np.integer], kinds: Sequence[object] | NDArray) -> dict[str, int | float]:
    """How far clusters follow kinds that the training labels do not name.

    Walmsley & Scaife 2023, Sec. 4 show it for kinds of artifact, which Galaxy Zoo's one answer 'artifact' does not tell
    apart.

    Parameters
    ----------
    labels : (M,) cluster of each galaxy, -1 for none
    kinds : (M,) known kind; None, NaN, "" and -1 mean none, and those rows do not count

    Returns
    -------
    n; share_in_clusters; ami, adjusted mutual information over all rows of a kind, those in no cluster taken as one
    group; ami_in_clusters, over those in clusters alone. 0 is chance, 1 is identity; NaN without rows.
    """
    known = is_known(kinds)
    cluster, kind = labels[known], np.asarray(kinds, dtype=object)[known].astype(str)
    inside = cluster >= 0
    return {
        "n": int(known.sum()),
        "share_in_clusters": float(inside.mean()) if len(kind) else float("nan"),
        "ami": _ami(kind, cluster),
        "ami_in_clusters": _ami(kind[inside], cluster[inside]),
    }


def _ami(kind: NDArray, cluster: NDArray[np.integer]) -> float:
    return float(adjusted_mutual_info_score(kind, cluster)) if len(kind) else float("nan")
