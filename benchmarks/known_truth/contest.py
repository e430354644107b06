"""What a survey gives to a method, and what the method gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.clustering.stages import StageStore


@dataclass(frozen=True)
class KnownSurvey:
    """Galaxies of which the rare classes are known.

    Attributes
    ----------
    name : of the survey without its seed, as "simulated-30000"
    truth : where what is known comes from: planted by the simulation, attributes that astronomers gave and training
        never saw, or images of one survey injected into another
    seed : of the survey and of the network that represents it
    ids : (N,) identifiers
    classes : (N, K) bool, one column a known class; classes may overlap
    kinds : (N,) kind of artifact, "" for none
    rows : (M,) ascending rows that pass the paper's cuts; what is searched for classes
    rows_with_artifacts : (P,) the same without the cut on artifacts; empty where no kinds are known
    representations : name -> what reads it, (N, D) float32
    """

    name: str
    truth: Literal["planted", "attributes", "injected"]
    seed: int
    ids: NDArray[np.object_]
    classes: pd.DataFrame
    kinds: NDArray[np.object_]
    rows: NDArray[np.int64]
    rows_with_artifacts: NDArray[np.int64]
    representations: Mapping[str, Callable[[], NDArray[np.float32]]]


@dataclass(frozen=True)
class Task:
    """What a method is given: nothing of what is known.

    Attributes
    ----------
    x : (M, D) representation of the galaxies to search
    seed : of all that the method draws
    store : stages that methods of the same survey share
    montage_size : how many galaxies a montage shows
    """

    x: NDArray[np.float32]
    seed: int
    store: StageStore
    montage_size: int = 12


@dataclass(frozen=True)
class Found:
    """What a method gives back.

    Attributes
    ----------
    montages : rows of the task that each montage shows, in the order in which they would be looked at
    labels : (M,) class of each galaxy, -1 for none; None for a method that ranks galaxies and makes no classes
    notes : figures to keep beside the scores
    """

    montages: Sequence[NDArray[np.int64]]
    labels: NDArray[np.int32] | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


Method = Callable[[Task], Found]
