"""The planted rare classes: galaxies that Galaxy Zoo's decision tree has no answer for.

Each starts from an ordinary disk of the broad population, so that size, brightness, colour, orientation and noise vary
as they do there, and differs in structure alone. Volunteers would call all of them featured, not edge-on, and no
artifact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rarezoo.data.simulate.population import Galaxy, draw_disk
from rarezoo.data.simulate.rare import disturbed, rings
from rarezoo.data.simulate.rare.base import RareClass

RARE_CLASSES: dict[str, RareClass] = {
    "collisional_ring": rings.COLLISIONAL_RING,
    "polar_ring": rings.POLAR_RING,
    "green_cloud": disturbed.GREEN_CLOUD,
    "detached_ring": rings.DETACHED_RING,
    "jellyfish": disturbed.JELLYFISH,
    "tadpole": disturbed.TADPOLE,
    "theta_ring": rings.THETA_RING,
    "double_nucleus": disturbed.DOUBLE_NUCLEUS,
    "companion_on_arm": disturbed.COMPANION_ON_ARM,
    "one_armed_ring": rings.ONE_ARMED_RING,
    "shredded_spiral": disturbed.SHREDDED_SPIRAL,
    "barred_clumpy_irregular": disturbed.BARRED_CLUMPY_IRREGULAR,
}
"""The planted classes, the rarest first."""
_PLAIN: dict[str, Any] = {
    "n_arms": 0,
    "arm_strength": 0.0,
    "flocculence": 0.0,
    "bar_strength": 0.0,
    "inner_ring": 0.0,
    "outer_ring": 0.0,
    "companion": 0.0,
    "dust": 0.0,
    "disturbance": 0.0,
}
_MIN_SNR = 5.0


def draw_rare(name: str, size: int, rng: np.random.Generator) -> Galaxy:
    """Draw the parameters of a member of a rare class, bright enough to be recognised (snr of 5 or more).

    Parameters
    ----------
    name : one of `RARE_CLASSES`
    size : side of the cutout, px
    rng : source of all randomness
    """
    rare = RARE_CLASSES[name]
    disk = draw_disk(size, rng, rare.max_inclination)
    member = replace(disk, rare_class=name, **_PLAIN | rare.changes(disk, rng))
    return replace(member, snr=float(np.hypot(member.snr, _MIN_SNR)))
