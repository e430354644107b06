"""What a planted rare class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rarezoo.data.simulate.population import Galaxy
from rarezoo.data.simulate.render import Canvas


@dataclass(frozen=True)
class RareClass:
    """One planted class.

    Attributes
    ----------
    looks : what an astronomer would say
    max_inclination : degrees
    changes : an ordinary disk -> the parameters in which a member differs
    paint : adds a member's light to the frame
    """

    looks: str
    max_inclination: float
    changes: Callable[[Galaxy, np.random.Generator], dict[str, Any]]
    paint: Callable[[Canvas, Galaxy, np.random.Generator], None]
